// A CUDA runtime whose kernels do nothing. Preloaded, it stands before libcudart in a process of a CUDA build of torch.
//
// Real: the device's properties and size; allocations, which are host memory that costs nothing until it is written;
// copies between host and device; which calls a capture forbids, and to which threads; how many nodes a graph has.
// Not real: kernels, fills and copies within the device are counted and write nothing, so that tens of gigabytes can be
// allocated anywhere. There is no time: a call is over when it returns.
// What is not here is left to the real library, which has no device and fails.

#define _GNU_SOURCE
#include "null.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

// An H100 of 80 GB.
static const size_t TOTAL_BYTES = 85029158912;
enum { MULTIPROCESSORS = 132, SHARED_BYTES = 49152, SHARED_BYTES_OPTIN = 232448, SHARED_BYTES_SM = 233472 };
enum { REGISTERS = 65536, THREADS_PER_SM = 2048, THREADS_PER_BLOCK = 1024, WARP = 32, GRID_X = 2147483647, GRID_YZ = 65535 };

// Counters

#define COUNTER_NAME(name) #name,
// Read by name from outside; the last name is 0.
const char *const null_names[] = {COUNTERS(COUNTER_NAME) 0};
atomic_long null_values[COUNTER_TOTAL];

void null_count(enum counter which, long by) { atomic_fetch_add(&null_values[which], by); }

// Errors: the last one of a thread is kept until it is asked for.

static _Thread_local cudaError_t last_error = cudaSuccess;

static cudaError_t failed(cudaError_t error) {
  last_error = error;
  return error;
}

cudaError_t cudaGetLastError(void) {
  cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}

cudaError_t cudaPeekAtLastError(void) { return last_error; }

