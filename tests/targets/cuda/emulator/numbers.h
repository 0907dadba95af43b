// The 16-bit floats, short vectors and intrinsics that generated CUDA source uses, for a C++ compiler.
// Rounding is to nearest even in both formats, as the hardware's conversions do.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#define __device__
#define __host__
#define __global__
#define __forceinline__ inline
#define __restrict__
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define __shared__ static

template <class To, class From>
inline To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

struct __half {
  uint16_t bits;
  __half() = default;
  __half(float value) : bits(bits_as<uint16_t>(static_cast<_Float16>(value))) {}
  operator float() const { return static_cast<float>(bits_as<_Float16>(bits)); }
};
using half = __half;

struct __nv_bfloat16 {
  uint16_t bits;
  __nv_bfloat16() = default;
  __nv_bfloat16(float value) {
    uint32_t wide = bits_as<uint32_t>(value);
    bool nan = (wide & 0x7fffffffu) > 0x7f800000u;
    bits = nan ? 0x7fff : (wide + 0x7fffu + ((wide >> 16) & 1u)) >> 16;
  }
  operator float() const { return bits_as<float>(static_cast<uint32_t>(bits) << 16); }
};
using nv_bfloat16 = __nv_bfloat16;

template <class T>
struct alignas(4) Pair {
  T x, y;
  Pair() = default;
  Pair(T x, T y) : x(x), y(y) {}
};
using half2 = Pair<half>;
using __half2 = half2;
using nv_bfloat162 = Pair<nv_bfloat16>;
using __nv_bfloat162 = nv_bfloat162;

inline float __half2float(half value) { return value; }
inline half __float2half(float value) { return value; }
inline half __float2half_rn(float value) { return value; }
inline float __bfloat162float(nv_bfloat16 value) { return value; }
inline nv_bfloat16 __float2bfloat16(float value) { return value; }
inline nv_bfloat16 __float2bfloat16_rn(float value) { return value; }
template <class T> inline bool __hgt(T a, T b) { return float(a) > float(b); }
template <class T> inline bool __hlt(T a, T b) { return float(a) < float(b); }

#define VECTORS(type, name)                                                  \
  struct alignas(2 * sizeof(type)) name##2 { type x, y; };                    \
  struct name##3 { type x, y, z; };                                           \
  struct alignas(sizeof(type) == 8 ? 16 : 4 * sizeof(type)) name##4 { type x, y, z, w; }; \
  inline name##2 make_##name##2(type x, type y) { return {x, y}; }            \
  inline name##3 make_##name##3(type x, type y, type z) { return {x, y, z}; } \
  inline name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }
VECTORS(float, float)
VECTORS(double, double)
VECTORS(int, int)
VECTORS(unsigned, uint)
VECTORS(short, short)
VECTORS(unsigned short, ushort)
VECTORS(char, char)
VECTORS(unsigned char, uchar)
VECTORS(long long, longlong)
#undef VECTORS

struct dim3 {
  unsigned x, y, z;
};

template <class T> inline T max(T a, T b) { return a > b ? a : b; }
template <class T> inline T min(T a, T b) { return a < b ? a : b; }
inline float max(float a, float b) { return std::fmax(a, b); }
inline float min(float a, float b) { return std::fmin(a, b); }
inline long max(long a, long b) { return a > b ? a : b; }
inline long min(long a, long b) { return a < b ? a : b; }
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __powf(float x, float y) { return std::pow(x, y); }
inline float __tanhf(float x) { return std::tanh(x); }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline float __frcp_rn(float x) { return 1.0f / x; }
template <class T> inline T __ldg(const T* at) { return *at; }
inline float __int_as_float(int bits) { return bits_as<float>(bits); }
inline int __float_as_int(float value) { return bits_as<int>(value); }
inline unsigned __float_as_uint(float value) { return bits_as<unsigned>(value); }
inline float __uint_as_float(unsigned bits) { return bits_as<float>(bits); }
#define CUDART_INF_F INFINITY
#define CUDART_NAN_F NAN
