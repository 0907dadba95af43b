// One thread block, or a cluster of them, on one CPU thread: a fiber per CUDA thread, barriers,
// warps, shared memory.
// Every group operation is a meeting: the last thread to come does the work for all. When no
// thread can go on the block is dead-locked, and the process says so and stops.
#pragma once
#include <setjmp.h>
#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <utility>
#include <vector>

#include "numbers.h"

namespace emu {

struct Block;

struct Fiber {
  ucontext_t context;  // where it begins
  jmp_buf place;       // where it goes on: switching contexts would ask the kernel every time
  bool begun = false;
  dim3 thread;
  int index = 0;   // in its block
  int number = 0;  // among all that run at once
  Block* block = nullptr;
  bool done = false;
};

struct Meeting {
  int present = 0;
  uint64_t round = 0;
  void* who[1024];
};

constexpr size_t kStack = 1 << 17;
constexpr size_t kShared = 232448;  // the most that a block of sm_90 may use
constexpr size_t kCluster = 8;      // blocks
constexpr uint32_t kSharedBase = 0x400;
constexpr int kWindow = 24;  // bits of an address; above them is a block's rank + 1, or 0 for mine

struct Block {
  dim3 index;
  unsigned rank = 0;  // in its cluster
  unsigned char* memory;
  Meeting warps[32], groups[8], barriers[16];
};

inline std::vector<Fiber> fibers;
inline Fiber* current;
inline jmp_buf scheduler;
inline dim3 block_size, grid_size;
inline size_t block_threads;
inline uint64_t progress;  // rises with everything that may let another thread go on
alignas(1024) inline unsigned char memories[kCluster][kShared];
inline size_t shared_bytes;
inline Block blocks[kCluster];
inline size_t cluster_blocks;
inline Meeting cluster_meeting;

inline unsigned char* shared_memory() { return current->block->memory; }

[[noreturn]] inline void fail(const char* why) {
  dim3 at = current ? current->block->index : dim3{};
  std::fprintf(stderr, "emulator: %s (thread %d of block %u,%u,%u)\n", why,
               current ? current->index : -1, at.x, at.y, at.z);
  std::_Exit(86);
}

inline void yield() {
  if (_setjmp(current->place) == 0) _longjmp(scheduler, 1);
}

// Let a fiber run until it yields or ends.
inline void resume(Fiber& fiber) {
  current = &fiber;
  if (_setjmp(scheduler)) return;
  if (fiber.begun) _longjmp(fiber.place, 1);
  fiber.begun = true;
  setcontext(&fiber.context);
}
inline int lane() { return current->index % 32; }
inline int warp() { return current->index / 32; }

// Wait for `count` threads; the last to come calls work(array of what each brought).
template <class Work>
void meet(Meeting& meeting, int place, int count, void* mine, Work work) {
  uint64_t round = meeting.round;
  if (place >= 0) meeting.who[place] = mine;
  progress++;
  if (++meeting.present == count) {
    work(meeting.who);
    meeting.present = 0;
    meeting.round++;
  } else {
    while (meeting.round == round) yield();
  }
}

inline void barrier(int id, int count) {
  meet(current->block->barriers[id], -1, count, nullptr, [](void**) {});
}

// Addresses in shared memory are 32-bit offsets from a base that is not zero.
inline uint32_t to_shared(const void* pointer) {
  long offset = static_cast<const unsigned char*>(pointer) - shared_memory();
  if (offset < 0 || offset >= static_cast<long>(shared_bytes)) fail("not an address of shared memory");
  return static_cast<uint32_t>(offset) + kSharedBase;
}

// The same place in the block of that rank.
inline uint32_t map_rank(uint32_t address, unsigned rank) {
  if (rank >= cluster_blocks) fail("mapa: the cluster has no such block");
  return (address & ((1u << kWindow) - 1)) | (rank + 1) << kWindow;
}

inline Block& block_of(uint32_t address) {
  unsigned window = address >> kWindow;
  return window ? blocks[window - 1] : *current->block;
}

inline unsigned char* from_shared(uint32_t address, size_t bytes) {
  uint32_t offset = (address & ((1u << kWindow) - 1)) - kSharedBase;
  if (offset + bytes > shared_bytes) fail("access outside the block's shared memory");
  return block_of(address).memory + offset;
}

template <class T>
T shuffle(T value, int from) {
  struct Brought { T value; int from; T result; } mine{value, from, value};
  int width = min(32, static_cast<int>(block_threads) - 32 * warp());
  meet(current->block->warps[warp()], lane(), width, &mine, [width](void** all) {
    for (int i = 0; i < width; i++) {
      auto* one = static_cast<Brought*>(all[i]);
      one->result = static_cast<Brought*>(all[one->from & 31])->value;
    }
  });
  return mine.result;
}

inline void (*kernel)(void**);
inline void** arguments;

inline void start() {
  kernel(arguments);
  current->done = true;
  progress++;
  _longjmp(scheduler, 1);
}

// Copies that go on while threads run: tensor_core.h and hopper.h.
void forget_copies(size_t threads);
bool let_copies_arrive();  // whether there were any

inline void run_cluster(char* stacks) {
  size_t threads = cluster_blocks * block_threads;
  cluster_meeting.present = 0;
  for (size_t rank = 0; rank < cluster_blocks; rank++) {
    Block& block = blocks[rank];
    block.rank = static_cast<unsigned>(rank);
    block.memory = memories[rank];
    std::memset(block.memory, 0xff, shared_bytes);
    for (auto* meetings : {block.warps, block.barriers, block.groups})
      for (int i = 0; i < (meetings == block.warps ? 32 : meetings == block.groups ? 8 : 16); i++)
        meetings[i].present = 0;
  }
  forget_copies(threads);
  for (size_t i = 0; i < threads; i++) {
    Fiber& fiber = fibers[i];
    unsigned index = static_cast<unsigned>(i % block_threads);
    fiber.number = static_cast<int>(i);
    fiber.index = static_cast<int>(index);
    fiber.block = &blocks[i / block_threads];
    fiber.done = fiber.begun = false;
    fiber.thread = {index % block_size.x, index / block_size.x % block_size.y,
                    index / (block_size.x * block_size.y)};
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = stacks + i * kStack;
    fiber.context.uc_stack.ss_size = kStack;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, start, 0);
  }
  for (;;) {
    uint64_t before = progress;
    bool waiting = false;
    for (size_t i = 0; i < threads; i++) {
      if (fibers[i].done) continue;
      waiting = true;
      resume(fibers[i]);
    }
    if (waiting && before != progress) continue;
    // Nobody can go on: now, and no sooner, what is on its way arrives.
    if (let_copies_arrive()) {
      if (!waiting) fail("a copy was on its way when its block had ended");
      continue;
    }
    if (!waiting) return;
    fail("deadlock: every thread waits");
  }
}

