// CUDA_LAUNCH(kernel, grid, block, arguments...): a launch on the default stream under nvcc, which is where Jittor
// runs; elsewhere the same kernel run on the host by the shim, so that tests reach kernels and launch code without a
// GPU.
#pragma once

#if defined(__CUDACC__)
#include <stdexcept>
#include <string>
#include <cuda_runtime.h>

inline void cuda_require(cudaError_t status, const char* what) {
    if (status != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

#define CUDA_LAUNCH(kernel, grid, block, ...)                  \
    do {                                                       \
        kernel<<<(grid), (block)>>>(__VA_ARGS__);              \
        cuda_require(cudaGetLastError(), "launch of " #kernel); \
    } while (0)
#else
#include "cuda_shim.h"
#define CUDA_LAUNCH(kernel, grid, block, ...) cuda_shim::launch((grid), (block), [&] { kernel(__VA_ARGS__); })
#endif
