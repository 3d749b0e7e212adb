// cuBLAS and cuBLASLt whose products do nothing: each is a launch on its handle's stream.
//
// Declared here without the library's headers, and without the arguments that nobody looks at: the caller passes them
// in registers and on the stack, where they are left alone.

#include "null.h"

#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, EXECUTION_FAILED = 13 };

struct handle {
  cudaStream_t stream;
};

static int product(cudaStream_t stream) {
  return null_put(stream, COUNT_launches, COUNT_recorded_launches) == cudaSuccess ? SUCCESS : EXECUTION_FAILED;
}

int cublasCreate_v2(struct handle **handle) {
  *handle = calloc(1, sizeof **handle);
  return SUCCESS;
}

int cublasDestroy_v2(struct handle *handle) {
  free(handle);
  return SUCCESS;
}

int cublasSetStream_v2(struct handle *handle, cudaStream_t stream) {
  handle->stream = stream;
  return SUCCESS;
}

int cublasGetStream_v2(struct handle *handle, cudaStream_t *stream) {
  *stream = handle->stream;
  return SUCCESS;
}

int cublasGetMathMode(struct handle *handle, int *mode) {
  *mode = 0;
  return SUCCESS;
}

int cublasGetPointerMode_v2(struct handle *handle, int *mode) {
  *mode = 0;
  return SUCCESS;
}

#define PRODUCT(name)                                                                                                  \
  int name(struct handle *handle) { return product(handle->stream); }
PRODUCT(cublasSgemm_v2)
PRODUCT(cublasDgemm_v2)
PRODUCT(cublasSgemv_v2)
PRODUCT(cublasDgemv_v2)
PRODUCT(cublasSdot_v2)
PRODUCT(cublasDdot_v2)
PRODUCT(cublasDotEx)
PRODUCT(cublasGemmEx)
PRODUCT(cublasSgemmEx)
PRODUCT(cublasGemmStridedBatchedEx)
PRODUCT(cublasSgemmStridedBatched)
PRODUCT(cublasDgemmStridedBatched)

int cublasLtMatmul(void *handle, void *description, void *alpha, void *a, void *a_layout, void *b, void *b_layout,
                   void *beta, void *c, void *c_layout, void *d, void *d_layout, void *algorithm, void *workspace,
                   size_t workspace_bytes, cudaStream_t stream) {
  return product(stream);
}

size_t cublasLtGetVersion(void) { return 130100; }

// One answer, an algorithm of zeros: a cublasLtMatmulHeuristicResult_t is 96 bytes.
int cublasLtMatmulAlgoGetHeuristic(void *handle, void *description, void *a, void *b, void *c, void *d,
                                   void *preference, int wanted, void *results, int *found) {
  memset(results, 0, 96);
  *found = 1;
  return SUCCESS;
}

// Descriptions are opaque to their users, who read none of them here.
static int described(void **made) {
  *made = malloc(64);
  return SUCCESS;
}

static int dropped(void *made) {
  free(made);
  return SUCCESS;
}

int cublasLtMatmulDescCreate(void **made) { return described(made); }
int cublasLtMatrixLayoutCreate(void **made) { return described(made); }
int cublasLtMatmulPreferenceCreate(void **made) { return described(made); }
int cublasLtMatmulDescDestroy(void *made) { return dropped(made); }
int cublasLtMatrixLayoutDestroy(void *made) { return dropped(made); }
int cublasLtMatmulPreferenceDestroy(void *made) { return dropped(made); }

#define SETTING(name)                                                                                                  \
  int name(void) { return SUCCESS; }
SETTING(cublasSetMathMode)
SETTING(cublasSetPointerMode_v2)
SETTING(cublasSetWorkspace_v2)
SETTING(cublasLtMatmulDescSetAttribute)
SETTING(cublasLtMatrixLayoutSetAttribute)
SETTING(cublasLtMatmulPreferenceSetAttribute)
