/* A plugin for qemu: counts what the guest executes, instructions or, on Hexagon, packets.
   The few declarations that it needs stand here, because no package brings their header. */
#include <stdint.h>
#include <stdio.h>

#define EXPORT __attribute__((visibility("default")))
typedef uint64_t plugin_id;
struct qemu_plugin_tb; /* a block of translated code */
enum { INLINE_ADD_U64 = 0 };
void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id, void (*)(plugin_id, struct qemu_plugin_tb *));
void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *, int, void *, uint64_t);
void qemu_plugin_register_atexit_cb(plugin_id, void (*)(plugin_id, void *), void *);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);

EXPORT int qemu_plugin_version = 1;
static uint64_t count;

static void translated(plugin_id id, struct qemu_plugin_tb *block) {
  (void)id;
  uint64_t instructions = qemu_plugin_tb_n_insns(block);
  qemu_plugin_register_vcpu_tb_exec_inline(block, INLINE_ADD_U64, &count, instructions);
}

static void ended(plugin_id id, void *data) {
  (void)id, (void)data;
  fprintf(stderr, "instructions: %llu\n", (unsigned long long)count);
}

EXPORT int qemu_plugin_install(plugin_id id, const void *info, int words, char **word) {
  (void)info, (void)words, (void)word;
  qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
  qemu_plugin_register_atexit_cb(id, ended, 0);
  return 0;
}
