// Several devices: each has its own memory, streams and current threads. With a case named: a mistake, or a lost card.
#include "check.h"
#include <cstring>
#include <string>
#include <thread>

__global__ void count_up(int n, int *x, int from) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) x[i] = from + i;
}
static int current() {
    int device;
    CUDA(cudaGetDevice(&device));
    return device;
}
static size_t available() {
    size_t left, all;
    CUDA(cudaMemGetInfo(&left, &all));
    return left;
}

static void lost() {  // the third launch and everything after it fails
    int *x, host;
    CUDA(cudaMalloc(&x, 4000));
    for (int i = 0; i < 2; i++) count_up<<<8, 128>>>(1000, x, i);
    CUDA(cudaMemcpy(&host, x, 4, cudaMemcpyDeviceToHost));
    CHECK(host == 1, "%d", host);
    count_up<<<8, 128>>>(1000, x, 5);
    printf("launch: %s\n", cudaGetErrorName(cudaGetLastError()));
    host = 7;
    printf("copy: %s\n", cudaGetErrorName(cudaMemcpy(&host, x, 4, cudaMemcpyDeviceToHost)));
    printf("malloc: %s\n", cudaGetErrorName(cudaMalloc(&x, 4)));
    CHECK(host == 7, "%d", host);
}

int main(int count, char **argument) {
    std::string which = count > 1 ? argument[1] : "";
    int devices = -1;
    cudaError_t e = cudaGetDeviceCount(&devices);
    if (which == "count") { printf("%d %s %s\n", devices, cudaGetErrorName(e), cudaGetErrorName(cudaFree(0))); return 0; }
    if (which == "lost") { lost(); return 0; }
    CHECK(devices == 2 && current() == 0, "%d", devices);
    CHECK(cudaSetDevice(2) == cudaErrorInvalidDevice && cudaSetDevice(-1) == cudaErrorInvalidDevice && current() == 0, "no such device");
    cudaGetLastError();
    cudaDeviceProp p;
    CUDA(cudaGetDeviceProperties(&p, 1));
    CHECK(cudaGetDeviceProperties(&p, 2) == cudaErrorInvalidDevice, "no such device");
    cudaGetLastError();
    int can = 9;
    CUDA(cudaDeviceCanAccessPeer(&can, 0, 1));
    CHECK(can == 0, "%d", can);

    // Memory is counted by device.
    int *a, *b;
    size_t before = available();
    CUDA(cudaMalloc(&a, 1 << 20));
    CHECK(available() == before - (1 << 20), "%zu", available());
    CUDA(cudaSetDevice(1));
    CHECK(available() == before, "%zu", available());
    CUDA(cudaMalloc(&b, 1 << 21));
    CHECK(available() == before - (1 << 21), "%zu", available());
    cudaPointerAttributes of;
    CUDA(cudaPointerGetAttributes(&of, a));
    CHECK(of.device == 0, "%d", of.device);
    CUDA(cudaPointerGetAttributes(&of, b));
    CHECK(of.device == 1, "%d", of.device);

    // The current device is the thread's own.
    std::thread([] {
        CHECK(current() == 0, "a new thread is on device %d", current());
        CUDA(cudaSetDevice(0));
    }).join();
    CHECK(current() == 1, "%d", current());

    if (which == "other_memory") count_up<<<1, 32>>>(32, a, 0);
    cudaStream_t on_1, on_0;
    CUDA(cudaStreamCreate(&on_1));
    count_up<<<8, 128, 0, on_1>>>(1000, b, 50);
    CUDA(cudaGetLastError());
    CUDA(cudaSetDevice(0));
    CUDA(cudaStreamCreate(&on_0));
    count_up<<<8, 128, 0, on_1>>>(1000, a, 0);
    CHECK(cudaGetLastError() == cudaErrorInvalidResourceHandle, "a stream of another device");
    cudaEvent_t event_0;
    CUDA(cudaEventCreate(&event_0));
    CHECK(cudaEventRecord(event_0, on_1) == cudaErrorInvalidResourceHandle, "an event of another device");
    cudaGetLastError();
    count_up<<<8, 128, 0, on_0>>>(1000, a, 10);
    CUDA(cudaEventRecord(event_0, on_0));
    // From device to device, through the event, and back to the host.
    CUDA(cudaSetDevice(1));
    CUDA(cudaStreamWaitEvent(on_1, event_0, 0));
    CUDA(cudaMemcpyAsync(b + 1000, a, 4000, cudaMemcpyDefault, on_1));
    CUDA(cudaDeviceSynchronize());
    auto v = fetch(b, 2000);
    for (int i = 0; i < 1000; i++) CHECK(v[i] == 50 + i && v[1000 + i] == 10 + i, "%d: %d, %d", i, v[i], v[1000 + i]);
    CUDA(cudaFree(a));  // of device 0, while 1 is current
    CHECK(available() == before - (1 << 21), "%zu", available());
    CUDA(cudaSetDevice(0));
    CHECK(available() == before, "%zu", available());
    printf("ok\n");
}
