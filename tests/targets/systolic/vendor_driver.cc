// A vendor's driver: the four functions of systolic.h over another device, here plain arithmetic.
#include <cstring>
#include <vector>

#include "systolic.h"

constexpr int N = SYSTOLIC_SIZE;

static char* region[3];
static const SystolicCommand* queue;
static int32_t queued, x_rows;

extern "C" {

uint64_t SYSTOLIC(cycles) = 0;

int32_t SYSTOLIC(open)(void) { return 0; }

int32_t SYSTOLIC(bind)(int32_t which, void* data, int64_t) {
    region[which] = static_cast<char*>(data);
    return 0;
}

int32_t SYSTOLIC(run)(const SystolicCommand* commands, int32_t count, int32_t rows) {
    queue = commands;
    queued = count;
    x_rows = rows;
    return 0;
}

int64_t SYSTOLIC(wait)(void) {
    auto* weights = reinterpret_cast<const int8_t*>(region[SYSTOLIC_WEIGHTS]);
    auto* x = reinterpret_cast<const int8_t*>(region[SYSTOLIC_X]);
    auto* y = reinterpret_cast<int32_t*>(region[SYSTOLIC_Y]);
    std::vector<int32_t> sums(x_rows * N);
    const int8_t* block = nullptr;
    int64_t x_stride = 0, y_stride = 0;
    for (int32_t i = 0; i < queued; i++) {
        const auto [code, from, to] = queue[i];
        const int32_t opcode = code & 3;
        const bool first = code >> 8 & 1, last = code >> 9 & 1;
        if (opcode == 0) block = weights + int64_t(from) * N;
        if (opcode == 3) x_stride = from, y_stride = to;
        if (opcode == 2 || first) std::fill(sums.begin(), sums.end(), 0);
        for (int r = 0; opcode == 1 && r < x_rows; r++)
            for (int k = 0; k < N; k++)
                for (int n = 0; n < N; n++)
                    sums[r * N + n] += x[(from + r * x_stride) * N + k] * block[k * N + n];
        for (int r = 0; (opcode == 2 || last) && r < x_rows; r++)
            std::memcpy(y + (to + r * y_stride) * N, &sums[r * N], N * sizeof *y);
    }
    return 1;
}

}
