// The part of the CUDA driver that Triton and torch's own compiler call: kernels can be loaded, and launched as nothing.
//
// This and the runtime are one library, under the driver's name: who opens libcuda.so.1 finds what is preloaded.

#define _GNU_SOURCE
#include "null.h"

#include <cuda.h>
#include <dlfcn.h>
#include <string.h>

// Handles that are only ever passed back.
static char context, module, function;

static CUresult launched(unsigned x, unsigned y, unsigned z, unsigned threads, CUstream stream) {
  int fits = x && y && z && y <= 65535 && z <= 65535 && threads - 1 < 1024;
  if (!fits) return CUDA_ERROR_INVALID_VALUE;
  cudaError_t error = null_put(stream, COUNT_launches, COUNT_recorded_launches);
  return error == cudaSuccess ? CUDA_SUCCESS : CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
}

CUresult cuLaunchKernel(CUfunction f, unsigned x, unsigned y, unsigned z, unsigned threads_x, unsigned threads_y,
                        unsigned threads_z, unsigned shared, CUstream stream, void **arguments, void **extra) {
  return launched(x, y, z, threads_x * threads_y * threads_z, stream);
}

CUresult cuLaunchCooperativeKernel(CUfunction f, unsigned x, unsigned y, unsigned z, unsigned threads_x,
                                   unsigned threads_y, unsigned threads_z, unsigned shared, CUstream stream,
                                   void **arguments) {
  return launched(x, y, z, threads_x * threads_y * threads_z, stream);
}

CUresult cuLaunchKernelEx(const CUlaunchConfig *c, CUfunction f, void **arguments, void **extra) {
  return launched(c->gridDimX, c->gridDimY, c->gridDimZ, c->blockDimX * c->blockDimY * c->blockDimZ, c->hStream);
}

CUresult cuModuleLoad(CUmodule *found, const char *file) {
  *found = (CUmodule)&module;
  return CUDA_SUCCESS;
}

CUresult cuModuleLoadData(CUmodule *found, const void *image) { return cuModuleLoad(found, 0); }

CUresult cuModuleLoadDataEx(CUmodule *found, const void *image, unsigned number, CUjit_option *options, void **values) {
  return cuModuleLoad(found, 0);
}

CUresult cuModuleUnload(CUmodule which) { return CUDA_SUCCESS; }

CUresult cuModuleGetFunction(CUfunction *found, CUmodule in, const char *name) {
  *found = (CUfunction)&function;
  return CUDA_SUCCESS;
}

// Registers are a guess; nothing is spilled, and no shared memory is fixed.
CUresult cuFuncGetAttribute(int *value, CUfunction_attribute which, CUfunction of) {
  *value = which == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : which == CU_FUNC_ATTRIBUTE_NUM_REGS ? 64 : 0;
  return CUDA_SUCCESS;
}

CUresult cuFuncSetAttribute(CUfunction of, CUfunction_attribute which, int value) { return CUDA_SUCCESS; }
CUresult cuFuncSetCacheConfig(CUfunction of, CUfunc_cache which) { return CUDA_SUCCESS; }

CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, CUfunction of, int threads, size_t shared) {
  *blocks = 4;
  return CUDA_SUCCESS;
}

CUresult cuOccupancyMaxActiveClusters(int *clusters, CUfunction of, const CUlaunchConfig *config) {
  *clusters = 4;
  return CUDA_SUCCESS;
}

CUresult cuInit(unsigned flags) { return CUDA_SUCCESS; }

CUresult cuDriverGetVersion(int *version) {
  *version = CUDA_VERSION;
  return CUDA_SUCCESS;
}

CUresult cuDeviceGet(CUdevice *device, int number) {
  *device = number;
  return CUDA_SUCCESS;
}

CUresult cuDeviceGetCount(int *count) {
  *count = 1;
  return CUDA_SUCCESS;
}

// The runtime's attributes have the driver's numbers.
CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute which, CUdevice device) {
  cudaDeviceGetAttribute(value, (enum cudaDeviceAttr)which, device);
  return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRetain(CUcontext *found, CUdevice device) { return cuCtxGetCurrent(found); }
CUresult cuDevicePrimaryCtxRelease(CUdevice device) { return CUDA_SUCCESS; }

CUresult cuDevicePrimaryCtxGetState(CUdevice device, unsigned *flags, int *active) {
  *flags = 0;
  *active = 1;
  return CUDA_SUCCESS;
}

CUresult cuCtxGetCurrent(CUcontext *found) {
  *found = (CUcontext)&context;
  return CUDA_SUCCESS;
}

CUresult cuCtxSetCurrent(CUcontext which) { return CUDA_SUCCESS; }
CUresult cuStreamGetCtx(CUstream stream, CUcontext *found) { return cuCtxGetCurrent(found); }
CUresult cuCtxGetDevice(CUdevice *device) { return cuDeviceGet(device, 0); }

CUresult cuCtxGetLimit(size_t *value, CUlimit which) {
  *value = 1 << 20;
  return CUDA_SUCCESS;
}

CUresult cuCtxSetLimit(CUlimit which, size_t value) { return CUDA_SUCCESS; }

// Triton asks this of every pointer that it passes on, and refuses a kernel one that is not the device's.
static CUresult pointer_attribute(CUpointer_attribute which, void *value, CUdeviceptr pointer) {
  if (!null_reachable((const void *)pointer)) return CUDA_ERROR_INVALID_VALUE;
  switch (which) {
    case CU_POINTER_ATTRIBUTE_MEMORY_TYPE: *(unsigned *)value = CU_MEMORYTYPE_DEVICE; break;
    case CU_POINTER_ATTRIBUTE_DEVICE_POINTER: *(CUdeviceptr *)value = pointer; break;
    default: *(int *)value = 0;
  }
  return CUDA_SUCCESS;
}

CUresult cuPointerGetAttribute(void *value, CUpointer_attribute which, CUdeviceptr pointer) {
  return pointer_attribute(which, value, pointer);
}

CUresult cuPointerGetAttributes(unsigned number, CUpointer_attribute *which, void **values, CUdeviceptr pointer) {
  CUresult error = CUDA_SUCCESS;
  for (unsigned i = 0; i < number && error == CUDA_SUCCESS; i++) error = pointer_attribute(which[i], values[i], pointer);
  return error;
}

CUresult cuGetErrorString(CUresult error, const char **text) {
  *text = error == CUDA_SUCCESS ? "no error" : "an error of the null device";
  return CUDA_SUCCESS;
}

CUresult cuGetErrorName(CUresult error, const char **text) { return cuGetErrorString(error, text); }

CUresult cuGetProcAddress(const char *name, void **found, int version, cuuint64_t flags,
                          CUdriverProcAddressQueryResult *status) {
  *found = dlsym(RTLD_DEFAULT, name);
  if (status) *status = *found ? CU_GET_PROC_ADDRESS_SUCCESS : CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
  return *found ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}
