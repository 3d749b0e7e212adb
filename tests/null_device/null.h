// What the parts of the null device share: its counters, and where an operation on a stream ends up.
#pragma once

#include <cuda_runtime_api.h>

// Counters by name, in the order in which they are told. Bytes where the name says so, else calls.
#define COUNTERS(X)                                                                                                    \
  X(launches)                  /* kernels that the host launched */                                                    \
  X(fills)                     /* memory set by the host */                                                            \
  X(recorded_launches)         /* kernels that became nodes of a graph */                                              \
  X(recorded_fills)                                                                                                    \
  X(recorded_copies)                                                                                                   \
  X(recordings)                /* captures that ended in a graph */                                                    \
  X(replays)                   /* launches of a graph */                                                               \
  X(replayed_nodes)                                                                                                    \
  X(copies_to_device)          /* from the host */                                                                     \
  X(copied_to_device_bytes)                                                                                            \
  X(copies_to_host)            /* from the device */                                                                   \
  X(copied_to_host_bytes)                                                                                              \
  X(copies_on_device)                                                                                                  \
  X(copied_on_device_bytes)                                                                                            \
  X(pageable_copies_to_device) /* of those above, the ones without page-locked memory */                               \
  X(pageable_copies_to_host)   /* these block, whatever was asked for */                                               \
  X(stream_synchronisations)                                                                                           \
  X(event_synchronisations)                                                                                            \
  X(device_synchronisations)                                                                                           \
  X(allocations)               /* of device memory */                                                                  \
  X(page_locked_allocations)                                                                                           \
  X(allocated_bytes)           /* of device memory, now */                                                             \
  X(refusals)                  /* calls that a capture in progress forbade */

#define COUNTER_NUMBER(name) COUNT_##name,
enum counter { COUNTERS(COUNTER_NUMBER) COUNTER_TOTAL };
#undef COUNTER_NUMBER

void null_count(enum counter which, long by);

// Puts an operation on a stream. Counted as `run`, or as `recorded` and a node where the stream is being captured.
cudaError_t null_put(cudaStream_t stream, enum counter run, enum counter recorded);

// Whether a kernel on a device could read there: it is the device's memory, or page-locked.
int null_reachable(const void *pointer);
