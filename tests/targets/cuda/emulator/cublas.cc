// The part of cuBLAS that bscompile/runtime/cublas.py calls: matrices lie column by column, as NVIDIA
// documents cublasGemmEx. What the documentation forbids is refused. EMULATED_CUBLAS_FAULT plants a
// fault: "create" and "product" are refused, "wrong" leaves out the last summand.
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>

#include "capture.h"

namespace {
constexpr int kInvalid = 7, kUnsupported = 15;
constexpr int kFloat = 0, kHalf = 2, kBfloat16 = 14, kSumsInFloat = 68;
constexpr int kNotInitialized = 1, kFailed = 13;
struct Handle { void* stream = nullptr; void* workspace = nullptr; };

bool faulty(const char* how) {
  const char* wanted = std::getenv("EMULATED_CUBLAS_FAULT");
  return wanted && std::string(wanted) == how;
}

float read(const void* from, int64_t place, int type) {
  if (type == kFloat) return static_cast<const float*>(from)[place];
  if (type == kHalf) return static_cast<const _Float16*>(from)[place];
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
  if (type == kHalf) {
    static_cast<_Float16*>(to)[place] = _Float16(value);
    return;
  }
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  static_cast<uint16_t*>(to)[place] = uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
}  // namespace

extern "C" {
int cublasCreate_v2(void** handle) {
  if (faulty("create")) return kNotInitialized;
  *handle = new Handle();
  return 0;
}
int cublasDestroy_v2(Handle* handle) { delete handle; return 0; }
int cublasGetVersion_v2(Handle*, int* version) { *version = 130100; return 0; }
// As documented, this brings back the library's own workspace, which no graph may hold.
int cublasSetStream_v2(Handle* handle, void* stream) { *handle = {stream, nullptr}; return 0; }
int cublasSetWorkspace_v2(Handle* handle, void* place, size_t bytes) {
  if (reinterpret_cast<uintptr_t>(place) % 256 || !bytes) return kInvalid;
  handle->workspace = place;
  return 0;
}
int cublasGemmEx(Handle* handle, int turn_a, int turn_b, int m, int n, int k, const float* alpha,
                 const void* a, int a_type, int lda, const void* b, int b_type, int ldb,
                 const float* beta, void* c, int c_type, int ldc, int sums, int) {
  if (faulty("product")) return kFailed;
  if (a_type != b_type || sums != kSumsInFloat) return kUnsupported;
  if (a_type != kFloat && a_type != kHalf && a_type != kBfloat16) return kUnsupported;
  if (c_type != a_type && c_type != kFloat) return kUnsupported;
  if (m < 1 || n < 1 || k < 1 || ldc < m) return kInvalid;
  if (lda < (turn_a ? k : m) || ldb < (turn_b ? n : k) || !handle->workspace) return kInvalid;
  int summands = k - faulty("wrong");
  auto work = [=, alpha = *alpha, beta = *beta] {
    for (int64_t column = 0; column < n; column++)
      for (int64_t row = 0; row < m; row++) {
        float total = 0;
        for (int64_t i = summands - 1; i >= 0; i--)  // in an order that no kernel of ours has
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
