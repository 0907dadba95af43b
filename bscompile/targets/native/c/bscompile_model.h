/* A compiled model as a C library.

   Link the object files beside this header into a program, give it the weights once, then call it
   as often as you like, from one thread at a time:

       void *weights = ...;                   // the bytes of weights.bin, at a multiple of
                                              // BSCOMPILE_ALIGNMENT, alive as long as calls are made
       if (bscompile_load(weights, bytes)) return 1;
       const void *inputs[] = {x};            // in the order of the model, contiguous; at a
       void *outputs[] = {y};                 // multiple of BSCOMPILE_ALIGNMENT where it matters
       if (bscompile_run(inputs, outputs)) return 1;

   Every function returns 0, or another number after writing one line to standard error. */
#ifndef BSCOMPILE_MODEL_H
#define BSCOMPILE_MODEL_H
#include <stddef.h>
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif

#define BSCOMPILE_ALIGNMENT 128

/* Tell the model where its weights are. They are compared with a checksum and not copied. */
int bscompile_load(const void *weights, size_t bytes);

/* Compute the outputs. Inputs are not changed. */
int bscompile_run(const void *const *inputs, void *const *outputs);

/* Sizes: of the weights, and how many inputs and outputs there are with the bytes of each. */
size_t bscompile_weights_bytes(void);
int bscompile_input_count(void);
int bscompile_output_count(void);
size_t bscompile_input_bytes(int index);
size_t bscompile_output_bytes(int index);

/* Worker threads that calls may use, the calling one counted; set before the first call. */
void bscompile_set_threads(int count);

#ifdef __cplusplus
}
#endif
#endif
