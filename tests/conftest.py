"""Fixtures shared by the tests."""

import json
import os
import pathlib
import signal
import sys

import pytest

from jrdp.machine import runtime

pytest_plugins = ["small_datasets"]  # fixtures: datasets of a few pictures

ROOT = pathlib.Path(__file__).resolve().parent.parent

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as a shell starts what runs in its background; children inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

runtime.prepare()  # before any test imports Jittor or changes the environment


@pytest.fixture(params=["shim", pytest.param("cuda", marks=pytest.mark.gpu)])
def where(request):
    """A function that says where an operator's `KERNELS` run: CUDA's on the CPU through the shim, and on a GPU."""
    import jittor as jt

    on_gpu = request.param == "cuda"
    with jt.flag_scope(use_cuda=int(on_gpu)):
        yield lambda kernels: kernels if on_gpu else kernels.shimmed()


def pytest_collection_modifyitems(items):
    """Skip what is marked `gpu` where Jittor cannot use one, with the reason."""
    cuda = runtime.prepare().cuda
    if not cuda.usable:
        skip = pytest.mark.skip(reason=f"needs a GPU that Jittor can use: {cuda.reason}")
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(skip)


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """A folder beside the checkout with research photographs that are not ours to publish; its tests skip elsewhere."""
    folder = pathlib.Path(os.environ.get("JRDP_SHARED", ROOT.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"needs the photographs in {folder} (set JRDP_SHARED)")
    return folder


@pytest.fixture(scope="session")
def golden() -> pathlib.Path:
    """The released network's numbers: `golden/r50`, `golden/ops.npz`, `golden/keys_*.json`."""
    return ROOT / "tests" / "golden"


@pytest.fixture(scope="session")
def seeded(golden):
    """`seeded("r50")` -> {released key: float32 array}, the deterministic weights of the goldens."""
    sys.path.insert(0, str(golden))
    try:
        from seeded import seeded_state
    finally:
        sys.path.pop(0)

    def state(backbone: str = "r50") -> dict:
        keys = json.loads((golden / f"keys_{backbone}.json").read_text())["keys"]
        return seeded_state([(key[0], tuple(key[1])) for key in keys])

    return state