static const struct {
  cudaError_t error;
  const char *name, *text;
} ERRORS[] = {
    {cudaSuccess, "cudaSuccess", "no error"},
    {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
    {cudaErrorInvalidConfiguration, "cudaErrorInvalidConfiguration", "invalid configuration argument"},
    {cudaErrorStreamCaptureUnsupported, "cudaErrorStreamCaptureUnsupported",
     "operation not permitted when stream is capturing"},
    {cudaErrorStreamCaptureInvalidated, "cudaErrorStreamCaptureInvalidated",
     "operation failed due to a previous error during capture"},
    {cudaErrorStreamCaptureIsolation, "cudaErrorStreamCaptureIsolation",
     "dependency created on uncaptured work in another stream"},
    {cudaErrorStreamCaptureUnmatched, "cudaErrorStreamCaptureUnmatched", "capture was not begun in this stream"},
};
enum { ERRORS_KNOWN = sizeof ERRORS / sizeof *ERRORS };

const char *cudaGetErrorString(cudaError_t error) {
  for (int i = 0; i < ERRORS_KNOWN; i++)
    if (ERRORS[i].error == error) return ERRORS[i].text;
  return "unknown error of the null device";
}

const char *cudaGetErrorName(cudaError_t error) {
  for (int i = 0; i < ERRORS_KNOWN; i++)
    if (ERRORS[i].error == error) return ERRORS[i].name;
  return "cudaErrorUnknown";
}

// Captures. All that follows is under one lock.
//
// A stream belongs to the capture that was begun on it, or to one whose event it waited for. While a capture is open,
// calls that might wait for the device are forbidden: to the thread that began it, and, where it was begun in the global
// mode, to every other thread too; a thread may exempt itself (cudaThreadExchangeStreamCaptureMode).

struct capture {
  unsigned long long id;
  pthread_t thread;
  enum cudaStreamCaptureMode mode;
  cudaError_t broken;
  long nodes;
  struct capture *next;
};

// Of streams and events: the id of the capture that they belong to, or 0.
struct CUstream_st {
  unsigned long long capture;
};
struct CUevent_st {
  unsigned long long capture;
};
struct CUgraph_st {
  long nodes;
};
struct CUgraphExec_st {
  long nodes;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct capture *open_captures = 0;
static unsigned long long captures_begun = 0;
static struct CUstream_st default_stream;
static _Thread_local enum cudaStreamCaptureMode thread_mode = cudaStreamCaptureModeGlobal;

static cudaStream_t known(cudaStream_t stream) {
  int is_default = stream == 0 || stream == cudaStreamLegacy || stream == cudaStreamPerThread;
  return is_default ? &default_stream : stream;
}

static struct capture *capture_by(unsigned long long id) {
  for (struct capture *c = open_captures; c; c = c->next)
    if (c->id == id) return c;
  return 0;
}

static struct capture *capture_of(cudaStream_t stream) { return capture_by(known(stream)->capture); }

static cudaError_t refused(struct capture *by, const char *call) {
  fprintf(stderr, "null device: %s during a capture, from %s thread\n", call,
          pthread_equal(by->thread, pthread_self()) ? "the capturing" : "another");
  by->broken = cudaErrorStreamCaptureInvalidated;
  null_count(COUNT_refusals, 1);
  return failed(cudaErrorStreamCaptureUnsupported);
}

// The open capture that forbids this thread to call what might wait, if there is one.
static struct capture *forbidding(void) {
  if (thread_mode == cudaStreamCaptureModeRelaxed) return 0;
  for (struct capture *c = open_captures; c; c = c->next) {
    int own = pthread_equal(c->thread, pthread_self()) && c->mode != cudaStreamCaptureModeRelaxed;
    if (own || (thread_mode == cudaStreamCaptureModeGlobal && c->mode == cudaStreamCaptureModeGlobal)) return c;
  }
  return 0;
}

static cudaError_t may_wait(const char *call) {
  pthread_mutex_lock(&lock);
  struct capture *by = forbidding();
  cudaError_t error = by ? refused(by, call) : cudaSuccess;
  pthread_mutex_unlock(&lock);
  return error;
}

// As above, for what waits for one stream: never for one that is captured, whatever the modes.
static cudaError_t may_wait_for(unsigned long long id, const char *call) {
  pthread_mutex_lock(&lock);
  struct capture *by = capture_by(id);
  if (!by) by = forbidding();
  cudaError_t error = by ? refused(by, call) : cudaSuccess;
  pthread_mutex_unlock(&lock);
  return error;
}

cudaError_t null_put(cudaStream_t stream, enum counter run, enum counter recorded) {
  pthread_mutex_lock(&lock);
  struct capture *into = capture_of(stream);
  cudaError_t error = into ? into->broken : cudaSuccess;
  if (into) into->nodes++;
  pthread_mutex_unlock(&lock);
  if (error != cudaSuccess) return failed(error);
  null_count(into ? recorded : run, 1);
  return cudaSuccess;
}

cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *mode) {
  enum cudaStreamCaptureMode before = thread_mode;
  thread_mode = *mode;
  *mode = before;
  return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode) {
  struct capture *begun = calloc(1, sizeof *begun);
  begun->thread = pthread_self();
  begun->mode = mode;
  pthread_mutex_lock(&lock);
  begun->id = ++captures_begun;
  begun->next = open_captures;
  open_captures = begun;
  known(stream)->capture = begun->id;
  pthread_mutex_unlock(&lock);
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
  pthread_mutex_lock(&lock);
  struct capture *ended = capture_of(stream);
  if (ended) {
    struct capture **at = &open_captures;
    while (*at != ended) at = &(*at)->next;
    *at = ended->next;
  }
  pthread_mutex_unlock(&lock);
  *graph = 0;
  if (!ended) return failed(cudaErrorStreamCaptureUnmatched);
  cudaError_t error = ended->broken;
  if (error == cudaSuccess) {
    *graph = calloc(1, sizeof **graph);
    (*graph)->nodes = ended->nodes;
    null_count(COUNT_recordings, 1);
  }
  free(ended);
  return error == cudaSuccess ? error : failed(error);
}

cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, enum cudaStreamCaptureStatus *status, unsigned long long *id,
                                     cudaGraph_t *graph, const cudaGraphNode_t **dependencies,
                                     const cudaGraphEdgeData **edges, size_t *number) {
  pthread_mutex_lock(&lock);
  struct capture *in = capture_of(stream);
  *status = !in          ? cudaStreamCaptureStatusNone
            : in->broken ? cudaStreamCaptureStatusInvalidated
                         : cudaStreamCaptureStatusActive;
  if (id) *id = in ? in->id : 0;
  pthread_mutex_unlock(&lock);
  if (graph) *graph = 0;
  if (dependencies) *dependencies = 0;
  if (edges) *edges = 0;
  if (number) *number = 0;
  return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status) {
  return cudaStreamGetCaptureInfo(stream, status, 0, 0, 0, 0, 0);
}

