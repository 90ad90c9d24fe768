"""The software GPU's own tests:  SOFTGPU_TOP=/folder python -m pytest tests/softgpu  (the folder is what build.sh made)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
TOP = os.environ.get("SOFTGPU_TOP")

pytestmark = pytest.mark.skipif(not TOP, reason="needs a built software GPU: SOFTGPU_TOP=/folder (tests/softgpu/build.sh makes one)")


def run(*command, **variables):
    environment = {**{k: v for k, v in os.environ.items() if not k.startswith("SOFTGPU_") and k != "CUDA_VISIBLE_DEVICES"}, **variables}
    return subprocess.run(
        [HERE.parent / "run.sh", "--top", TOP, *map(str, command)], env=environment, capture_output=True, text=True, timeout=1200
    )


@pytest.fixture(scope="session")
def program(tmp_path_factory):
    folder = tmp_path_factory.mktemp("programs")

    def compiled(name, *flags):
        path = folder / "-".join([name, *(flag.strip("-") for flag in flags)])
        if not path.exists():
            done = run("nvcc", "-std=c++17", "--extended-lambda", "-w", *flags, HERE / f"{name}.cu", "-o", path)
            assert done.returncode == 0, done.stderr
        return path

    return compiled


@pytest.mark.parametrize("variables", [{}, {"SOFTGPU_ORDER": "reverse"}, {"SOFTGPU_ORDER": "random:3"}, {"SOFTGPU_LAZY": "1"}], ids=str)
@pytest.mark.parametrize("name", ["saxpy", "numbers", "threads", "cub"])
def test_numbers(program, name, variables):
    done = run(program(name), **variables)
    assert done.returncode == 0 and done.stdout.endswith("ok\n"), done.stdout[-2000:] + done.stderr[-2000:]


def test_fast_math(program):
    done = run(program("saxpy", "--use_fast_math"))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "case, told",
    [
        ("bounds", "INVALID store of 4 bytes"),
        ("below", "4 bytes before the allocation"),
        ("freed", "FREED allocation"),
        ("host_pointer", "not device memory"),
        ("null", "a null pointer"),
        ("misaligned", "MISALIGNED store"),
        ("shared", "of the block's 128 bytes of shared memory"),
        ("host", "HOST code touched device memory"),
        ("stuck", "meet in DIFFERENT operations"),
        ("deadlock", "DEADLOCK: 31 threads wait at a barrier, 1 in a warp operation"),
        ("copy", "INVALID copy from of 8000 bytes"),
        ("assert", "Assertion `n == 3` failed"),
    ],
)
def test_a_mistake_is_reported(program, case, told):
    done = run(program("strict"), case)
    assert done.returncode != 0 and told in done.stderr, done.stdout + done.stderr


@pytest.mark.parametrize("case", ["good", "event", "twice", "poison"])
@pytest.mark.parametrize("variables", [{}, {"SOFTGPU_ORDER": "reverse"}, {"SOFTGPU_LAZY": "1"}], ids=str)
def test_what_is_right_passes(program, case, variables):
    done = run(program("strict"), case, **variables)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "case, variables",
    [("barrier", {"SOFTGPU_ORDER": "reverse"}), ("barrier", {"SOFTGPU_ORDER": "random:1"}), ("wait", {"SOFTGPU_LAZY": "1"}), ("reuse", {"SOFTGPU_LAZY": "1"})],
    ids=str,
)
def test_a_hidden_mistake_comes_out(program, case, variables):
    assert run(program("strict"), case).returncode == 0  # hidden without the variable
    done = run(program("strict"), case, **variables)
    assert done.returncode != 0 and "failed" in done.stdout, done.stdout + done.stderr


def test_an_error_instead_of_an_end(program):
    done = run(program("strict"), "bounds", SOFTGPU_VIOLATION="error")
    assert "end: cudaErrorIllegalAddress" in done.stdout, done.stdout + done.stderr


def test_memory_can_be_limited(program):
    done = run(program("saxpy"), SOFTGPU_MEMORY="500000")
    assert "cudaErrorMemoryAllocation" in done.stdout, done.stdout + done.stderr


def test_statistics(program, tmp_path):
    done = run(program("saxpy"), SOFTGPU_STATS=tmp_path / "stats.json")
    assert done.returncode == 0
    told = json.loads((tmp_path / "stats.json").read_text())
    (kernel,) = told["kernels"].values()
    assert kernel["launches"] == 1 and kernel["loaded"] == 800000 and kernel["stored"] == 400000
    assert told["copies"]["host to device"] == {"count": 2, "bytes": 800000} and told["implied_by_blocking_copies"] == 3


@pytest.mark.parametrize("lazy", ["0", "1"])
def test_several_devices(program, lazy):
    done = run(program("devices"), SOFTGPU_DEVICES="2", SOFTGPU_LAZY=lazy, SOFTGPU_MEMORY="100000000")
    assert done.returncode == 0 and done.stdout == "ok\n", done.stdout + done.stderr


def test_another_devices_memory_is_out_of_reach(program):
    done = run(program("devices"), "other_memory", SOFTGPU_DEVICES="2")
    assert done.returncode == 97 and "runs on device 1 and is given memory of device 0" in done.stderr, done.stdout + done.stderr


@pytest.mark.parametrize(
    "devices, visible, seen",
    [("3", None, 3), (None, None, 1), ("3", "2,0", 2), ("3", "1,7,0", 1), ("3", "1,1", 0), ("1", "", 0), ("2", "GPU-5", 0)],
)
def test_the_devices_that_a_process_sees(program, devices, visible, seen):
    told = run(program("devices"), "count", **_given(SOFTGPU_DEVICES=devices, CUDA_VISIBLE_DEVICES=visible)).stdout
    assert told == (f"{seen} cudaSuccess cudaSuccess\n" if seen else "0 cudaErrorNoDevice cudaErrorNoDevice\n")
    asked = "import ctypes; c = ctypes.CDLL('libcuda.so.1'); n = ctypes.c_int(); print(c.cuInit(0), c.cuDeviceGetCount(ctypes.byref(n)), n.value)"
    told = run(sys.executable, "-c", asked, **_given(SOFTGPU_DEVICES=devices, CUDA_VISIBLE_DEVICES=visible)).stdout
    assert told == (f"0 0 {seen}\n" if seen else "100 100 0\n")


def _given(**variables):
    return {name: value for name, value in variables.items() if value is not None}


@pytest.mark.parametrize("after, error", [("2", "cudaErrorECCUncorrectable"), ("2:999", "cudaErrorUnknown")])
def test_a_card_that_is_lost(program, after, error):
    done = run(program("devices"), "lost", SOFTGPU_LOSE_AFTER=after)
    assert done.stdout == f"launch: {error}\ncopy: {error}\nmalloc: {error}\n" and "LOST" in done.stderr, done.stdout + done.stderr
