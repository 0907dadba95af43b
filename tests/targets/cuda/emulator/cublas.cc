// The part of cuBLAS that benchmarks/gpu/cublas.py calls: matrices lie column by column, as NVIDIA
// documents cublasGemmEx. What the documentation forbids is refused.
#include <cstdint>
#include <cstring>

#include "capture.h"

namespace {
constexpr int kInvalid = 7, kUnsupported = 15;
constexpr int kFloat = 0, kBfloat16 = 14, kSumsInFloat = 68;
struct Handle { void* stream = nullptr; void* workspace = nullptr; };

float read(const void* from, int64_t place, int type) {
  if (type == kFloat) return static_cast<const float*>(from)[place];
  uint32_t bits = uint32_t(static_cast<const uint16_t*>(from)[place]) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
void write(void* to, int64_t place, int type, float value) {
  if (type == kFloat) {
    static_cast<float*>(to)[place] = value;
    return;
  }
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  static_cast<uint16_t*>(to)[place] = uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
}  // namespace

extern "C" {
int cublasCreate_v2(void** handle) { *handle = new Handle(); return 0; }
int cublasSetStream_v2(Handle* handle, void* stream) { handle->stream = stream; return 0; }
int cublasSetWorkspace_v2(Handle* handle, void* place, size_t bytes) {
  if (reinterpret_cast<uintptr_t>(place) % 256 || !bytes) return kInvalid;
  handle->workspace = place;
  return 0;
}
int cublasGemmEx(Handle* handle, int turn_a, int turn_b, int m, int n, int k, const float* alpha,
                 const void* a, int a_type, int lda, const void* b, int b_type, int ldb,
                 const float* beta, void* c, int c_type, int ldc, int sums, int) {
  if (a_type != b_type || a_type != c_type || sums != kSumsInFloat) return kUnsupported;
  if (a_type != kFloat && a_type != kBfloat16) return kUnsupported;
  if (m < 1 || n < 1 || k < 1 || ldc < m) return kInvalid;
  if (lda < (turn_a ? k : m) || ldb < (turn_b ? n : k) || !handle->workspace) return kInvalid;
  auto work = [=, alpha = *alpha, beta = *beta] {
    for (int64_t column = 0; column < n; column++)
      for (int64_t row = 0; row < m; row++) {
        float total = 0;
        for (int64_t i = 0; i < k; i++)
          total += read(a, turn_a ? row * lda + i : i * lda + row, a_type) *
                   read(b, turn_b ? i * ldb + column : column * ldb + i, b_type);
        float before = beta == 0 ? 0 : beta * read(c, column * ldc + row, c_type);
        write(c, column * ldc + row, c_type, alpha * total + before);
      }
    return 0;
  };
  return on_stream(handle->stream, work);
}
}