// Graphs

cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t *nodes, size_t *number) {
  if (!nodes) *number = (size_t)graph->nodes;
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *made, cudaGraph_t graph, unsigned long long flags) {
  *made = calloc(1, sizeof **made);
  (*made)->nodes = graph->nodes;
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *made, cudaGraph_t graph, unsigned long long flags) {
  return cudaGraphInstantiateWithFlags(made, graph, flags);
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream) {
  null_count(COUNT_replays, 1);
  null_count(COUNT_replayed_nodes, graph->nodes);
  return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  free(graph);
  return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) {
  free(graph);
  return cudaSuccess;
}

// Streams and events

cudaError_t cudaStreamCreate(cudaStream_t *stream) {
  *stream = calloc(1, sizeof **stream);
  return cudaSuccess;
}

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int priority) {
  return cudaStreamCreate(stream);
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags) { return cudaStreamCreate(stream); }

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  free(stream);
  return cudaSuccess;
}

cudaError_t cudaStreamGetPriority(cudaStream_t stream, int *priority) {
  *priority = 0;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
  *least = 0;
  *greatest = -5;
  return cudaSuccess;
}

cudaError_t cudaStreamQuery(cudaStream_t stream) { return may_wait_for(known(stream)->capture, "cudaStreamQuery"); }

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  null_count(COUNT_stream_synchronisations, 1);
  return may_wait_for(known(stream)->capture, "cudaStreamSynchronize");
}

// A stream joins the capture of an event that it waits for. A captured stream cannot wait for what is not captured.
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags) {
  cudaError_t error = cudaSuccess;
  pthread_mutex_lock(&lock);
  struct capture *of_event = capture_by(event->capture), *of_stream = capture_of(stream);
  if (of_event)
    known(stream)->capture = of_event->id;
  else if (of_stream) {
    of_stream->broken = cudaErrorStreamCaptureInvalidated;
    error = cudaErrorStreamCaptureIsolation;
  }
  pthread_mutex_unlock(&lock);
  return error == cudaSuccess ? error : failed(error);
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags) {
  *event = calloc(1, sizeof **event);
  return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t *event) { return cudaEventCreateWithFlags(event, 0); }

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  free(event);
  return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  event->capture = known(stream)->capture;
  return cudaSuccess;
}

cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned flags) {
  return cudaEventRecord(event, stream);
}

cudaError_t cudaEventQuery(cudaEvent_t event) { return may_wait_for(event->capture, "cudaEventQuery"); }

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  null_count(COUNT_event_synchronisations, 1);
  return may_wait_for(event->capture, "cudaEventSynchronize");
}

