/* Runs a static program: lays out its memory once, then calls one kernel after the other. */
#include "bscompile_model.h"
#include "host.h"
#include "program.h"

#define P bscompile_program
#define ROUND_UP(n) (((n) + BSCOMPILE_ALIGNMENT - 1) & ~(uint64_t)(BSCOMPILE_ALIGNMENT - 1))

static char **bases;         /* of every storage */
static DLTensor *tensors;    /* one for every buffer */
static TVMFFIAny *arguments; /* of the step that runs */

size_t bscompile_weights_bytes(void) { return P.weights_bytes; }
int bscompile_input_count(void) {
  int count = 0;
  for (uint32_t i = 0; i < P.storage_count; i++) count += P.storages[i].role == INPUT;
  return count;
}
int bscompile_output_count(void) { return (int)P.output_count; }
size_t bscompile_input_bytes(int index) { return P.storages[index].bytes; }
size_t bscompile_output_bytes(int index) { return P.buffers[P.outputs[index]].bytes; }

/* A polynomial over 8-byte words: tells wrong or damaged weights, not malice. */
static uint64_t checksum(const char *bytes, uint64_t count) {
  uint64_t sum = 0, word;
  for (uint64_t at = 0; at + 8 <= count; at += 8) {
    memcpy(&word, bytes + at, 8);
    sum = sum * 0x100000001b3u + word;
  }
  return sum;
}

/* Storages, tensors and scratch memory; inputs get their address when the model is called. */
static int lay_out(void) {
  uint64_t scratch = 0;
  for (uint32_t i = 0; i < P.storage_count; i++)
    if (P.storages[i].role == SCRATCH) scratch += ROUND_UP(P.storages[i].bytes);
  char *room = host_allocate(scratch + 1);
  bases = host_allocate(P.storage_count * sizeof *bases + 1);
  tensors = host_allocate(P.buffer_count * sizeof *tensors + 1);
  arguments = host_allocate(P.most_arguments * sizeof *arguments + 1);
  if (!room || !bases || !tensors || !arguments) {
    host_say("bscompile: there is not enough memory for the model");
    return 1;
  }
  for (uint32_t i = 0; i < P.storage_count; i++) {
    bases[i] = 0;
    if (P.storages[i].role != SCRATCH) continue;
    bases[i] = room;
    room += ROUND_UP(P.storages[i].bytes);
  }
  memset(tensors, 0, P.buffer_count * sizeof *tensors);
  memset(arguments, 0, P.most_arguments * sizeof *arguments);
  for (uint32_t i = 0; i < P.buffer_count; i++) {
    tensors[i].device.device_type = kDLCPU;
    tensors[i].dtype = P.buffers[i].dtype;
    tensors[i].ndim = P.buffers[i].rank;
    tensors[i].shape = (int64_t *)P.buffers[i].shape; /* kernels only read it */
  }
  host_set_threads(P.threads);
  return 0;
}

/* Vectors of this processor that are too short would leave outputs unwritten. */
static int vectors_fit(void) {
#ifdef __riscv
  unsigned long bytes = 0;
  if (P.vector_bytes) __asm__("csrr %0, 0xc22" : "=r"(bytes)); /* vlenb */
  return bytes >= (unsigned long)P.vector_bytes;
#else
  return 1;
#endif
}

int bscompile_load(const void *weights, size_t bytes) {
  if (bytes != P.weights_bytes || checksum(weights, bytes) != P.weights_checksum) {
    host_say("bscompile: these are not the weights that the program was made with");
    return 1;
  }
  if (!vectors_fit()) {
    host_say("bscompile: this processor's vectors are shorter than the model was compiled for");
    return 1;
  }
  if ((uintptr_t)weights % BSCOMPILE_ALIGNMENT) {
    host_say("bscompile: weights are wanted at a multiple of BSCOMPILE_ALIGNMENT");
    return 1;
  }
  if (!bases && lay_out()) return 1;
  char *at = (char *)weights;
  for (uint32_t i = 0; i < P.storage_count; i++) {
    if (P.storages[i].role != PARAM) continue;
    bases[i] = at;
    at += ROUND_UP(P.storages[i].bytes);
  }
  for (uint32_t i = 0; i < P.buffer_count; i++)
    tensors[i].data = bases[P.buffers[i].storage] + P.buffers[i].offset;
  return 0;
}

void bscompile_set_threads(int count) { host_set_threads(count); }

static int run_step(const struct step *step) {
  TVMFFIAny result = {0};
  for (int32_t i = 0; i < step->count; i++) {
    arguments[i].type_index = kTVMFFIDLTensorPtr;
    arguments[i].v_ptr = &tensors[step->buffers[i]];
  }
  if (step->call(0, arguments, step->count, &result) == 0) return 0;
  host_say("bscompile: this kernel failed:");
  host_say(step->name);
  return 1;
}

int bscompile_run(const void *const *inputs, void *const *outputs) {
  if (!bases) {
    host_say("bscompile: bscompile_load comes first");
    return 1;
  }
  for (uint32_t i = 0; i < P.buffer_count; i++)
    if (P.storages[P.buffers[i].storage].role == INPUT)
      tensors[i].data = (char *)inputs[P.buffers[i].storage] + P.buffers[i].offset;
  for (uint32_t i = 0; i < P.step_count; i++)
    if (run_step(&P.steps[i])) return 1;
  for (uint32_t i = 0; i < P.output_count; i++)
    memcpy(outputs[i], tensors[P.outputs[i]].data, P.buffers[P.outputs[i]].bytes);
  return 0;
}
