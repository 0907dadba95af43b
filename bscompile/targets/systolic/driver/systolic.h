// The driver of a systolic accelerator: four functions. This is what a vendor replaces.
//
// Compiled layers call them in this order: systolic_open when a model is loaded; then for every
// call of a layer, on up to SYSTOLIC_DEPTH rows of x at a time, systolic_bind for each region,
// systolic_run, systolic_wait. Layers of one thread never overlap; layers of several threads may.
//
// The array's size is part of the names (systolic16_open, ...), so that models for arrays of
// different sizes can live in one process.
#pragma once
#include <cstdint>

#ifndef SYSTOLIC_SIZE
#define SYSTOLIC_SIZE 16
#endif
#define SYSTOLIC_PASTE(size, name) systolic##size##_##name
#define SYSTOLIC_EXPAND(size, name) SYSTOLIC_PASTE(size, name)
#define SYSTOLIC(name) SYSTOLIC_EXPAND(SYSTOLIC_SIZE, name)
#define SYSTOLIC_PUBLIC __attribute__((visibility("default")))

// What a command's addresses refer to; all count words of SYSTOLIC_SIZE elements.
enum SystolicRegion : int32_t {
    SYSTOLIC_WEIGHTS = 0,  // int8 [blocks, SIZE (input), SIZE (output)]
    SYSTOLIC_X = 1,        // int8 [rows, x_stride * SIZE]
    SYSTOLIC_Y = 2,        // int32 [rows, y_stride * SIZE]
};

// One command: three words. Bits 1:0 of the first are the opcode.
//   0 LOAD   from       the block of weights at word `from`
//   1 MATMUL from, to   rows of x times that block; bit 8: first of its outputs, bit 9: last
//   2 CLEAR  to         rows of zeros
//   3 SHAPE  x, y       words from one row to the next in x and y
struct SystolicCommand {
    int32_t code, from, to;
};

enum SystolicFault : int64_t { SYSTOLIC_STALLED = -1, SYSTOLIC_OUTSIDE = -2 };

extern "C" {
// Make the device ready; 0, or an error number. May be called again.
SYSTOLIC_PUBLIC int32_t SYSTOLIC(open)(void);

// Tell the device where a region lies in host memory. A device with memory of its own copies
// weights and x here (weights once: they stay the same for the same address), y in wait.
SYSTOLIC_PUBLIC int32_t SYSTOLIC(bind)(int32_t region, void* data, int64_t bytes);

// Queue commands for `rows` rows of x, 1 to SYSTOLIC_DEPTH. They stay valid until wait returns.
SYSTOLIC_PUBLIC int32_t SYSTOLIC(run)(const SystolicCommand* commands, int32_t count, int32_t rows);

// Wait until y is complete in host memory; cycles that it took, or a fault.
SYSTOLIC_PUBLIC int64_t SYSTOLIC(wait)(void);

// Cycles of all runs of this process so far, for reports.
extern SYSTOLIC_PUBLIC uint64_t SYSTOLIC(cycles);
}
