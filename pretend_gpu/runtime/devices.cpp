// Devices and errors.

#include "books.h"

#include <cstdio>
#include <cstring>

using namespace books;

// ---- Devices

PUBLIC cudaError_t cudaGetDeviceCount(int* count) {
  *count = num_devices();
  return cudaSuccess;
}

PUBLIC cudaError_t cudaGetDevice(int* device) {
  *device = current_device;
  return cudaSuccess;
}

PUBLIC cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= num_devices()) return cudaErrorInvalidDevice;
  current_device = device;
  return cudaSuccess;
}

PUBLIC cudaError_t cudaDriverGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}

PUBLIC cudaError_t cudaRuntimeGetVersion(int* version) { return cudaDriverGetVersion(version); }

PUBLIC cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  memset(properties, 0, sizeof *properties);
  bool is_hopper = capability() >= 90;
  strcpy(properties->name, is_hopper ? "Pretend H100" : "Pretend A100");
  properties->totalGlobalMem = memory_limit();
  properties->major = capability() / 10;
  properties->minor = capability() % 10;
  properties->multiProcessorCount = is_hopper ? 132 : 108;
  properties->warpSize = 32;
  properties->maxThreadsPerBlock = 1024;
  properties->maxThreadsPerMultiProcessor = 2048;
  properties->maxBlocksPerMultiProcessor = 32;
  properties->regsPerBlock = properties->regsPerMultiprocessor = 65536;
  properties->sharedMemPerBlock = 49152;
  properties->sharedMemPerBlockOptin = is_hopper ? 232448 : 166912;
  properties->sharedMemPerMultiprocessor = is_hopper ? 233472 : 167936;
  properties->l2CacheSize = (is_hopper ? 50 : 40) << 20;
  properties->memoryBusWidth = 5120;
  properties->maxThreadsDim[0] = properties->maxThreadsDim[1] = 1024;
  properties->maxThreadsDim[2] = 64;
  properties->maxGridSize[0] = 2147483647;
  properties->maxGridSize[1] = properties->maxGridSize[2] = 65535;
  properties->concurrentKernels = 1;
  properties->asyncEngineCount = 3;
  properties->unifiedAddressing = 1;
  properties->textureAlignment = 512;
  return cudaSuccess;
}

PUBLIC cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  cudaDeviceProp properties;
  cudaGetDeviceProperties(&properties, device);
  const std::map<int, int> known = {
      {cudaDevAttrMaxThreadsPerBlock, properties.maxThreadsPerBlock},
      {cudaDevAttrMaxBlockDimX, properties.maxThreadsDim[0]},
      {cudaDevAttrMaxBlockDimY, properties.maxThreadsDim[1]},
      {cudaDevAttrMaxBlockDimZ, properties.maxThreadsDim[2]},
      {cudaDevAttrMaxGridDimX, properties.maxGridSize[0]},
      {cudaDevAttrMaxGridDimY, properties.maxGridSize[1]},
      {cudaDevAttrMaxGridDimZ, properties.maxGridSize[2]},
      {cudaDevAttrMaxSharedMemoryPerBlock, int(properties.sharedMemPerBlock)},
      {cudaDevAttrMaxSharedMemoryPerBlockOptin, int(properties.sharedMemPerBlockOptin)},
      {cudaDevAttrMaxSharedMemoryPerMultiprocessor, int(properties.sharedMemPerMultiprocessor)},
      {cudaDevAttrWarpSize, properties.warpSize},
      {cudaDevAttrMultiProcessorCount, properties.multiProcessorCount},
      {cudaDevAttrMaxThreadsPerMultiProcessor, properties.maxThreadsPerMultiProcessor},
      {cudaDevAttrMaxRegistersPerBlock, properties.regsPerBlock},
      {cudaDevAttrMaxRegistersPerMultiprocessor, properties.regsPerMultiprocessor},
      {cudaDevAttrL2CacheSize, properties.l2CacheSize},
      {cudaDevAttrComputeCapabilityMajor, properties.major},
      {cudaDevAttrComputeCapabilityMinor, properties.minor},
      {cudaDevAttrMemoryPoolsSupported, 1},
  };
  auto found = known.find(attribute);
  *value = found == known.end() ? 0 : found->second;
  return cudaSuccess;
}

PUBLIC cudaError_t cudaDeviceCanAccessPeer(int* can, int, int) {
  *can = 0;
  return cudaSuccess;
}

PUBLIC cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  *least = 0;
  *greatest = -5;
  return cudaSuccess;
}

PUBLIC cudaError_t cudaDeviceGetPCIBusId(char* text, int length, int device) {
  snprintf(text, length, "0000:%02x:00.0", device);
  return cudaSuccess;
}

PUBLIC cudaError_t cudaDeviceSynchronize() {
  Lock lock(mutex);
  counts.waits++;
  if (!active.empty()) {
    for (Capture* capture : active) capture->is_invalid = true;
    return static_cast<cudaError_t>(broken(cudaErrorStreamCaptureUnsupported, "cudaDeviceSynchronize during a capture"));
  }
  note("wait for the device");
  return cudaSuccess;
}

// ---- Errors

PUBLIC const char* cudaGetErrorString(cudaError_t error) {
  if (error == cudaSuccess) return "no error";
  if (error == cudaErrorMemoryAllocation) return "out of memory";
  if (error == cudaErrorNotReady) return "device not ready";
  return broken_rule.empty() ? "error of the pretend GPU" : broken_rule.c_str();
}

PUBLIC const char* cudaGetErrorName(cudaError_t) { return "cudaErrorOfThePretendGPU"; }

PUBLIC cudaError_t cudaGetLastError() {
  int error = last_error;
  last_error = 0;
  return static_cast<cudaError_t>(error);
}

PUBLIC cudaError_t cudaPeekAtLastError() { return static_cast<cudaError_t>(last_error); }
