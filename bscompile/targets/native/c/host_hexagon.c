/* Hexagon without a C library: Linux system calls through trap0, as qemu-hexagon serves them.
   All is weak: what a device's own system or C library defines takes its place. */
#include "bscompile_model.h"
#include "host.h"

#define WEAK __attribute__((weak))

enum { OPENAT = 56, READ = 63, WRITE = 64, MMAP = 222 };

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

WEAK void *memcpy(void *to, const void *from, size_t bytes) {
  char *a = to;
  const char *b = from;
  if ((((uintptr_t)a | (uintptr_t)b) & 7) == 0)
    for (; bytes >= 8; bytes -= 8, a += 8, b += 8) *(eight_bytes *)a = *(const eight_bytes *)b;
  while (bytes--) *a++ = *b++;
  return to;
}
WEAK void *memset(void *to, int value, size_t bytes) {
  char *a = to;
  uint64_t word = 0x0101010101010101u * (uint8_t)value;
  if (((uintptr_t)a & 7) == 0)
    for (; bytes >= 8; bytes -= 8, a += 8) *(eight_bytes *)a = word;
  while (bytes--) *a++ = (char)value;
  return to;
}

/* Rounded to nearest even: beyond 2^23 there are no fractions, and below adding it drops them. */
WEAK float nearbyintf(float x) {
  const float limit = 8388608.0f;
  if (!(x > -limit && x < limit)) return x;
  volatile float moved = x < 0 ? x - limit : x + limit;
  return __builtin_copysignf(x < 0 ? moved + limit : moved - limit, x);
}
WEAK float rintf(float x) { return nearbyintf(x); }

WEAK void *host_allocate(size_t bytes) { /* pages are aligned to more than is asked for */
  long at = system_call(MMAP, 0, (long)(bytes ? bytes : 1), 3, 0x22, -1, 0);
  return at < 0 && at > -4096 ? 0 : (void *)at;
}
WEAK void host_free(void *memory) { (void)memory; }
WEAK long host_read(int file, void *to, size_t bytes) {
  return system_call(READ, file, (long)to, (long)bytes, 0, 0, 0);
}
WEAK long host_write(int file, const void *from, size_t bytes) {
  return system_call(WRITE, file, (long)from, (long)bytes, 0, 0, 0);
}
WEAK int host_open(const char *path) {
  return (int)system_call(OPENAT, -100, (long)path, 0, 0, 0, 0);
}
WEAK void host_say(const char *line) {
  size_t length = 0;
  while (line[length]) length++;
  host_write(2, line, length);
  host_write(2, "\n", 1);
}
WEAK double host_seconds(void) { return 0; }

/* One hardware thread. */
WEAK int host_parallel(int (*task)(int index, int count, void *data), void *data) {
  return task(0, 1, data);
}
WEAK void host_set_threads(int count) { (void)count; }
