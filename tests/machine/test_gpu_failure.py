"""What Jittor says of a GPU that is full or has failed, as one line; what is a mistake of the program stays one."""

import pytest

from jrdp.errors import UserError
from jrdp.machine import gpu_failure

FULL = """Wrong inputs arguments, Please refer to examples(help(jt.fetch_sync)).
Failed reason:[f 1125 13:46:50.897884 56 executor.cc:686]
Execute fused operator(633/1292) failed.
[Input]: float32[512,128,1,1,], float32[1,128,8,12,],
[Output]: float32[1,512,8,12,],
[Reason]: [f 1125 13:46:50.897884 56 cuda_device_allocator.cc:31] Unable to alloc cuda device memory for size 10485760"""
STATUS = "[f helper_cuda.h:128] CUDA error at x.cc:229  code=5000( CUDNN_STATUS_EXECUTION_FAILED ) cudnnConvolutionForward(...)"


@pytest.fixture
def runtime_says(monkeypatch):
    """Stands in for the CUDA runtime, which a library's status leaves to be asked."""
    return lambda name: monkeypatch.setattr(gpu_failure, "_what_the_runtime_says", lambda: name)


@pytest.mark.parametrize(
    "text, told",
    [
        (FULL, "the GPU's memory is full (10 MB more were wanted for float32[1,512,8,12])"),
        ("GPU memory is overflow, please reduce your batch_size or data size!\nTotal: 240MB Used: 232MB", "memory is full:"),
        ("CUDA error at x.h:12  code=2( cudaErrorMemoryAllocation ) cudaMallocHost(&ptr, size)", "memory is full:"),
        ("CUDA error at x.cc:9  code=4( CUDNN_STATUS_ALLOC_FAILED ) cudnnCreate(&handle)", "memory is full:"),
        ("CUDA error at x.h:12  code=214( cudaErrorECCUncorrectable ) cudaDeviceSynchronize()", "has failed (cudaErrorECCUnc"),
        ("CUDA error at x.h:12  code=999( cudaErrorUnknown ) cudaDeviceSynchronize()", "the GPU has failed (cudaErrorUnknown)"),
    ],
)
def test_one_line_with_what_to_do(text, told):
    line = gpu_failure.reason_of(RuntimeError(text))
    assert told in line and "\n" not in line and ("use smaller pictures" in line or "nvidia-smi" in line)


def test_a_librarys_status_leaves_the_cause_to_the_runtime(runtime_says):
    runtime_says("cudaErrorECCUncorrectable")
    assert "cudaErrorECCUncorrectable" in gpu_failure.reason_of(RuntimeError(STATUS))
    for other in ("cudaErrorIllegalAddress", "cudaSuccess", None):
        runtime_says(other)
        assert gpu_failure.reason_of(RuntimeError(STATUS)) is None


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error at x.h:12  code=700( cudaErrorIllegalAddress ) cudaDeviceSynchronize()"),
        RuntimeError("shapes do not match"),
        ValueError(FULL),
    ],
)
def test_mistakes_of_the_program_are_no_failure_of_the_gpu(error):
    assert gpu_failure.reason_of(error) is None
    with pytest.raises(type(error)), gpu_failure.explained(lambda: "here"):
        raise error


def test_the_line_says_at_what():
    with pytest.raises(UserError, match=r"memory is full at iteration 3 with 2 pictures of 64x96 \(10 MB more"):
        with gpu_failure.explained(lambda: "at iteration 3 with 2 pictures of 64x96"):
            raise RuntimeError(FULL)