// Always the same, and long enough that what times kernels to choose among them repeats each but a few times.
cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t start, cudaEvent_t end) {
  *milliseconds = 1.0f;
  return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize(void) {
  null_count(COUNT_device_synchronisations, 1);
  return may_wait("cudaDeviceSynchronize");
}

// Memory. Regions are few (torch's allocators take large ones), so they are looked up one by one.

enum place { PAGEABLE, PAGE_LOCKED, DEVICE };

struct region {
  char *at;
  size_t bytes;
  enum place place;
};

static pthread_mutex_t memory_lock = PTHREAD_MUTEX_INITIALIZER;
static struct region *regions = 0;
static size_t regions_taken = 0, regions_room = 0, device_bytes = 0;

static cudaError_t take(void **found, size_t bytes, enum place place) {
  const size_t page = 4096;
  bytes = bytes ? (bytes + page - 1) / page * page : page;
  *found = 0;
  pthread_mutex_lock(&memory_lock);
  void *at = MAP_FAILED;
  if (place != DEVICE || device_bytes + bytes <= TOTAL_BYTES)
    at = mmap(0, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (at != MAP_FAILED) {
    if (regions_taken == regions_room) {
      regions_room = regions_room ? 2 * regions_room : 64;
      regions = realloc(regions, regions_room * sizeof *regions);
    }
    regions[regions_taken++] = (struct region){at, bytes, place};
    if (place == DEVICE) device_bytes += bytes;
    *found = at;
  }
  pthread_mutex_unlock(&memory_lock);
  if (!*found) return failed(cudaErrorMemoryAllocation);
  null_count(place == DEVICE ? COUNT_allocations : COUNT_page_locked_allocations, 1);
  if (place == DEVICE) null_count(COUNT_allocated_bytes, (long)bytes);
  return cudaSuccess;
}

static void give_back(void *at) {
  pthread_mutex_lock(&memory_lock);
  for (size_t i = 0; i < regions_taken; i++)
    if (regions[i].at == at) {
      struct region gone = regions[i];
      regions[i] = regions[--regions_taken];
      munmap(gone.at, gone.bytes);
      if (gone.place == DEVICE) {
        device_bytes -= gone.bytes;
        null_count(COUNT_allocated_bytes, -(long)gone.bytes);
      }
      break;
    }
  pthread_mutex_unlock(&memory_lock);
}

static enum place place_of(const void *pointer) {
  enum place found = PAGEABLE;
  pthread_mutex_lock(&memory_lock);
  for (size_t i = 0; i < regions_taken; i++) {
    struct region r = regions[i];
    if ((const char *)pointer >= r.at && (const char *)pointer < r.at + r.bytes) found = r.place;
  }
  pthread_mutex_unlock(&memory_lock);
  return found;
}

int null_reachable(const void *pointer) { return place_of(pointer) != PAGEABLE; }

cudaError_t cudaMalloc(void **pointer, size_t bytes) {
  cudaError_t error = may_wait("cudaMalloc");
  return error ? error : take(pointer, bytes, DEVICE);
}

cudaError_t cudaFree(void *pointer) {
  cudaError_t error = pointer ? may_wait("cudaFree") : cudaSuccess;
  if (!error) give_back(pointer);
  return error;
}

cudaError_t cudaHostAlloc(void **pointer, size_t bytes, unsigned flags) {
  cudaError_t error = may_wait("cudaHostAlloc");
  return error ? error : take(pointer, bytes, PAGE_LOCKED);
}

cudaError_t cudaFreeHost(void *pointer) {
  cudaError_t error = may_wait("cudaFreeHost");
  if (!error) give_back(pointer);
  return error;
}

cudaError_t cudaMemGetInfo(size_t *unused, size_t *total) {
  pthread_mutex_lock(&memory_lock);
  *unused = TOTAL_BYTES - device_bytes;
  *total = TOTAL_BYTES;
  pthread_mutex_unlock(&memory_lock);
  return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *found, const void *pointer) {
  static const enum cudaMemoryType types[] = {cudaMemoryTypeUnregistered, cudaMemoryTypeHost, cudaMemoryTypeDevice};
  memset(found, 0, sizeof *found);
  found->type = types[place_of(pointer)];
  found->devicePointer = found->hostPointer = (void *)pointer;
  return cudaSuccess;
}

// Copies

static cudaError_t copy(void *to, const void *from, size_t bytes, cudaStream_t stream) {
  enum place target = place_of(to), source = place_of(from);
  int pageable = target == PAGEABLE || source == PAGEABLE;
  pthread_mutex_lock(&lock);
  struct capture *in = capture_of(stream);
  cudaError_t error = in && pageable ? refused(in, "a copy of pageable memory") : cudaSuccess;
  pthread_mutex_unlock(&lock);
  if (error) return error;
  enum counter kind = target != DEVICE   ? COUNT_copies_to_host
                      : source != DEVICE ? COUNT_copies_to_device
                                         : COUNT_copies_on_device;
  error = null_put(stream, kind, COUNT_recorded_copies);
  if (error || in) return error;
  // Of each kind, the bytes are counted next.
  null_count(kind + 1, (long)bytes);
  if (pageable) null_count(target == DEVICE ? COUNT_pageable_copies_to_device : COUNT_pageable_copies_to_host, 1);
  if (kind != COUNT_copies_on_device) memcpy(to, from, bytes);
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind, cudaStream_t stream) {
  return copy(to, from, bytes, stream);
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind) {
  cudaError_t error = may_wait("cudaMemcpy");
  null_count(COUNT_stream_synchronisations, 1);
  return error ? error : copy(to, from, bytes, 0);
}

cudaError_t cudaMemsetAsync(void *pointer, int value, size_t bytes, cudaStream_t stream) {
  return null_put(stream, COUNT_fills, COUNT_recorded_fills);
}

cudaError_t cudaMemset(void *pointer, int value, size_t bytes) { return cudaMemsetAsync(pointer, value, bytes, 0); }

// Kernels: their grid must be one that a device takes.

static cudaError_t launch(dim3 grid, dim3 block, cudaStream_t stream) {
  int fits = grid.x && grid.y && grid.z && grid.x <= GRID_X && grid.y <= GRID_YZ && grid.z <= GRID_YZ &&
             block.x * block.y * block.z - 1 < THREADS_PER_BLOCK;
  if (!fits) return failed(cudaErrorInvalidConfiguration);
  return null_put(stream, COUNT_launches, COUNT_recorded_launches);
}

cudaError_t cudaLaunchKernel(const void *kernel, dim3 grid, dim3 block, void **arguments, size_t shared,
                             cudaStream_t stream) {
  return launch(grid, block, stream);
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *config, const void *kernel, void **arguments) {
  return launch(config->gridDim, config->blockDim, config->stream);
}

cudaError_t cudaLaunchCooperativeKernel(const void *kernel, dim3 grid, dim3 block, void **arguments, size_t shared,
                                        cudaStream_t stream) {
  return launch(grid, block, stream);
}

// By these nvcc's own stubs launch.
cudaError_t __cudaGetKernel(cudaKernel_t *kernel, const void *stub) {
  *kernel = (cudaKernel_t)stub;
  return cudaSuccess;
}

cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void **arguments, size_t shared,
                               cudaStream_t stream) {
  return launch(grid, block, stream);
}

cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *found, const void *kernel) {
  memset(found, 0, sizeof *found);
  found->maxThreadsPerBlock = THREADS_PER_BLOCK;
  found->numRegs = 32;
  found->ptxVersion = found->binaryVersion = 90;
  found->maxDynamicSharedSizeBytes = SHARED_BYTES;
  return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void *kernel, enum cudaFuncAttribute which, int value) { return cudaSuccess; }

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, const void *kernel, int threads,
                                                                   size_t shared, unsigned flags) {
  *blocks = 4;
  return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, const void *kernel, int threads, size_t shared) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(blocks, kernel, threads, shared, 0);
}

