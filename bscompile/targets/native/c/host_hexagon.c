/* Hexagon without a C library: Linux system calls through trap0, as qemu-hexagon serves them.
   On a phone's DSP the program is linked with the Hexagon SDK instead, whose library replaces
   this file by host_posix.c. */
#include "bscompile_model.h"
#include "host.h"

enum { OPENAT = 56, READ = 63, WRITE = 64, EXIT = 93, MMAP = 222 };

static long system_call(long number, long a, long b, long c, long d, long e, long f) {
  register long r0 __asm__("r0") = a, r1 __asm__("r1") = b, r2 __asm__("r2") = c;
  register long r3 __asm__("r3") = d, r4 __asm__("r4") = e, r5 __asm__("r5") = f;
  register long r6 __asm__("r6") = number;
  __asm__ volatile("trap0(#1)"
                   : "+r"(r0)
                   : "r"(r1), "r"(r2), "r"(r3), "r"(r4), "r"(r5), "r"(r6)
                   : "memory");
  return r0;
}

/* The compiler makes calls of these from loops that copy. Freestanding code is not looked through
   for such loops, so they do not call themselves. */
typedef uint64_t __attribute__((may_alias)) eight_bytes;

void *memcpy(void *to, const void *from, size_t bytes) {
  char *a = to;
  const char *b = from;
  if ((((uintptr_t)a | (uintptr_t)b) & 7) == 0)
    for (; bytes >= 8; bytes -= 8, a += 8, b += 8) *(eight_bytes *)a = *(const eight_bytes *)b;
  while (bytes--) *a++ = *b++;
  return to;
}
void *memset(void *to, int value, size_t bytes) {
  char *a = to;
  uint64_t word = 0x0101010101010101u * (uint8_t)value;
  if (((uintptr_t)a & 7) == 0)
    for (; bytes >= 8; bytes -= 8, a += 8) *(eight_bytes *)a = word;
  while (bytes--) *a++ = (char)value;
  return to;
}

/* Rounded to nearest even: beyond 2^23 there are no fractions, and below adding it drops them. */
float nearbyintf(float x) {
  const float limit = 8388608.0f;
  if (!(x > -limit && x < limit)) return x;
  volatile float moved = x < 0 ? x - limit : x + limit;
  return __builtin_copysignf(x < 0 ? moved + limit : moved - limit, x);
}
float rintf(float x) { return nearbyintf(x); }

void *host_allocate(size_t bytes) { /* pages are aligned to more than is asked for */
  long at = system_call(MMAP, 0, (long)(bytes ? bytes : 1), 3, 0x22, -1, 0);
  return at < 0 && at > -4096 ? 0 : (void *)at;
}
void host_free(void *memory) { (void)memory; }
long host_read(int file, void *to, size_t bytes) {
  return system_call(READ, file, (long)to, (long)bytes, 0, 0, 0);
}
long host_write(int file, const void *from, size_t bytes) {
  return system_call(WRITE, file, (long)from, (long)bytes, 0, 0, 0);
}
int host_open(const char *path) {
  return (int)system_call(OPENAT, -100, (long)path, 0, 0, 0, 0);
}
void host_say(const char *line) {
  size_t length = 0;
  while (line[length]) length++;
  host_write(2, line, length);
  host_write(2, "\n", 1);
}
double host_seconds(void) { return 0; }

/* One hardware thread. */
int host_parallel(int (*task)(int index, int count, void *data), void *data) {
  return task(0, 1, data);
}
void host_set_threads(int count) { (void)count; }

int main(int count, char **words);
__attribute__((used)) static void begin(long *stack) {
  int code = main((int)stack[0], (char **)(stack + 1));
  system_call(EXIT, code, 0, 0, 0, 0, 0);
}
/* The count and the words of the command line lie on the stack; vectors want it aligned. */
__attribute__((naked, noreturn, used)) void _start(void) {
  __asm__("{r0 = r29; r29 = and(r29, #-256)}\n{call begin}\n");
}
