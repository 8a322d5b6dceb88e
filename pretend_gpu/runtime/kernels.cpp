// Launches of kernels, by the runtime and by the driver.

#include "books.h"

#include <cstring>
#include <dlfcn.h>
#include <unordered_map>

using namespace books;

// ---- Kernels

static std::unordered_map<const void*, std::string> kernel_names;

static thread_local struct {
  dim3 grid, block;
  size_t shared;
  void* stream;
} launch_configuration;

PUBLIC void** __cudaRegisterFatBinary(void*) {
  static void* handle[1];
  return handle;
}

PUBLIC void __cudaRegisterFatBinaryEnd(void**) {}
PUBLIC void __cudaUnregisterFatBinary(void**) {}
PUBLIC void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}

PUBLIC void __cudaRegisterFunction(void**, const char* function, char*, const char* name, int, uint3*, uint3*, dim3*, dim3*,
                                   int*) {
  Lock lock(mutex);
  kernel_names[function] = name;
}

PUBLIC unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, void* stream) {
  launch_configuration = {grid, block, shared, stream};
  return 0;
}

PUBLIC cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
  *grid = launch_configuration.grid;
  *block = launch_configuration.block;
  *shared = launch_configuration.shared;
  *static_cast<void**>(stream) = launch_configuration.stream;
  return cudaSuccess;
}

PUBLIC cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* function) {
  *kernel = reinterpret_cast<cudaKernel_t>(const_cast<void*>(function));
  return cudaSuccess;
}

static int launch(const std::string& name, dim3 grid, dim3 block, void* handle) {
  Lock lock(mutex);
  counts.launches++;
  if (!grid.x || !block.x || grid.y > 65535 || grid.z > 65535 || block.x * block.y * block.z > 1024)
    return broken(cudaErrorInvalidConfiguration, "a launch of " + name + " with an invalid grid");
  if (fails_at_kernels) return broken(cudaErrorNotSupported, "the pretend GPU has no operation for the kernel " + name);
  return issue(stream_of(handle), name, Node{Node::kernel});
}

static std::string name_of_kernel(const void* function) {
  Lock lock(mutex);
  auto found = kernel_names.find(function);
  return found == kernel_names.end() ? "unknown kernel" : found->second;
}

PUBLIC cudaError_t cudaLaunchKernel(const void* function, dim3 grid, dim3 block, void**, size_t, cudaStream_t stream) {
  return static_cast<cudaError_t>(launch(name_of_kernel(function), grid, block, stream));
}

PUBLIC cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void**, size_t, cudaStream_t stream) {
  return static_cast<cudaError_t>(launch(name_of_kernel(kernel), grid, block, stream));
}

PUBLIC cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* configuration, const void* function, void**) {
  return static_cast<cudaError_t>(
      launch(name_of_kernel(function), configuration->gridDim, configuration->blockDim, configuration->stream));
}

PUBLIC cudaError_t cudaLaunchCooperativeKernel(const void* function, dim3 grid, dim3 block, void**, size_t,
                                               cudaStream_t stream) {
  return static_cast<cudaError_t>(launch(name_of_kernel(function), grid, block, stream));
}

PUBLIC cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
  memset(attributes, 0, sizeof *attributes);
  attributes->maxThreadsPerBlock = 1024;
  attributes->numRegs = 32;
  attributes->ptxVersion = attributes->binaryVersion = capability();
  attributes->maxDynamicSharedSizeBytes = 49152;
  return cudaSuccess;
}

PUBLIC cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* count, const void*, int, size_t, unsigned) {
  *count = 2;
  return cudaSuccess;
}

PUBLIC cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* count, const void*, int, size_t) {
  *count = 2;
  return cudaSuccess;
}

// ---- Driver: what Triton and Inductor ask of it

PUBLIC CUresult cuInit(unsigned) { return CUDA_SUCCESS; }

PUBLIC CUresult cuDriverGetVersion(int* version) {
  *version = CUDA_VERSION;
  return CUDA_SUCCESS;
}

PUBLIC CUresult cuDeviceGetCount(int* count) {
  *count = num_devices();
  return CUDA_SUCCESS;
}

