// libcuda and libcudart as far as the TVM runtime uses them, over the emulator: memory is the
// host's, streams run at once, and a "module" is a shared library with a table of kernels. While
// a stream is captured nothing runs: its launches and copies are kept for the graph.
#include <dlfcn.h>
#include <sys/mman.h>
#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "capture.h"

namespace {
struct Kernel {
  int (*launch)(void** args, const unsigned* grid, const unsigned* block, size_t shared,
                size_t cluster);
  void** (*copied)(void** args);
};
struct Config {  // CUlaunchConfig
  unsigned grid[3], block[3], shared;
  void* stream;
  const struct Attribute* attributes;
  unsigned count;
};
struct Attribute {  // CUlaunchAttribute
  int id, unused;
  unsigned value[16];
};
constexpr int kClusterDimension = 4;
constexpr int kInvalid = 1, kNotFound = 500, kLaunchFailed = 719;

int copy(void* to, const void* from, size_t bytes, void* stream) {
  return on_stream(stream, [=] { std::memmove(to, from, bytes); return 0; });
}
double now() {
  return std::chrono::duration<double, std::milli>(
             std::chrono::steady_clock::now().time_since_epoch()).count();
}
}  // namespace

extern "C" {
// The image of a module: "EMULATED", its length in 8 bytes, an ELF shared library.
int cuModuleLoadData(void** module, const char* image) {
  if (std::memcmp(image, "EMULATED", 8)) {
    std::fprintf(stderr, "emulator: not an image: %.60s\n", image);
    return 200;  // CUDA_ERROR_INVALID_IMAGE
  }
  uint64_t length;
  std::memcpy(&length, image + 8, 8);
  int file = memfd_create("kernels", 0);
  if (file < 0 || write(file, image + 16, length) != static_cast<ssize_t>(length)) return kInvalid;
  *module = dlopen(("/proc/self/fd/" + std::to_string(file)).c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!*module) std::fprintf(stderr, "emulator: %s\n", dlerror());
  // The file stays open: the loader takes a second module of the same path for the first.
  return *module ? 0 : 200;
}
int cuModuleUnload(void*) { return 0; }
int cuModuleGetFunction(void** function, void* module, const char* name) {
  auto* launch = dlsym(module, ("emulated_" + std::string(name)).c_str());
  if (!launch) return kNotFound;
  auto* copied = dlsym(module, ("copied_" + std::string(name)).c_str());
  *function = new Kernel{reinterpret_cast<decltype(Kernel::launch)>(launch),
                         reinterpret_cast<decltype(Kernel::copied)>(copied)};
  return 0;
}
int cuDriverGetVersion(int* version) { *version = 13000; return 0; }
int cuFuncSetAttribute(void*, int, int) { return 0; }
int cuLaunchKernelEx(const Config* config, void* function, void** args, void**) {
  auto* kernel = static_cast<Kernel*>(function);
  size_t cluster = 1;
  for (unsigned i = 0; i < config->count; i++) {
    const Attribute& given = config->attributes[i];
    if (given.id != kClusterDimension) continue;
    if (given.value[1] > 1 || given.value[2] > 1) return kInvalid;
    cluster = given.value[0];
  }
  auto run = [kernel, cluster, sizes = *config](void** given) {
    return kernel->launch(given, sizes.grid, sizes.block, sizes.shared, cluster) ? kLaunchFailed : 0;
  };
  if (!emulated_capture.graph) return run(args);
  auto** held = kernel->copied(args);
  return on_stream(config->stream, [run, held] { return run(held); });
}
int cuDeviceGetName(char* name, int size, int) { std::snprintf(name, size, "emulated"); return 0; }
int cuGetErrorName(int, const char** text) { *text = "CUDA_ERROR"; return 0; }
int cuGetErrorString(int, const char** text) { *text = "an error of the emulated driver"; return 0; }
// What tests/targets/cuda/emulator/hopper.h reads; refused where the documented limits are not kept.
int cuTensorMapEncodeTiled(void* map, int type, unsigned rank, void* address, const uint64_t* sizes,
                           const uint64_t* strides, const unsigned* box, const unsigned* steps,
                           int interleave, int swizzle, int, int fill) {
  constexpr int kHalf = 6, kBfloat16 = 9;
  unsigned row = box[0] * 2;
  if ((type != kHalf && type != kBfloat16) || rank != 2 || interleave || fill) return kInvalid;
  if (reinterpret_cast<uintptr_t>(address) % 16 || strides[0] % 16) return kInvalid;
  if (!sizes[0] || !sizes[1] || box[0] > 256 || box[1] > 256 || !box[1]) return kInvalid;
  if (steps[0] != 1 || steps[1] != 1 || row % 16) return kInvalid;
  if (swizzle < 1 || swizzle > 3 || row > (16u << swizzle)) return kInvalid;
  const uint64_t fields[] = {reinterpret_cast<uint64_t>(address), sizes[0], sizes[1], strides[0],
                             box[0], box[1], static_cast<uint64_t>(swizzle), 0x7e4504a9};
  std::memset(map, 0, 128);
  std::memcpy(map, fields, sizeof fields);
  return 0;
}

int cudaGetDeviceCount(int* count) { *count = 1; return 0; }
int cudaGetDevice(int* device) { *device = 0; return 0; }
int cudaSetDevice(int) { return 0; }
int cudaGetDeviceProperties(void* properties, int) { std::memset(properties, 0, 256); return 0; }
int cudaDeviceGetAttribute(int* value, int attribute, int) {
  switch (attribute) {
    case 1: *value = 1024; break;     // threads in a block
    case 8: *value = 48 << 10; break; // shared memory in a block
    case 10: *value = 32; break;      // warp
    case 75: *value = 9; break;       // compute capability, major
    case 76: *value = 0; break;       // and minor
    case 97: *value = 227 << 10; break;
    default: *value = 1024;
  }
  return 0;
}
const char* cudaGetErrorName(int) { return "cudaError"; }
const char* cudaGetErrorString(int) { return "an error of the emulated driver"; }
int cudaGetLastError() { return 0; }
int cudaPeekAtLastError() { return 0; }
int cudaMalloc(void** memory, size_t bytes) {
  // The next kernel must not find what the last one left: fresh memory is NaN.
  size_t room = (bytes + 511) / 256 * 256;
  *memory = std::aligned_alloc(256, room);
  if (*memory) std::memset(*memory, 0xff, room);
  return *memory ? 0 : 2;
}
int cudaMallocHost(void** memory, size_t bytes) { return cudaMalloc(memory, bytes); }
int cudaFree(void* memory) { std::free(memory); return 0; }
int cudaFreeHost(void* memory) { std::free(memory); return 0; }
int cudaMemGetInfo(size_t* free, size_t* total) { *free = *total = size_t(1) << 30; return 0; }
int cudaMemcpyAsync(void* to, const void* from, size_t bytes, int, void* stream) {
  return copy(to, from, bytes, stream);
}
int cudaMemcpyPeerAsync(void* to, int, const void* from, int, size_t bytes, void* stream) {
  return copy(to, from, bytes, stream);
}
int cudaMemsetAsync(void* to, int value, size_t bytes, void* stream) {
  return on_stream(stream, [=] { std::memset(to, value, bytes); return 0; });
}
int cudaStreamCreate(void** stream) { *stream = std::malloc(1); return 0; }
int cudaStreamCreateWithFlags(void** stream, unsigned) { return cudaStreamCreate(stream); }
int cudaStreamDestroy(void* stream) { std::free(stream); return 0; }
int cudaStreamSynchronize(void*) {
  if (!emulated_capture.graph) return 0;
  emulated_capture.broken = true;
  return kCaptureUnsupported;
}
int cudaStreamWaitEvent(void*, void*, unsigned) { return 0; }
int cudaStreamBeginCapture(void* stream, int) {
  if (!stream || emulated_capture.graph) return kCaptureUnsupported;
  emulated_capture = {stream, new Graph(), false};
  return 0;
}
int cudaStreamEndCapture(void* stream, void** graph) {
  auto capture = emulated_capture;
  if (!capture.graph || stream != capture.stream) return kInvalid;
  emulated_capture = {};
  *graph = capture.graph;
  return capture.broken ? kCaptureInvalidated : 0;
}
int cudaGraphInstantiate(void** ready, void* graph, unsigned long long) {
  *ready = new Graph(*static_cast<Graph*>(graph));
  return 0;
}
int cudaGraphLaunch(void* ready, void* stream) {
  if (!stream) return kInvalid;
  for (auto& work : *static_cast<Graph*>(ready))
    if (int code = work()) return code;
  return 0;
}
int cudaGraphDestroy(void* graph) { delete static_cast<Graph*>(graph); return 0; }
int cudaGraphExecDestroy(void* ready) { delete static_cast<Graph*>(ready); return 0; }
int cudaEventCreate(void** event) { *event = new double(0); return 0; }
int cudaEventDestroy(void* event) { delete static_cast<double*>(event); return 0; }
int cudaEventRecord(void* event, void*) { *static_cast<double*>(event) = now(); return 0; }
int cudaEventSynchronize(void*) { return 0; }
int cudaEventElapsedTime(float* elapsed, void* from, void* to) {
  *elapsed = static_cast<float>(*static_cast<double*>(to) - *static_cast<double*>(from));
  return 0;
}
}
