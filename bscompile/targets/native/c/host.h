/* What the runner needs from whatever it runs on: an operating system or an emulator. */
#ifndef BSCOMPILE_HOST_H
#define BSCOMPILE_HOST_H
#include <stddef.h>
#include <stdint.h>

void *memcpy(void *to, const void *from, size_t bytes); /* as string.h, which may be absent */
void *memset(void *to, int value, size_t bytes);

void *host_allocate(size_t bytes);                    /* aligned to BSCOMPILE_ALIGNMENT, or null */
void host_free(void *memory);                         /* may do nothing */
long host_read(int file, void *to, size_t bytes);     /* as read(2) */
long host_write(int file, const void *from, size_t bytes);
int host_open(const char *path);                      /* to read; negative where it fails */
double host_seconds(void);                            /* of a clock that only goes forward, or 0 */
void host_say(const char *line);                      /* to standard error, with a newline */

/* A variable of which every thread has its own. */
#ifdef __hexagon__
#define PER_THREAD /* there is one thread, and nothing sets up the others' memory */
#else
#define PER_THREAD _Thread_local
#endif

/* Threads: run `task` for 0 .. count-1, return the last result that is not 0. */
int host_parallel(int (*task)(int index, int count, void *data), void *data);
void host_set_threads(int count);

#endif
