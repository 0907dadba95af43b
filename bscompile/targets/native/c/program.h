/* The static program as tables: what tables.c, which is generated for each model, fills in.
   The meaning of storages, buffers and steps is that of code/program.json. */
#ifndef BSCOMPILE_PROGRAM_H
#define BSCOMPILE_PROGRAM_H
#include <stddef.h>
#include <stdint.h>
#include <tvm/ffi/c_api.h>

enum role { INPUT, PARAM, SCRATCH };

/* A function of the object file that TVM made, called with one DLTensor for each buffer. */
typedef int (*kernel)(void *self, const TVMFFIAny *args, int32_t count, TVMFFIAny *result);

struct storage { uint64_t bytes; int role; };
struct buffer { uint32_t storage; uint64_t offset; int32_t rank; const int64_t *shape;
                DLDataType dtype; uint64_t bytes; };
struct step { kernel call; const char *name; int32_t count; const uint32_t *buffers; };

struct program {
  const struct storage *storages; uint32_t storage_count;
  const struct buffer *buffers; uint32_t buffer_count;
  const struct step *steps; uint32_t step_count;
  const uint32_t *outputs; uint32_t output_count;
  uint32_t most_arguments;   /* of any step */
  uint64_t weights_bytes;    /* of weights.bin */
  uint64_t weights_checksum;
  int32_t threads;           /* that the kernels were made for */
  int32_t vector_bytes;      /* RISC-V: the shortest vectors that the kernels run on; else 0 */
};
extern const struct program bscompile_program;

#endif
