// libcuda and libcudart as far as the TVM runtime uses them, over the emulator: memory is the
// host's, streams run at once, and a "module" is a shared library with a table of kernels.
#include <dlfcn.h>
#include <sys/mman.h>
#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

namespace {
struct Kernel { int (*launch)(void** args, const unsigned* grid, const unsigned* block, size_t shared); };
struct Config {  // CUlaunchConfig
  unsigned grid[3], block[3], shared;
  void* stream;
  void* attributes;
  unsigned count;
};
constexpr int kInvalid = 1, kNotFound = 500, kLaunchFailed = 719;
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
  *function = dlsym(module, ("emulated_" + std::string(name)).c_str());
  return *function ? 0 : kNotFound;
}
int cuFuncSetAttribute(void*, int, int) { return 0; }
int cuLaunchKernelEx(const Config* config, void* function, void** args, void**) {
  auto launch = reinterpret_cast<int (*)(void**, const unsigned*, const unsigned*, size_t)>(function);
  return launch(args, config->grid, config->block, config->shared) ? kLaunchFailed : 0;
}
int cuDeviceGetName(char* name, int size, int) { std::snprintf(name, size, "emulated"); return 0; }
int cuGetErrorName(int, const char** text) { *text = "CUDA_ERROR"; return 0; }
int cuGetErrorString(int, const char** text) { *text = "an error of the emulated driver"; return 0; }
int cuTensorMapEncodeTiled(...) { return 801; }  // CUDA_ERROR_NOT_SUPPORTED

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
int cudaMemcpyAsync(void* to, const void* from, size_t bytes, int, void*) {
  std::memmove(to, from, bytes);
  return 0;
}
int cudaMemcpyPeerAsync(void* to, int, const void* from, int, size_t bytes, void*) {
  std::memmove(to, from, bytes);
  return 0;
}
int cudaStreamCreate(void** stream) { *stream = std::malloc(1); return 0; }
int cudaStreamCreateWithFlags(void** stream, unsigned) { return cudaStreamCreate(stream); }
int cudaStreamDestroy(void* stream) { std::free(stream); return 0; }
int cudaStreamSynchronize(void*) { return 0; }
int cudaStreamWaitEvent(void*, void*, unsigned) { return 0; }
int cudaStreamBeginCapture(void*, int) { return 801; }
int cudaStreamEndCapture(void*, void**) { return 801; }
int cudaGraphInstantiate(...) { return 801; }
int cudaGraphLaunch(void*, void*) { return 801; }
int cudaGraphDestroy(void*) { return 0; }
int cudaGraphExecDestroy(void*) { return 0; }
int cudaEventCreate(void** event) { *event = new double(0); return 0; }
int cudaEventDestroy(void* event) { delete static_cast<double*>(event); return 0; }
int cudaEventRecord(void* event, void*) { *static_cast<double*>(event) = now(); return 0; }
int cudaEventSynchronize(void*) { return 0; }
int cudaEventElapsedTime(float* elapsed, void* from, void* to) {
  *elapsed = static_cast<float>(*static_cast<double*>(to) - *static_cast<double*>(from));
  return 0;
}
}
