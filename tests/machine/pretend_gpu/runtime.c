// A CUDA runtime, cuBLAS, cuDNN ... without a GPU, for tests: device memory is host memory, kernels are not run, library
// calls do nothing. With it Jittor imports with CUDA on and compiles its kernels; the numbers mean nothing.
// Every symbol of the real libraries that is not written here is added by the test as a function that returns 0.
#include <cublas_v2.h>
#include <cuda_runtime_api.h>
#include <cudnn.h>
#include <cufft.h>
#include <curand.h>
#include <cusparse.h>
#include <stdlib.h>
#include <string.h>

static void *zeroed(size_t bytes) {
    void *memory = NULL;
    if (posix_memalign(&memory, 512, bytes ? bytes : 1)) return NULL;
    return memset(memory, 0, bytes);
}
static cudaError_t give(void **pointer, size_t bytes) {
    *pointer = zeroed(bytes);
    return *pointer ? cudaSuccess : cudaErrorMemoryAllocation;
}

// The device
cudaError_t cudaGetDeviceCount(int *count) { *count = 1; return 0; }
cudaError_t cudaGetDevice(int *device) { *device = 0; return 0; }
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int device) {
    memset(p, 0, sizeof *p);
    strcpy(p->name, "pretend GPU");
    p->major = 9;
    p->totalGlobalMem = 80ull << 30;
    p->multiProcessorCount = 132;
    p->warpSize = 32;
    p->maxThreadsPerBlock = 1024;
    p->sharedMemPerBlock = 48 << 10;
    p->regsPerBlock = 65536;
    return 0;
}
cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device) {
    switch (attribute) {
        case cudaDevAttrComputeCapabilityMajor: *value = 9; break;
        case cudaDevAttrComputeCapabilityMinor: *value = 0; break;
        case cudaDevAttrMultiProcessorCount: *value = 132; break;
        case cudaDevAttrMaxThreadsPerBlock: *value = 1024; break;
        case cudaDevAttrMaxThreadsPerMultiProcessor: *value = 2048; break;
        case cudaDevAttrWarpSize: *value = 32; break;
        case cudaDevAttrMaxSharedMemoryPerBlock: *value = 48 << 10; break;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = 227 << 10; break;
        case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = 228 << 10; break;
        case cudaDevAttrMaxGridDimX: *value = 2147483647; break;
        default: *value = 1;
    }
    return 0;
}
cudaError_t cudaMemGetInfo(size_t *available, size_t *total) { *available = 70ull << 30; *total = 80ull << 30; return 0; }
cudaError_t cudaRuntimeGetVersion(int *version) { *version = CUDART_VERSION; return 0; }
cudaError_t cudaDriverGetVersion(int *version) { *version = CUDART_VERSION; return 0; }
const char *cudaGetErrorName(cudaError_t error) { return "pretend"; }
const char *cudaGetErrorString(cudaError_t error) { return "pretend"; }

// Memory
cudaError_t cudaMalloc(void **p, size_t n) { return give(p, n); }
cudaError_t cudaMallocAsync(void **p, size_t n, cudaStream_t s) { return give(p, n); }
cudaError_t cudaMallocHost(void **p, size_t n) { return give(p, n); }
cudaError_t cudaHostAlloc(void **p, size_t n, unsigned flags) { return give(p, n); }
cudaError_t cudaMallocManaged(void **p, size_t n, unsigned flags) { return give(p, n); }
cudaError_t cudaFree(void *p) { free(p); return 0; }
cudaError_t cudaFreeAsync(void *p, cudaStream_t s) { free(p); return 0; }
cudaError_t cudaFreeHost(void *p) { free(p); return 0; }
cudaError_t cudaMemcpy(void *to, const void *from, size_t n, enum cudaMemcpyKind kind) { memmove(to, from, n); return 0; }
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t n, enum cudaMemcpyKind kind, cudaStream_t s) {
    memmove(to, from, n);
    return 0;
}
cudaError_t cudaMemset(void *to, int value, size_t n) { memset(to, value, n); return 0; }
cudaError_t cudaMemsetAsync(void *to, int value, size_t n, cudaStream_t s) { memset(to, value, n); return 0; }
cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *a, const void *p) {
    memset(a, 0, sizeof *a);
    a->type = cudaMemoryTypeDevice;
    a->devicePointer = (void *)p;
    return 0;
}

