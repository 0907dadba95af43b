// The driver's four functions for the RTL in ../rtl, simulated by Verilator in this process.
// Each thread has a device of its own, as a real driver would give each one its turn.
#include <cstring>
#include <memory>

#include "Vsystolic.h"
#include "systolic.h"
#include "verilated.h"

namespace {

constexpr int kSize = SYSTOLIC_SIZE;
constexpr int kDepth = SYSTOLIC_DEPTH;

struct Region {
    char* data = nullptr;
    int64_t bytes = 0;
};

class Device {
   public:
    void bind(int32_t region, void* data, int64_t bytes) {
        regions_[region] = {static_cast<char*>(data), bytes};
    }

    void run(const SystolicCommand* commands, int32_t count, int32_t rows) {
        commands_ = commands;
        count_ = count;
        rows_ = rows;
    }

    int64_t wait() {
        outside_ = false;
        top_.rows = rows_;
        top_.command_valid = 0;
        top_.reset = 1;
        tick();
        top_.reset = 0;
        // Far more than any sequence of commands can take: a LOAD too many would wait for ever.
        const int64_t limit = (count_ + 2LL) * (rows_ + kSize + 2LL) + 4 * kSize;
        int32_t sent = 0;
        for (int64_t cycle = 0; cycle < limit; cycle++) {
            top_.command_valid = sent < count_;
            if (sent < count_) std::memcpy(&top_.command, &commands_[sent], sizeof *commands_);
            top_.eval();
            if (sent == count_ && !top_.busy)
                return outside_ ? SYSTOLIC_OUTSIDE : static_cast<int64_t>(top_.cycles);
            sent += top_.command_valid && top_.command_ready;
            tick();
        }
        return SYSTOLIC_STALLED;
    }

   private:
    // One cycle: the memory sees this cycle's requests and answers in the next one.
    void tick() {
        if (top_.y_write)
            if (char* y = word(SYSTOLIC_Y, top_.y_address, 4 * kSize))
                std::memcpy(y, &top_.y_data, 4 * kSize);
        const char* weights =
            top_.weights_read ? word(SYSTOLIC_WEIGHTS, top_.weights_address, kSize) : nullptr;
        const char* x = top_.x_read ? word(SYSTOLIC_X, top_.x_address, kSize) : nullptr;
        top_.clk = 1;
        top_.eval();
        top_.clk = 0;
        // Nothing was asked for, or nothing is there: the ports float, here at a telling value.
        weights ? std::memcpy(&top_.weights_data, weights, kSize)
                : std::memset(&top_.weights_data, 0x55, kSize);
        x ? std::memcpy(&top_.x_data, x, kSize) : std::memset(&top_.x_data, 0x55, kSize);
        top_.eval();
    }

    char* word(int32_t region, uint32_t address, int64_t bytes) {
        const int64_t offset = address * bytes;
        if (offset + bytes <= regions_[region].bytes) return regions_[region].data + offset;
        outside_ = true;
        return nullptr;
    }

    VerilatedContext context_;
    Vsystolic top_{&context_};
    Region regions_[3];
    const SystolicCommand* commands_ = nullptr;
    int32_t count_ = 0, rows_ = 1;
    bool outside_ = false;
};

Device& device() {
    thread_local std::unique_ptr<Device> one;
    if (!one) one = std::make_unique<Device>();
    return *one;
}

}  // namespace

extern "C" {

uint64_t SYSTOLIC(cycles) = 0;

int32_t SYSTOLIC(open)(void) {
    device();
    return 0;
}

int32_t SYSTOLIC(bind)(int32_t region, void* data, int64_t bytes) {
    if (region < SYSTOLIC_WEIGHTS || region > SYSTOLIC_Y || bytes < 0) return 1;
    device().bind(region, data, bytes);
    return 0;
}

int32_t SYSTOLIC(run)(const SystolicCommand* commands, int32_t count, int32_t rows) {
    if (count < 0 || rows < 1 || rows > kDepth) return 1;
    device().run(commands, count, rows);
    return 0;
}

int64_t SYSTOLIC(wait)(void) {
    const int64_t cycles = device().wait();
    if (cycles > 0) __atomic_fetch_add(&SYSTOLIC(cycles), cycles, __ATOMIC_RELAXED);
    return cycles;
}

}
