// Intel AMX's tile registers in plain C++: what the kernels' tile instructions mean, for machines
// without them. Tiles belong to a thread, as in hardware; an instruction without a configuration,
// or with shapes that do not fit each other, ends the process.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {
struct Tile { int rows, bytes; uint8_t data[16][64]; };
thread_local Tile tiles[8];
thread_local bool configured = false;

void need(bool fine, const char* what) {
  if (!fine) { std::fprintf(stderr, "tile emulation: %s\n", what); std::abort(); }
}
Tile& tile(int i) { need(configured && i >= 0 && i < 8 && tiles[i].rows, "no such tile"); return tiles[i]; }

float from_bf16(const uint8_t* p) {
  uint16_t half; std::memcpy(&half, p, 2);
  uint32_t bits = uint32_t(half) << 16; float value; std::memcpy(&value, &bits, 4);
  return value;
}

template <class Total, class Product>
int multiply(int c, int a, int b, Product product) {
  Tile &sum = tile(c), &x = tile(a), &w = tile(b);
  need(sum.rows == x.rows && x.bytes == 4 * w.rows && sum.bytes == w.bytes, "shapes do not fit");
  for (int m = 0; m < sum.rows; m++)
    for (int n = 0; n < sum.bytes / 4; n++) {
      Total total; std::memcpy(&total, &sum.data[m][4 * n], 4);
      for (int k = 0; k < w.rows; k++) total += product(&x.data[m][4 * k], &w.data[k][4 * n]);
      std::memcpy(&sum.data[m][4 * n], &total, 4);
    }
  return 0;
}
}  // namespace

extern "C" {
int emulated_ldtilecfg(const uint8_t* config) {
  need(config[0] == 1, "unknown palette");
  for (int i = 0; i < 8; i++) {
    tiles[i].rows = config[48 + i];
    tiles[i].bytes = config[16 + 2 * i] | config[17 + 2 * i] << 8;
    need(tiles[i].rows <= 16 && tiles[i].bytes <= 64, "tile too large");
  }
  configured = true;
  return 0;
}
int emulated_tilerelease() { configured = false; return 0; }
int emulated_tilezero(int i) { std::memset(tile(i).data, 0, sizeof tiles[i].data); return 0; }
int emulated_tileloadd64(int i, const uint8_t* from, int64_t stride) {
  Tile& t = tile(i);
  for (int r = 0; r < t.rows; r++) std::memcpy(t.data[r], from + r * stride, t.bytes);
  return 0;
}
int emulated_tilestored64(int i, uint8_t* to, int64_t stride) {
  Tile& t = tile(i);
  for (int r = 0; r < t.rows; r++) std::memcpy(to + r * stride, t.data[r], t.bytes);
  return 0;
}
int emulated_tdpbf16ps(int c, int a, int b) {
  return multiply<float>(c, a, b, [](const uint8_t* x, const uint8_t* w) {
    return from_bf16(x) * from_bf16(w) + from_bf16(x + 2) * from_bf16(w + 2);
  });
}
int emulated_tdpbusd(int c, int a, int b) {
  return multiply<int32_t>(c, a, b, [](const uint8_t* x, const uint8_t* w) {
    int32_t sum = 0;
    for (int i = 0; i < 4; i++) sum += int32_t(x[i]) * int8_t(w[i]);
    return sum;
  });
}
}