// Streams, events, launches
cudaError_t cudaStreamCreate(cudaStream_t *s) { return give((void **)s, 64); }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned flags) { return give((void **)s, 64); }
cudaError_t cudaEventCreate(cudaEvent_t *e) { return give((void **)e, 64); }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned flags) { return give((void **)e, 64); }
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t a, cudaEvent_t b) { *ms = 1; return 0; }
cudaError_t cudaLaunchHostFunc(cudaStream_t s, cudaHostFn_t function, void *data) { function(data); return 0; }
cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *a, const void *f) {
    memset(a, 0, sizeof *a);
    a->ptxVersion = a->binaryVersion = 90;
    a->maxThreadsPerBlock = 1024;
    a->numRegs = 32;
    return 0;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *n, const void *f, int b, size_t s) { *n = 2; return 0; }
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *n, const void *f, int b, size_t s, unsigned fl) {
    *n = 2;
    return 0;
}
static struct { dim3 grid, block; size_t shared; cudaStream_t stream; } launch;
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, cudaStream_t stream) {
    launch.grid = grid;
    launch.block = block;
    launch.shared = shared;
    launch.stream = stream;
    return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *stream) {
    *grid = launch.grid;
    *block = launch.block;
    *shared = launch.shared;
    *(cudaStream_t *)stream = launch.stream;
    return 0;
}
void **__cudaRegisterFatBinary(void *binary) { return zeroed(64); }
cudaError_t __cudaGetKernel(cudaKernel_t *kernel, const void *f) { *kernel = (cudaKernel_t)f; return 0; }
char __cudaInitModule(void **handle) { return 1; }

// Libraries: handles, and the sizes and counts that callers rely on
cublasStatus_t cublasCreate_v2(cublasHandle_t *h) { *h = zeroed(64); return 0; }
cusparseStatus_t cusparseCreate(cusparseHandle_t *h) { *h = zeroed(64); return 0; }
curandStatus_t curandCreateGenerator(curandGenerator_t *g, curandRngType_t type) { *g = zeroed(64); return 0; }
cufftResult cufftCreate(cufftHandle *plan) { *plan = 1; return 0; }
cudnnStatus_t cudnnCreate(cudnnHandle_t *h) { *h = zeroed(64); return 0; }
size_t cudnnGetVersion(void) { return CUDNN_VERSION; }
const char *cudnnGetErrorString(cudnnStatus_t status) { return "pretend"; }
cudnnStatus_t cudnnGetConvolutionForwardWorkspaceSize(
    cudnnHandle_t h, const cudnnTensorDescriptor_t x, const cudnnFilterDescriptor_t w, const cudnnConvolutionDescriptor_t c,
    const cudnnTensorDescriptor_t y, cudnnConvolutionFwdAlgo_t algorithm, size_t *bytes) { *bytes = 1024; return 0; }
cudnnStatus_t cudnnGetConvolutionBackwardDataWorkspaceSize(
    cudnnHandle_t h, const cudnnFilterDescriptor_t w, const cudnnTensorDescriptor_t dy, const cudnnConvolutionDescriptor_t c,
    const cudnnTensorDescriptor_t dx, cudnnConvolutionBwdDataAlgo_t algorithm, size_t *bytes) { *bytes = 1024; return 0; }
cudnnStatus_t cudnnGetConvolutionBackwardFilterWorkspaceSize(
    cudnnHandle_t h, const cudnnTensorDescriptor_t x, const cudnnTensorDescriptor_t dy, const cudnnConvolutionDescriptor_t c,
    const cudnnFilterDescriptor_t dw, cudnnConvolutionBwdFilterAlgo_t algorithm, size_t *bytes) { *bytes = 1024; return 0; }
#define ONE_ALGORITHM { memset(found, 0, sizeof *found); *count = 1; return 0; }
cudnnStatus_t cudnnFindConvolutionForwardAlgorithmEx(
    cudnnHandle_t h, const cudnnTensorDescriptor_t xd, const void *x, const cudnnFilterDescriptor_t wd, const void *w,
    const cudnnConvolutionDescriptor_t c, const cudnnTensorDescriptor_t yd, void *y, const int wanted, int *count,
    cudnnConvolutionFwdAlgoPerf_t *found, void *workspace, size_t bytes) ONE_ALGORITHM
cudnnStatus_t cudnnFindConvolutionBackwardDataAlgorithmEx(
    cudnnHandle_t h, const cudnnFilterDescriptor_t wd, const void *w, const cudnnTensorDescriptor_t yd, const void *dy,
    const cudnnConvolutionDescriptor_t c, const cudnnTensorDescriptor_t xd, void *dx, const int wanted, int *count,
    cudnnConvolutionBwdDataAlgoPerf_t *found, void *workspace, size_t bytes) ONE_ALGORITHM
cudnnStatus_t cudnnFindConvolutionBackwardFilterAlgorithmEx(
    cudnnHandle_t h, const cudnnTensorDescriptor_t xd, const void *x, const cudnnTensorDescriptor_t yd, const void *dy,
    const cudnnConvolutionDescriptor_t c, const cudnnFilterDescriptor_t wd, void *dw, const int wanted, int *count,
    cudnnConvolutionBwdFilterAlgoPerf_t *found, void *workspace, size_t bytes) ONE_ALGORITHM
