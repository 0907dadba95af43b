// What Hopper adds, by the layouts and rules that the PTX manual documents: mbarriers, TMA, wgmma,
// clusters. Copies arrive only when no thread can go on without them, the last issued first;
// wgmma reads and writes only when its group is waited for.
#pragma once
#include <functional>
#include <map>

#include "tensor_core.h"

struct CUtensorMap {  // as the emulated driver encodes it
  uint64_t address, columns, rows, stride, box_columns, box_rows, swizzle, mark, unused[8];
};

namespace emu {

// ---------------------------------------------------------------- mbarriers

struct Barrier {
  int count = 0, pending = 0, phase = 0;
  long bytes = 0;
};
inline std::map<const void*, Barrier> mbarriers;  // by their place in some block's memory

inline Barrier& barrier_at(uint32_t address) {
  if (address % 8) fail("mbarrier: not aligned to 8 bytes");
  auto found = mbarriers.find(from_shared(address, 8));
  if (found == mbarriers.end()) fail("mbarrier: not initialized");
  return found->second;
}

inline void settle(Barrier& one) {
  progress++;
  if (one.pending < 0) fail("mbarrier: more arrivals than it counts");
  if (one.pending || one.bytes) return;
  one.phase ^= 1;
  one.pending = one.count;
}

inline void barrier_init(uint32_t address, int count) {
  if (address % 8) fail("mbarrier: not aligned to 8 bytes");
  if (count < 1) fail("mbarrier: counts nobody");
  mbarriers[from_shared(address, 8)] = {count, count, 0, 0};
  progress++;
}

inline void barrier_arrive(uint32_t address) {
  Barrier& one = barrier_at(address);
  one.pending--;
  settle(one);
}

inline void barrier_expect(uint32_t address, uint32_t bytes) {
  Barrier& one = barrier_at(address);
  one.bytes += bytes;
  one.pending--;
  settle(one);
}

inline void barrier_take(Barrier& one, size_t bytes) {
  one.bytes -= static_cast<long>(bytes);
  if (one.bytes <= -(1 << 20)) fail("mbarrier: more bytes than it may count");
  settle(one);
}

// 1 once the phase of that parity has ended.
inline unsigned barrier_wait(uint32_t address, unsigned parity) {
  Barrier& one = barrier_at(address);
  while (one.phase == static_cast<int>(parity & 1)) yield();
  return 1;
}

// ---------------------------------------------------------------- TMA

// Pieces of 16 bytes change places by the address' bits 7 to 9: kinds 1, 2, 3 are 32, 64, 128 bytes.
inline uint32_t swizzled(uint32_t address, int kind) {
  return address ^ ((address >> 7 & ((1u << kind) - 1)) << 4);
}

struct Arrival { std::function<void()> happen; };
inline std::vector<Arrival> arriving;

inline void check_place(uint32_t to, const void* from, size_t bytes) {
  if (to % 16 || reinterpret_cast<uintptr_t>(from) % 16 || bytes % 16)
    fail("bulk copy: not aligned to 16 bytes");
}

inline void load_tile(uint32_t to, const void* map, int column, int row, uint32_t address) {
  CUtensorMap tile = *static_cast<const CUtensorMap*>(map);
  if (tile.mark != 0x7e4504a9) fail("TMA: not a tensor map");
  if (to % (128u << tile.swizzle)) fail("TMA: the destination is not aligned for its swizzle");
  Block& block = block_of(to);
  Barrier* told = &barrier_at(address);
  size_t bytes = tile.box_columns * 2;
  from_shared(to, bytes * tile.box_rows);
  progress++;
  arriving.push_back({[=, &block] {
    for (size_t r = 0; r < tile.box_rows; r++)
      for (size_t c = 0; c < tile.box_columns; c++) {
        long at_row = row + static_cast<long>(r), at_column = column + static_cast<long>(c);
        bool inside = at_row >= 0 && at_column >= 0 && at_row < static_cast<long>(tile.rows) &&
                      at_column < static_cast<long>(tile.columns);
        uint32_t place = swizzled(to + r * bytes + 2 * c, tile.swizzle);
        auto* from = reinterpret_cast<const unsigned char*>(tile.address);
        uint16_t value = 0;
        if (inside) std::memcpy(&value, from + at_row * tile.stride + at_column * 2, 2);
        std::memcpy(block.memory + (place & ((1u << kWindow) - 1)) - kSharedBase, &value, 2);
      }
    barrier_take(*told, bytes * tile.box_rows);
  }});
}

// With ``ranks``: to the same place, and the same barrier, of every block whose bit is set.
inline void load_tile(uint32_t to, const void* map, int column, int row, uint32_t address,
                      unsigned ranks) {
  for (unsigned rank = 0; rank < 16; rank++)
    if (ranks >> rank & 1) load_tile(map_rank(to, rank), map, column, row, map_rank(address, rank));
}

inline void load_bytes(uint32_t to, const void* from, size_t bytes, uint32_t address,
                       unsigned ranks) {
  check_place(to, from, bytes);
  progress++;
  for (unsigned rank = 0; rank < 16; rank++) {
    if (!(ranks >> rank & 1)) continue;
    unsigned char* place = from_shared(map_rank(to, rank), bytes);
    Barrier* told = &barrier_at(map_rank(address, rank));
    arriving.push_back({[=] {
      std::memcpy(place, from, bytes);
      barrier_take(*told, bytes);
    }});
  }
}

inline void load_bytes(uint32_t to, const void* from, size_t bytes, uint32_t address) {
  load_bytes(to, from, bytes, address, 1u << current->block->rank);
}

inline bool let_copies_arrive() {
  auto now = std::move(arriving);
  arriving.clear();
  for (auto one = now.rbegin(); one != now.rend(); ++one) one->happen();
  return !now.empty();
}

// ---------------------------------------------------------------- wgmma

// K-major matrices, swizzled: see the manual's matrix descriptor.
struct Matrix {
  uint32_t first, stride;
  int kind;
  explicit Matrix(uint64_t bits)
      : first((bits & 0x3fff) << 4), stride((bits >> 32 & 0x3fff) << 4), kind((4 - (bits >> 62)) % 4) {
    if (!kind) fail("wgmma: a matrix that is not swizzled");
    if (bits >> 49 & 7) fail("wgmma: a matrix with a base offset");
  }
  float at(int row, int column, bool bfloat) const {
    uint32_t place = first + row / 8 * stride + row % 8 * (16u << kind) + 2 * column;
    uint16_t bits;
    std::memcpy(&bits, from_shared(swizzled(place, kind), 2), 2);
    return bfloat ? float(bits_as<nv_bfloat16>(bits)) : float(bits_as<half>(bits));
  }
};

struct Product {
  bool bfloat, keep;
  uint64_t a, b;
  int columns;
  std::vector<float*> sums;  // 128 threads x columns / 2
};
struct Products { std::vector<Product> open; std::vector<std::vector<Product>> groups; };
inline std::map<std::pair<Block*, int>, Products> products;

inline int warpgroup() { return current->index / 128; }
inline Products& my_products() { return products[{current->block, warpgroup()}]; }

template <class Work>
void meet_warpgroup(void* mine, Work work) {
  meet(current->block->groups[warpgroup()], current->index % 128, 128, mine, work);
}

// D of m64nNk16: warp w of the group has rows 16 w to 16 w + 15 of it, a lane's sum i is row
// lane / 4 + 8 (i / 2 % 2), column 8 (i / 4) + 2 (lane % 4) + i % 2.
inline void multiply(const Product& one) {
  static float a[64][16], b[256][16];
  Matrix left(one.a), right(one.b);
  for (int r = 0; r < 64; r++)
    for (int k = 0; k < 16; k++) a[r][k] = left.at(r, k, one.bfloat);
  for (int r = 0; r < one.columns; r++)
    for (int k = 0; k < 16; k++) b[r][k] = right.at(r, k, one.bfloat);
  for (int t = 0; t < 128; t++)
    for (int i = 0; i < one.columns / 2; i++) {
      int row = t / 32 * 16 + t % 32 / 4 + 8 * (i / 2 % 2), column = i / 4 * 8 + t % 4 * 2 + i % 2;
      float* sum = one.sums[t * (one.columns / 2) + i];
      float total = one.keep ? *sum : 0.0f;
      for (int k = 0; k < 16; k++) total += a[row][k] * b[column][k];
      *sum = total;
    }
}

inline void wgmma(int columns, bool bfloat, float** sums, uint64_t a, uint64_t b, bool keep) {
  struct Brought { float** sums; uint64_t a, b; bool keep; } mine{sums, a, b, keep};
  meet_warpgroup(&mine, [=](void** all) {
    Product one{bfloat, keep, a, b, columns, {}};
    for (int t = 0; t < 128; t++) {
      auto* brought = static_cast<Brought*>(all[t]);
      if (brought->a != a || brought->b != b || brought->keep != keep)
        fail("wgmma: the threads of a warpgroup bring different operands");
      one.sums.insert(one.sums.end(), brought->sums, brought->sums + columns / 2);
    }
    my_products().open.push_back(std::move(one));
  });
}

inline void wgmma_commit() {
  meet_warpgroup(nullptr, [](void**) {
    auto& mine = my_products();
    mine.groups.push_back(std::move(mine.open));
    mine.open.clear();
  });
}

inline void wgmma_wait(size_t left) {
  meet_warpgroup(nullptr, [left](void**) {
    auto& groups = my_products().groups;
    while (groups.size() > left) {
      for (auto& one : groups.front()) multiply(one);
      groups.erase(groups.begin());
    }
  });
}

// ---------------------------------------------------------------- clusters, registers

inline void cluster_barrier() {
  meet(cluster_meeting, -1, static_cast<int>(fibers.size()), nullptr, [](void**) {});
}

// Four floats from any block of the cluster.
inline void load_vector(uint32_t address, float* a, float* b, float* c, float* d) {
  if (address % 16) fail("ld.v4: not aligned to 16 bytes");
  const unsigned char* from = from_shared(address, 16);
  for (float* to : {a, b, c, d}) {
    std::memcpy(to, from, 4);
    from += 4;
  }
}

inline void set_registers(int count) {
  if (count < 24 || count > 256 || count % 8) fail("setmaxnreg: 24 to 256, a multiple of 8");
  meet_warpgroup(nullptr, [](void**) {});
}

inline void forget_copies(size_t threads) {
  copies.assign(threads, Copies());
  arriving.clear();
  mbarriers.clear();
  products.clear();
}

}  // namespace emu
