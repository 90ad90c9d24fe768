"""Faults planted in copies of the kernels: the tests of the operators must notice each on the software GPU.

A real card is silent about most of them, and some would spoil it for the tests that follow.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.gpu_once,
    pytest.mark.skipif("SOFTGPU_TOP" not in os.environ, reason="needs the software GPU (scripts/test_gpu.sh --software)"),
]

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Fault:
    """`right` stands once in `file` of the kernels; tests: what pytest's -k chooses; told: one of these is reported.

    lazy: whether work is put off until somebody waits for it, without which a missing wait may be no fault.
    """

    file: str
    right: str
    wrong: str
    tests: str
    told: tuple = ("AssertionError",)
    lazy: bool = False


# A stream that the others do not wait for.
ASIDE = (
    "[] { static cudaStream_t aside = 0; if (!aside) cudaStreamCreateWithFlags(&aside, cudaStreamNonBlocking); "
    "return aside; }()"
)
FAULTS = {
    "an index off by one": Fault(
        "roi_align.cuh",
        "corners.place[1] = y.low * width + x.high;",
        "corners.place[1] = y.low * width + x.high + 1;",
        "roi_align_equals",
        ("AssertionError", "INVALID load"),
    ),
    "a block too few": Fault(
        "paste.cuh",
        "dim3((most + kPasteThreads - 1) / kPasteThreads, masks)",
        "dim3(most / kPasteThreads, masks)",
        "pasting and 100",
    ),
    "a missing barrier before others' values are read": Fault(
        "nms.cuh",
        "before[part][threadIdx.x] = count;\n    __syncthreads();",
        "before[part][threadIdx.x] = count;",
        "nms and 65",
        ("AssertionError", "INVALID", "not finite"),
    ),
    "a missing barrier before a place is written again": Fault(
        "decode.cuh",
        "const int before = thread >= step ? sums[thread - step] : 0;\n        __syncthreads();",
        "const int before = thread >= step ? sums[thread - step] : 0;",
        "decoding",
        ("AssertionError", "INVALID"),
    ),
    "a missing barrier in a sum over the block": Fault(
        "group_norm.cuh",
        "shared[thread][1] += shared[thread + half][1];\n        }\n        __syncthreads();",
        "shared[thread][1] += shared[thread + half][1];\n        }",
        "group_norm",
    ),
    "scratch that nobody has cleared": Fault(
        "nms.cuh",
        "for (int w = thread; w < live_words; w += kNmsSweepers) suppressed[w] = 0;",
        "",
        "nms and 1000",
    ),
    "shared memory that nobody has cleared": Fault(
        "decode.cuh", "shared.histogram[thread] = 0;", "", "decoding", ("AssertionError", "INVALID")
    ),
    "a missing wait for memory that is cleared on another stream": Fault(
        "roi_align.cuh",
        "cudaMemsetAsync(level.feature, 0, bytes)",
        f"cudaMemsetAsync(level.feature, 0, bytes, {ASIDE})",
        "roi_align_equals",
        lazy=True,
    ),
    "a missing wait between two kernels": Fault(
        "group_norm.cuh",
        "CUDA_LAUNCH(group_norm_backward_kernel, items, kNormThreads, dy,",
        f"group_norm_backward_kernel<<<items, kNormThreads, 0, {ASIDE}>>>(dy,",
        "group_norm",
        lazy=True,
    ),
}


def run(folder: Path, tests: str, lazy: bool = False) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if name not in ("SOFTGPU_ORDER", "SOFTGPU_LAZY")}
    environment.update(PYTHONPATH=str(folder), SOFTGPU_LAZY=str(int(lazy)))
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "tests/ops/test_ops_gpu.py", "-k", tests],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=900,
    )  # fmt: skip


@pytest.fixture(scope="module")
def copied(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("planted")
    for name in ("jrdp", "tests/ops", "tests/golden"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pytest.ini", "tests/conftest.py", "tests/small_datasets.py"):
        shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.mark.parametrize("name", FAULTS)
def test_it_is_noticed(copied, name):
    fault = FAULTS[name]
    path = copied / "jrdp" / "ops" / "kernels" / fault.file
    text = path.read_text()
    assert text.count(fault.right) == 1, "the fault no longer fits the kernel"
    try:
        path.write_text(text.replace(fault.right, fault.wrong))
        done = run(copied, fault.tests, fault.lazy)
    finally:
        path.write_text(text)
    told = done.stdout + done.stderr
    assert done.returncode not in (0, 5), told[-3000:]
    assert any(word in told for word in fault.told), told[-3000:]


@pytest.mark.parametrize("lazy", [False, True], ids=["plain", "lazy"])
def test_without_a_fault_the_same_run_passes(copied, lazy):
    done = run(copied, "joining", lazy)
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout[-3000:] + done.stderr[-3000:]
