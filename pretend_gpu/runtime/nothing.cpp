// Calls of the CUDA runtime and driver that succeed without an effect on the books of runtime.cpp, whatever they are given.

#define NOTHING(name) \
  extern "C" __attribute__((visibility("default"))) int name() { return 0; }

NOTHING(__cudaInitModule)
NOTHING(cuCtxGetLimit)
NOTHING(cuCtxSetCurrent)
NOTHING(cuCtxSetLimit)
NOTHING(cuFuncSetAttribute)
NOTHING(cuFuncSetCacheConfig)
NOTHING(cuModuleUnload)
NOTHING(cudaFuncSetAttribute)
NOTHING(cudaGraphRetainUserObject)
NOTHING(cudaKernelSetAttributeForDevice)
NOTHING(cudaProfilerStart)
NOTHING(cudaProfilerStop)
NOTHING(cudaStreamUpdateCaptureDependencies)
NOTHING(cudaUserObjectCreate)
NOTHING(cudaUserObjectRelease)
