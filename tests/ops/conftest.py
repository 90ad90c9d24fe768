"""Fixtures shared by the operators' tests."""

import jittor as jt
import pytest


@pytest.fixture(params=["shim", pytest.param("cuda", marks=pytest.mark.gpu)])
def where(request):
    """A function that says where an operator's `KERNELS` run: CUDA's on the CPU through the shim, and on a GPU."""
    on_gpu = request.param == "cuda"
    with jt.flag_scope(use_cuda=int(on_gpu)):
        yield lambda kernels: kernels if on_gpu else kernels.shimmed()