// The device

cudaError_t cudaGetDeviceCount(int *count) {
  *count = 1;
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int *device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) { return cudaSuccess; }

cudaError_t cudaDriverGetVersion(int *version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int *version) { return cudaDriverGetVersion(version); }

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *found, int device) {
  memset(found, 0, sizeof *found);
  strcpy(found->name, "NVIDIA H100 80GB HBM3");
  memset(&found->uuid, 7, sizeof found->uuid);
  found->totalGlobalMem = TOTAL_BYTES;
  found->major = 9;
  found->multiProcessorCount = MULTIPROCESSORS;
  found->warpSize = WARP;
  found->maxThreadsPerBlock = THREADS_PER_BLOCK;
  found->maxThreadsPerMultiProcessor = THREADS_PER_SM;
  found->maxBlocksPerMultiProcessor = 32;
  found->maxThreadsDim[0] = found->maxThreadsDim[1] = 1024;
  found->maxThreadsDim[2] = 64;
  found->maxGridSize[0] = GRID_X;
  found->maxGridSize[1] = found->maxGridSize[2] = GRID_YZ;
  found->regsPerBlock = found->regsPerMultiprocessor = REGISTERS;
  found->sharedMemPerBlock = SHARED_BYTES;
  found->sharedMemPerBlockOptin = SHARED_BYTES_OPTIN;
  found->sharedMemPerMultiprocessor = SHARED_BYTES_SM;
  found->reservedSharedMemPerBlock = 1024;
  found->totalConstMem = 65536;
  found->memPitch = GRID_X;
  found->textureAlignment = 512;
  found->memoryBusWidth = 5120;
  found->l2CacheSize = 52428800;
  found->asyncEngineCount = 3;
  found->concurrentKernels = found->unifiedAddressing = found->cooperativeLaunch = found->managedMemory = 1;
  found->streamPrioritiesSupported = found->memoryPoolsSupported = 1;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr which, int device) {
  switch (which) {
    case cudaDevAttrComputeCapabilityMajor: *value = 9; break;
    case cudaDevAttrComputeCapabilityMinor: *value = 0; break;
    case cudaDevAttrMultiProcessorCount: *value = MULTIPROCESSORS; break;
    case cudaDevAttrWarpSize: *value = WARP; break;
    case cudaDevAttrMaxThreadsPerBlock: *value = THREADS_PER_BLOCK; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *value = THREADS_PER_SM; break;
    case cudaDevAttrMaxGridDimX: *value = GRID_X; break;
    case cudaDevAttrMaxGridDimY:
    case cudaDevAttrMaxGridDimZ: *value = GRID_YZ; break;
    case cudaDevAttrMaxRegistersPerBlock:
    case cudaDevAttrMaxRegistersPerMultiprocessor: *value = REGISTERS; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = SHARED_BYTES; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = SHARED_BYTES_OPTIN; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = SHARED_BYTES_SM; break;
    case cudaDevAttrClockRate: *value = 1980000; break;
    case cudaDevAttrMemoryClockRate: *value = 2619000; break;
    case cudaDevAttrGlobalMemoryBusWidth: *value = 5120; break;
    default: *value = 1;
  }
  return cudaSuccess;
}

