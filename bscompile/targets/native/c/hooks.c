/* What TVM's code wants from a runtime: errors, scratch memory and parallel regions. */
#include "host.h"
#include <tvm/ffi/c_api.h>

void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t count) {
  (void)kind;
  for (int32_t i = 0; i < count; i++)
    if (parts[i]) host_say(parts[i]);
}

/* Blocks are asked for and given back in the order of a stack, the same sizes in every call, so
   each thread keeps its blocks. What does not fit among them is allocated and freed. */
#define KEPT 16
static PER_THREAD struct { char *memory; uint64_t bytes; int taken; } blocks[KEPT];

static void *take_block(int device, int id, uint64_t bytes, int code, int bits) {
  (void)device, (void)id, (void)code, (void)bits;
  for (int i = 0; i < KEPT; i++) {
    if (blocks[i].taken) continue;
    if (blocks[i].bytes < bytes) {
      if (blocks[i].memory) host_free(blocks[i].memory);
      blocks[i].memory = host_allocate(bytes);
      blocks[i].bytes = blocks[i].memory ? bytes : 0;
    }
    blocks[i].taken = blocks[i].memory != 0;
    return blocks[i].memory;
  }
  return host_allocate(bytes);
}

static int give_back(int device, int id, void *memory) {
  (void)device, (void)id;
  for (int i = 0; i < KEPT; i++)
    if (blocks[i].memory == memory) return blocks[i].taken = 0;
  host_free(memory);
  return 0;
}

typedef struct { void *sync; int32_t num_task; } environment;
typedef int (*region)(int task, environment *env, void *data);
struct launch { region body; void *data; };

static int one_task(int index, int count, void *data) {
  struct launch *launch = data;
  environment env = {0, count};
  return launch->body(index, &env, launch->data);
}

static int run_parallel(region body, void *data, int wanted) {
  (void)wanted; /* 0: as many as there are threads, which is all that our kernels ask for */
  struct launch launch = {body, data};
  return host_parallel(one_task, &launch);
}

/* TVM's objects hold these as weak null pointers. */
void *(*__TVMBackendAllocWorkspace)(int, int, uint64_t, int, int) = take_block;
int (*__TVMBackendFreeWorkspace)(int, int, void *) = give_back;
int (*__TVMBackendParallelLaunch)(region, void *, int) = run_parallel;