// The whole grid, cluster after cluster (along x). Shared memory begins as 0xFF: NaN in every
// float format.
inline int launch(void (*entry)(void**), void** args, dim3 grid, dim3 block, size_t shared,
                  size_t cluster) {
  block_threads = size_t(block.x) * block.y * block.z;
  if (shared > kShared || block_threads == 0 || block_threads > 1024) return 1;
  if (cluster == 0 || cluster > kCluster || grid.x % cluster) return 1;
  grid_size = grid;
  block_size = block;
  shared_bytes = shared;
  cluster_blocks = cluster;
  kernel = entry;
  arguments = args;
  fibers.resize(cluster * block_threads);
  std::unique_ptr<char[]> stacks(new char[cluster * block_threads * kStack]);  // not cleared
  for (unsigned z = 0; z < grid.z; z++)
    for (unsigned y = 0; y < grid.y; y++)
      for (unsigned x = 0; x < grid.x; x += static_cast<unsigned>(cluster)) {
        for (unsigned rank = 0; rank < cluster; rank++) blocks[rank].index = {x + rank, y, z};
        run_cluster(stacks.get());
      }
  current = nullptr;
  return 0;
}

template <class T>
T shuffle_xor(unsigned, T value, int mask, int = 32) { return shuffle(value, lane() ^ mask); }
template <class T>
T shuffle_down(unsigned, T value, int by, int width = 32) {
  int from = lane() + by;
  return shuffle(value, from / width == lane() / width ? from : lane());
}
template <class T>
T shuffle_up(unsigned, T value, int by, int width = 32) {
  int from = lane() - by;
  return shuffle(value, from >= 0 && from / width == lane() / width ? from : lane());
}
template <class T>
T shuffle_index(unsigned, T value, int from, int width = 32) {
  return shuffle(value, lane() / width * width + from % width);
}

}  // namespace emu

#define threadIdx (emu::current->thread)
#define blockIdx (emu::current->block->index)
#define blockDim (emu::block_size)
#define gridDim (emu::grid_size)
#define __syncthreads() emu::barrier(0, static_cast<int>(emu::block_threads))
#define __syncwarp(...) emu::shuffle(0, emu::lane())
#define __cvta_generic_to_shared(pointer) emu::to_shared(reinterpret_cast<const void*>(pointer))
#define __trap() emu::fail("the kernel traps")
#define __popc __builtin_popcount
#define __ffs __builtin_ffs
#define __activemask() 0xffffffffu
#define __shfl_sync emu::shuffle_index
#define __shfl_xor_sync emu::shuffle_xor
#define __shfl_down_sync emu::shuffle_down
#define __shfl_up_sync emu::shuffle_up
