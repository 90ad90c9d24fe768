"""The three headers and the script of the view, compiled with a real nvcc; nothing is run on a GPU.

cuDNN's real headers may lie in another environment: `JRDP_CUDA_SITE=/path/to/site-packages` names it.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from jrdp.machine.nvcc import Places, find_compilers, folders_for
from jrdp.machine.view import CUDA13_FLAGS, Options, make_view

NAMES_THAT_CUDA_13_DROPPED = """
#include <cub/cub.cuh>
#include <npp.h>
struct Half { __host__ __device__ float operator()(int i) const { return i * 0.5f; } };
__global__ void kernel(unsigned* out, long long* limit) { out[threadIdx.x] = cub::LaneId(); *limit = NPP_MIN_64S; }
int select(float* from, float* to, int* count, int n) {
    size_t bytes = 0;
    cub::CountingInputIterator<int> counting(0);
    cub::TransformInputIterator<float, Half, cub::CountingInputIterator<int>> halves(counting, Half());
    cub::DeviceReduce::Reduce(nullptr, bytes, halves, to, n, cub::Max(), 0.0f);
    return cub::DeviceSelect::Flagged(nullptr, bytes, counting, from, count, count, n);
}
"""

RNN_CALLS_THAT_CUDNN_9_DROPPED = """
#include "cudnn.h"
void* calls[] = {
    (void*)cudnnSetRNNDescriptor_v6, (void*)cudnnGetRNNParamsSize, (void*)cudnnGetRNNWorkspaceSize,
    (void*)cudnnGetRNNTrainingReserveSize, (void*)cudnnGetRNNLinLayerMatrixParams, (void*)cudnnGetRNNLinLayerBiasParams,
    (void*)cudnnRNNForwardTraining, (void*)cudnnRNNForwardInference, (void*)cudnnRNNBackwardData,
    (void*)cudnnRNNBackwardWeights};
"""

JITTORS_HELPERS = """
#include <cuda_runtime.h>
#include "helper_string.h"
#include "helper_cuda.h"
int best() { return gpuGetMaxGflopsDeviceId(); }
"""


@pytest.fixture(scope="module")
def places() -> Places:
    here = Places.of_this_machine()
    other = os.environ.get("JRDP_CUDA_SITE")
    return Places(here.environ, (*here.sites, Path(other)), here.system) if other else here


@pytest.fixture(scope="module")
def view(places, tmp_path_factory):
    compilers = [nvcc for nvcc in find_compilers(places) if nvcc.version[0] == 13]
    if not compilers:
        pytest.skip("needs an nvcc of CUDA 13")
    nvcc = compilers[0]
    return make_view(tmp_path_factory.mktemp("view"), nvcc, folders_for(nvcc, places), Options())


def _compile(compiler: Path, source: Path, *flags: str) -> subprocess.CompletedProcess:
    return subprocess.run([str(compiler), *flags, "-c", str(source), "-o", f"{source}.o"], capture_output=True, text=True)


def _as_jittor_does(view) -> list[str]:
    return ["-std=c++14", "-x", "cu", "-w", "-arch=compute_90", "-code=sm_90", f"-I{view.folder / 'include'}"]


def test_kernels_find_the_names_that_cuda_13_dropped(view, tmp_path):
    source = tmp_path / "names.cu"
    source.write_text(NAMES_THAT_CUDA_13_DROPPED)
    done = _compile(view.nvcc, source, *_as_jittor_does(view))
    assert done.returncode == 0, done.stderr


def test_without_the_view_they_do_not(view, tmp_path):
    source = tmp_path / "names.cu"
    source.write_text(NAMES_THAT_CUDA_13_DROPPED.replace("#include <npp.h>", "#define NPP_MIN_64S 0"))
    plain = view.nvcc.read_text().split("exec ")[1].split()[0]
    done = _compile(plain, source, "-std=c++17", "-x", "cu", "-w", "-arch=compute_90", "-code=sm_90")
    assert done.returncode != 0 and "CountingInputIterator" in done.stderr


def test_jittors_cuda_helpers_compile_with_the_two_definitions(view, tmp_path):
    from jrdp.machine.source import installed_site

    source = tmp_path / "helpers.cc"
    source.write_text(JITTORS_HELPERS)
    jittor = installed_site() / "jittor"
    flags = ["-std=c++14", *(f"-I{folder}" for folder in (view.folder / "include", jittor / "src", jittor / "extern/cuda/inc"))]
    plain = _compile(Path("g++"), source, *flags)
    assert plain.returncode != 0 and "computeMode" in plain.stderr
    done = _compile(Path("g++"), source, *flags, *CUDA13_FLAGS.split())
    assert done.returncode == 0, done.stderr


def test_jittors_rnn_calls_exist_with_cudnn_9(view, tmp_path):
    if not (view.folder / "include" / "cudnn_real").exists():
        pytest.skip("needs cuDNN's headers (JRDP_CUDA_SITE)")
    source = tmp_path / "rnn.cc"
    source.write_text(RNN_CALLS_THAT_CUDNN_9_DROPPED)
    done = _compile(Path("g++"), source, "-std=c++14", f"-I{view.folder / 'include'}")
    assert done.returncode == 0, done.stderr