PUBLIC CUresult cuDeviceGet(CUdevice* device, int ordinal) {
  *device = ordinal;
  return CUDA_SUCCESS;
}

PUBLIC CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice device) {
  return static_cast<CUresult>(cudaDeviceGetAttribute(value, static_cast<cudaDeviceAttr>(attribute), device));
}

PUBLIC CUresult cuCtxGetCurrent(CUcontext* context) {
  *context = reinterpret_cast<CUcontext>(1);
  return CUDA_SUCCESS;
}

PUBLIC CUresult cuCtxGetDevice(CUdevice* device) {
  *device = current_device;
  return CUDA_SUCCESS;
}

PUBLIC CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice) { return cuCtxGetCurrent(context); }

PUBLIC CUresult cuDevicePrimaryCtxGetState(CUdevice, unsigned* flags, int* is_active) {
  *flags = 0;
  *is_active = 1;
  return CUDA_SUCCESS;
}

PUBLIC CUresult cuModuleLoadData(CUmodule* module, const void*) {
  Lock lock(mutex);
  *module = reinterpret_cast<CUmodule>(new int);
  return static_cast<CUresult>(check_allowed("cuModuleLoadData"));
}

PUBLIC CUresult cuModuleLoad(CUmodule* module, const char*) { return cuModuleLoadData(module, nullptr); }

PUBLIC CUresult cuModuleLoadDataEx(CUmodule* module, const void*, unsigned, CUjit_option*, void**) {
  return cuModuleLoadData(module, nullptr);
}

PUBLIC CUresult cuModuleGetFunction(CUfunction* function, CUmodule, const char* name) {
  *function = reinterpret_cast<CUfunction>(strdup(name));
  return CUDA_SUCCESS;
}

PUBLIC CUresult cuFuncGetAttribute(int* value, CUfunction_attribute attribute, CUfunction) {
  *value = attribute == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : attribute == CU_FUNC_ATTRIBUTE_NUM_REGS ? 32 : 0;
  return CUDA_SUCCESS;
}

PUBLIC CUresult cuLaunchKernelEx(const CUlaunchConfig* configuration, CUfunction function, void**, void**) {
  dim3 grid(configuration->gridDimX, configuration->gridDimY, configuration->gridDimZ);
  return static_cast<CUresult>(
      launch(reinterpret_cast<char*>(function), grid, dim3(configuration->blockDimX), configuration->hStream));
}

PUBLIC CUresult cuLaunchKernel(CUfunction function, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned, unsigned,
                               unsigned, CUstream stream, void**, void**) {
  return static_cast<CUresult>(launch(reinterpret_cast<char*>(function), dim3(x, y, z), dim3(threads), stream));
}

PUBLIC CUresult cuGetErrorString(CUresult error, const char** text) {
  *text = cudaGetErrorString(static_cast<cudaError_t>(error));
  return CUDA_SUCCESS;
}

PUBLIC CUresult cuPointerGetAttribute(void* value, CUpointer_attribute attribute, CUdeviceptr pointer) {
  Lock lock(mutex);
  const Block* block = block_at(device_blocks, reinterpret_cast<void*>(pointer));
  if (attribute == CU_POINTER_ATTRIBUTE_DEVICE_POINTER) *static_cast<CUdeviceptr*>(value) = pointer;
  else if (attribute == CU_POINTER_ATTRIBUTE_CONTEXT) *static_cast<void**>(value) = reinterpret_cast<void*>(1);
  else *static_cast<int*>(value) = block ? block->device : 0;
  return block ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

PUBLIC CUresult cuOccupancyMaxActiveClusters(int* count, CUfunction, const CUlaunchConfig*) {
  *count = 1;
  return CUDA_SUCCESS;
}

PUBLIC CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int* count, CUfunction, int, size_t) {
  *count = 2;
  return CUDA_SUCCESS;
}

static int nothing() { return 0; }

PUBLIC cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** function, unsigned, unsigned long long,
                                                    cudaDriverEntryPointQueryResult* result) {
  *function = dlsym(RTLD_DEFAULT, name);
  if (*function == nullptr) *function = reinterpret_cast<void*>(nothing);
  if (result) *result = cudaDriverEntryPointSuccess;
  return cudaSuccess;
}
