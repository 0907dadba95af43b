/* Where a Hexagon program without a C library begins: the count and the words of the command line
   lie on the stack, and vectors want it aligned. */

int main(int count, char **words);

__attribute__((used)) static void begin(long *stack) {
  register long r0 __asm__("r0") = main((int)stack[0], (char **)(stack + 1));
  register long r6 __asm__("r6") = 93; /* exit */
  __asm__ volatile("trap0(#1)" : "+r"(r0) : "r"(r6) : "memory");
}

__attribute__((naked, noreturn, used)) void _start(void) {
  __asm__("{r0 = r29; r29 = and(r29, #-256)}\n{call begin}\n");
}
