// Runs CUDA kernels as plain C++ on the host, for tests: the blocks of a grid one after the other, the threads of a
// block as fibers that give way at __syncthreads(), __shared__ as static storage. It finds wrong indices, wrong
// arithmetic and missing barriers between phases that read what others wrote; it cannot find races between blocks,
// limits of a real device, or memory that only a GPU orders differently.
#pragma once
#include <ucontext.h>
#include <cstddef>
#include <cstring>
#include <functional>
#include <vector>

#define __global__ static
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace cuda_shim {

struct Fiber {
    ucontext_t context;
    std::vector<char> stack;
    dim3 index;
    bool done = false;
};

static dim3 thread_index, block_index, block_size, grid_size;
static ucontext_t scheduler;
static Fiber* running = nullptr;
static const std::function<void()>* body = nullptr;

static void fiber_main() {
    (*body)();
    running->done = true;
    swapcontext(&running->context, &scheduler);
}

// Runs the other threads of the block up to their next barrier.
static inline void barrier() {
    swapcontext(&running->context, &scheduler);
    thread_index = running->index;
}

static inline void run_block(std::vector<Fiber>& fibers, size_t count) {
    for (size_t i = 0; i < count; i++) {
        Fiber& fiber = fibers[i];
        if (fiber.stack.empty()) fiber.stack.resize(1 << 16);
        fiber.done = false;
        fiber.index = dim3(i % block_size.x, i / block_size.x % block_size.y,
                           i / ((size_t)block_size.x * block_size.y));
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.data();
        fiber.context.uc_stack.ss_size = fiber.stack.size();
        fiber.context.uc_link = &scheduler;
        makecontext(&fiber.context, fiber_main, 0);
    }
    for (bool unfinished = true; unfinished;) {
        unfinished = false;
        for (size_t i = 0; i < count; i++) {
            if (fibers[i].done) continue;
            running = &fibers[i];
            thread_index = running->index;
            swapcontext(&scheduler, &running->context);
            unfinished |= !running->done;
        }
    }
}

static inline void launch(dim3 grid, dim3 block, const std::function<void()>& kernel) {
    static std::vector<Fiber> fibers;
    const size_t count = (size_t)block.x * block.y * block.z;
    if (fibers.size() < count) fibers.resize(count);
    body = &kernel;
    grid_size = grid;
    block_size = block;
    for (unsigned z = 0; z < grid.z; z++)
        for (unsigned y = 0; y < grid.y; y++)
            for (unsigned x = 0; x < grid.x; x++) {
                block_index = dim3(x, y, z);
                run_block(fibers, count);
            }
}

}  // namespace cuda_shim

#define threadIdx (cuda_shim::thread_index)
#define blockIdx (cuda_shim::block_index)
#define blockDim (cuda_shim::block_size)
#define gridDim (cuda_shim::grid_size)
#define __syncthreads() cuda_shim::barrier()

template <class T>
static inline T atomicAdd(T* address, T value) {
    const T before = *address;
    *address = before + value;
    return before;
}

static inline int atomicMax(int* address, int value) {
    const int before = *address;
    *address = before > value ? before : value;
    return before;
}

static inline int __popcll(long long bits) { return __builtin_popcountll(bits); }
static inline int __ffsll(long long bits) { return __builtin_ffsll(bits); }

typedef int cudaError_t;
typedef int cudaStream_t;
static inline cudaError_t cudaMemsetAsync(void* address, int value, size_t bytes, cudaStream_t = 0) {
    std::memset(address, value, bytes);
    return 0;
}
static inline void cuda_require(cudaError_t, const char*) {}
