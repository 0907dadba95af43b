// Warp-wide instructions by the layouts that the PTX manual documents: ldmatrix, mma, cp.async.
// What only Hopper has is in hopper.h.
#pragma once
#include "block.h"

namespace emu {

inline float wide(uint32_t pair, int which, bool bfloat) {
  uint16_t bits = static_cast<uint16_t>(pair >> (16 * which));
  return bfloat ? float(bits_as<nv_bfloat16>(bits)) : float(bits_as<half>(bits));
}

// ldmatrix.m8n8.x4.b16: lane 8 m + r holds the address of row r of matrix m. Lane l receives from
// each matrix the two elements (l / 4, 2 (l % 4)) and the one beside it; .trans swaps the axes.
inline void ldmatrix_x4(uint32_t address, bool transposed, uint32_t* a, uint32_t* b, uint32_t* c,
                        uint32_t* d) {
  struct Brought { uint32_t address; uint32_t* to[4]; } mine{address, {a, b, c, d}};
  meet(current->block->warps[warp()], lane(), 32, &mine, [transposed](void** all) {
    for (int matrix = 0; matrix < 4; matrix++)
      for (int l = 0; l < 32; l++) {
        uint32_t pair = 0;
        for (int e = 0; e < 2; e++) {
          int row = l / 4, column = 2 * (l % 4) + e;
          if (transposed) std::swap(row, column);
          uint32_t at = static_cast<Brought*>(all[8 * matrix + row])->address;
          if (at % 16) fail("ldmatrix: a row is not aligned to 16 bytes");
          uint16_t bits;
          std::memcpy(&bits, from_shared(at + 2 * column, 2), 2);
          pair |= static_cast<uint32_t>(bits) << (16 * e);
        }
        *static_cast<Brought*>(all[l])->to[matrix] = pair;
      }
  });
}

// mma.m16n8k16, A row-major, B column-major, sums in float32. With g = lane / 4, t = lane % 4:
// A: rows g and g + 8, columns 2t, 2t+1 and those + 8; B: rows 2t, 2t+1 and those + 8, column g;
// C and D: rows g and g + 8, columns 2t and 2t+1.
inline void mma_m16n8k16(bool bfloat, float* d0, float* d1, float* d2, float* d3, uint32_t a0,
                         uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1, float c0,
                         float c1, float c2, float c3) {
  struct Brought { float* d[4]; uint32_t a[4], b[2]; float c[4]; };
  Brought mine{{d0, d1, d2, d3}, {a0, a1, a2, a3}, {b0, b1}, {c0, c1, c2, c3}};
  meet(current->block->warps[warp()], lane(), 32, &mine, [bfloat](void** all) {
    static float A[16][16], B[16][8], D[32][4];
    for (int l = 0; l < 32; l++) {
      auto* one = static_cast<Brought*>(all[l]);
      int g = l / 4, t = l % 4;
      for (int e = 0; e < 2; e++) {
        for (int part = 0; part < 4; part++)
          A[g + 8 * (part % 2)][2 * t + e + 8 * (part / 2)] = wide(one->a[part], e, bfloat);
        for (int part = 0; part < 2; part++) B[2 * t + e + 8 * part][g] = wide(one->b[part], e, bfloat);
      }
    }
    for (int l = 0; l < 32; l++)
      for (int i = 0; i < 4; i++) {
        int row = l / 4 + 8 * (i / 2), column = 2 * (l % 4) + i % 2;
        float sum = static_cast<Brought*>(all[l])->c[i];
        for (int k = 0; k < 16; k++) sum += A[row][k] * B[k][column];
        D[l][i] = sum;
      }
    for (int l = 0; l < 32; l++)
      for (int i = 0; i < 4; i++) *static_cast<Brought*>(all[l])->d[i] = D[l][i];
  });
}

// mma.m16n8k8 of tf32, A row-major, B column-major, sums in float32. With g = lane / 4,
// t = lane % 4: A: (g, t), (g + 8, t), (g, t + 4), (g + 8, t + 4); B: (t, g), (t + 4, g); C and D
// as of m16n8k16. The 13 low bits of an operand are not read.
inline void mma_m16n8k8(float* d0, float* d1, float* d2, float* d3, uint32_t a0, uint32_t a1,
                        uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1, float c0, float c1,
                        float c2, float c3) {
  struct Brought { float* d[4]; uint32_t a[4], b[2]; float c[4]; };
  Brought mine{{d0, d1, d2, d3}, {a0, a1, a2, a3}, {b0, b1}, {c0, c1, c2, c3}};
  meet(current->block->warps[warp()], lane(), 32, &mine, [](void** all) {
    static float A[16][8], B[8][8], D[32][4];
    for (int l = 0; l < 32; l++) {
      auto* one = static_cast<Brought*>(all[l]);
      int g = l / 4, t = l % 4;
      for (int part = 0; part < 4; part++)
        A[g + 8 * (part % 2)][t + 4 * (part / 2)] = bits_as<float>(one->a[part] & 0xffffe000);
      for (int part = 0; part < 2; part++)
        B[t + 4 * part][g] = bits_as<float>(one->b[part] & 0xffffe000);
    }
    for (int l = 0; l < 32; l++)
      for (int i = 0; i < 4; i++) {
        int row = l / 4 + 8 * (i / 2), column = 2 * (l % 4) + i % 2;
        float sum = static_cast<Brought*>(all[l])->c[i];
        for (int k = 0; k < 8; k++) sum += A[row][k] * B[k][column];
        D[l][i] = sum;
      }
    for (int l = 0; l < 32; l++)
      for (int i = 0; i < 4; i++) *static_cast<Brought*>(all[l])->d[i] = D[l][i];
  });
}

inline int byte_of(uint32_t word, int which, bool with_sign) {
  uint8_t bits = static_cast<uint8_t>(word >> (8 * which));
  return with_sign ? static_cast<int8_t>(bits) : bits;
}

// mma.m16n8k32 of 8-bit integers, sums in int32. With g = lane / 4, t = lane % 4:
// A: rows g and g + 8, columns 4t..4t+3 and those + 16; B: rows 4t..4t+3 and those + 16, column g;
// C and D as of m16n8k16.
inline void mma_m16n8k32(bool a_signed, int* d0, int* d1, int* d2, int* d3, uint32_t a0, uint32_t a1,
                         uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1, int c0, int c1, int c2,
                         int c3) {
  struct Brought { int* d[4]; uint32_t a[4], b[2]; int c[4]; };
  Brought mine{{d0, d1, d2, d3}, {a0, a1, a2, a3}, {b0, b1}, {c0, c1, c2, c3}};
  meet(current->block->warps[warp()], lane(), 32, &mine, [a_signed](void** all) {
    static int A[16][32], B[32][8], D[32][4];
    for (int l = 0; l < 32; l++) {
      auto* one = static_cast<Brought*>(all[l]);
      int g = l / 4, t = l % 4;
      for (int e = 0; e < 4; e++) {
        for (int part = 0; part < 4; part++)
          A[g + 8 * (part % 2)][4 * t + e + 16 * (part / 2)] = byte_of(one->a[part], e, a_signed);
        for (int part = 0; part < 2; part++) B[4 * t + e + 16 * part][g] = byte_of(one->b[part], e, true);
      }
    }
    for (int l = 0; l < 32; l++)
      for (int i = 0; i < 4; i++) {
        int row = l / 4 + 8 * (i / 2), column = 2 * (l % 4) + i % 2;
        int sum = static_cast<Brought*>(all[l])->c[i];
        for (int k = 0; k < 32; k++) sum += A[row][k] * B[k][column];
        D[l][i] = sum;
      }
    for (int l = 0; l < 32; l++)
      for (int i = 0; i < 4; i++) *static_cast<Brought*>(all[l])->d[i] = D[l][i];
  });
}

inline int dp4a(bool a_signed, bool b_signed, int a, int b, int sum) {
  for (int i = 0; i < 4; i++) sum += byte_of(a, i, a_signed) * byte_of(b, i, b_signed);
  return sum;
}

// cp.async: nothing arrives before its own thread waits for the group.
struct Copy { uint32_t to; const void* from; int bytes, read; };
struct Copies { std::vector<Copy> open; std::vector<std::vector<Copy>> groups; };
inline std::vector<Copies> copies;

inline void copy_async(uint32_t to, const void* from, int bytes, int read = -1) {
  if (to % bytes) fail("cp.async: the destination is not aligned");
  if (read < 0) read = bytes;
  if (read && reinterpret_cast<uintptr_t>(from) % bytes) fail("cp.async: the source is not aligned");
  copies[current->number].open.push_back({to, from, bytes, read});
}

inline void copy_commit() {
  auto& mine = copies[current->number];
  mine.groups.push_back(std::move(mine.open));
  mine.open.clear();
}

inline void copy_wait(size_t left) {
  auto& groups = copies[current->number].groups;
  while (groups.size() > left) {
    for (auto& copy : groups.front()) {
      auto* to = from_shared(copy.to, copy.bytes);
      std::memset(to, 0, copy.bytes);
      if (copy.read) std::memcpy(to, copy.from, copy.read);
    }
    groups.erase(groups.begin());
  }
}

inline uint32_t pack(bool bfloat, float high, float low) {
  auto narrow = [bfloat](float v) -> uint32_t { return bfloat ? nv_bfloat16(v).bits : half(v).bits; };
  return narrow(low) | narrow(high) << 16;
}

}  // namespace emu