cudaError_t cudaDeviceCanAccessPeer(int *can, int device, int peer) {
  *can = 0;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetPCIBusId(char *name, int room, int device) {
  snprintf(name, (size_t)room, "0000:00:05.0");
  return cudaSuccess;
}

cudaError_t cudaGetSymbolAddress(void **pointer, const void *symbol) {
  *pointer = (void *)symbol;
  return cudaSuccess;
}

cudaError_t cudaProfilerStart(void) { return cudaSuccess; }
cudaError_t cudaProfilerStop(void) { return cudaSuccess; }

static int nothing(void) { return 0; }

// Of the driver's functions, those of driver.c; others succeed without effect.
cudaError_t cudaGetDriverEntryPointByVersion(const char *name, void **function, unsigned version,
                                             unsigned long long flags, enum cudaDriverEntryPointQueryResult *status) {
  *function = dlsym(RTLD_DEFAULT, name);
  if (!*function) *function = (void *)nothing;
  if (status) *status = cudaDriverEntryPointSuccess;
  return cudaSuccess;
}

cudaError_t cudaGetDriverEntryPoint(const char *name, void **function, unsigned long long flags,
                                    enum cudaDriverEntryPointQueryResult *status) {
  return cudaGetDriverEntryPointByVersion(name, function, 0, flags, status);
}
