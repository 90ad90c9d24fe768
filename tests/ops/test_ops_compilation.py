"""What is compiled, and when: nothing for new sizes, scales, thresholds, counts; an edited header; all by nvcc."""

import os
import pathlib
import shutil
import subprocess
import sys

import jittor as jt
import numpy as np
import ops_reference as reference
import pytest

from jrdp.ops import multilevel_roi_align, nms
from jrdp.ops.compile import KERNELS

linux_only = pytest.mark.skipif(not pathlib.Path("/proc/self/maps").exists(), reason="needs /proc/self/maps")


def loaded_kernels() -> set:
    """Our operators in this process, each one shared library that Jittor compiled just now or took from its cache."""
    maps = pathlib.Path("/proc/self/maps").read_text().splitlines()
    return {line.split()[-1] for line in maps if "/jit/code__" in line and line.endswith("_op.so")}


def pool_and_back(shapes, count, images, channels, sizes, scales, sampling):
    features = [jt.array(np.ones((images, channels, *shape), np.float32)) for shape in shapes]
    rois = np.tile(np.array([[0, 3, 4, 90, 70]], np.float32), (count, 1))
    pooled = multilevel_roi_align(features, rois, sizes, scales, sampling)
    gradients = jt.grad(sum((level * level).sum() for level in pooled), features)
    return [value.numpy() for value in [*pooled, *gradients]]


@linux_only
def test_roi_align_compiles_once():
    pool_and_back(reference.MAPS, 5, 1, 4, reference.SIZES, reference.SCALES, 2)
    before = loaded_kernels()
    assert len(before) >= 2  # forward and backward
    shapes = [(7, 9), (30, 31), (12, 5), (3, 3), (1, 1)]
    pool_and_back(shapes, 17, 3, 6, (8, 7, 6, 5, 4), (0.3, 0.2, 0.1, 0.05, 0.01), 0)
    pool_and_back(reference.MAPS, 1, 1, 8, (14,) * 5, reference.SCALES, 1)
    pool_and_back(reference.MAPS, 0, 2, 1, (7,) * 5, reference.SCALES, 3)
    assert loaded_kernels() == before
    # The count does see a new kernel.
    multilevel_roi_align([jt.ones((1, 1, 4, 4))] * 7, [[0, 1, 2, 3, 4]], (2,) * 7, (1.0,) * 7)[0].numpy()
    assert loaded_kernels() > before


@linux_only
def test_nms_compiles_once():
    def suppress(count, threshold):
        boxes = np.arange(count * 4, dtype=np.float32).reshape(count, 4)
        nms(boxes, np.arange(count, dtype=np.float32), threshold)

    suppress(3, 0.5)
    before = loaded_kernels()
    for count, threshold in ((1, 0.6), (200, 0.8), (0, 0.1), (1000, 0.3)):
        suppress(count, threshold)
    assert loaded_kernels() == before


SUPPRESS_TWICE = """
import pathlib, sys
import jrdp
from jrdp.ops import compile, nms
compile.KERNELS = pathlib.Path(sys.argv[1])
compile.INCLUDE = f'FLAGS: -I"{sys.argv[1]}" '
print(len(nms([[0, 0, 9, 9], [0, 0, 9, 4]], [1, 0.5], 0.49)))
"""


def test_edited_header_is_compiled_anew(tmp_path):
    # The edited file is not the one included by the source, but one that this one includes.
    kernels = tmp_path / "kernels"
    shutil.copytree(KERNELS, kernels)

    def kept() -> int:
        command = [sys.executable, "-c", SUPPRESS_TWICE, str(kernels)]
        root = pathlib.Path(__file__).resolve().parents[2]
        environment = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        return int(done.stdout.split()[-1])

    assert kept() == 1
    header = kernels / "nms.h"
    text = header.read_text()
    assert text.count("multiply_exact(width") == 1
    header.write_text(text.replace("multiply_exact(width", "0.0f * multiply_exact(width"))
    assert kept() == 2


def find_nvcc():
    return shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")


ENTRY_POINTS = """
#include "roi_align.cuh"
#include "nms.cuh"
#include "decode.cuh"
#include "paste.cuh"
void use(const RoiLevels& levels, const DecodeLevels& answers, float* numbers, int* indices) {
    roi_align_forward(levels, numbers);
    roi_align_backward(levels, numbers, true);
    roi_align_backward(levels, numbers, false);
    nms_run(numbers, numbers, 1, 0.5f, indices, indices, numbers, indices, indices, indices);
    decode_run(answers, indices, 0.05, 1000, 0.6, 100, 1, numbers, numbers, indices, numbers, numbers, numbers,
               indices, indices, indices, indices, indices, indices);
    paste_run(numbers, indices, 1, 32, 0.5, 1, indices);
}
"""


@pytest.mark.skipif(find_nvcc() is None, reason="needs nvcc on PATH or in /usr/local/cuda/bin")
def test_cuda_sources_compile_for_every_architecture(tmp_path):
    source = tmp_path / "kernels.cu"
    source.write_text(ENTRY_POINTS)
    targets = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in (75, 80, 90)]
    command = [find_nvcc(), "-c", "-O2", "--use_fast_math", "-std=c++17", "-Xptxas=-v", *targets, f"-I{KERNELS}"]
    done = subprocess.run([*command, str(source), "-o", str(tmp_path / "kernels.o")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    kernels = [line for line in done.stderr.splitlines() if "Compiling entry function" in line]
    assert len(kernels) == 3 * 10
    spills = [line for line in done.stderr.splitlines() if "spill stores" in line]
    assert len(spills) == 3 * 10
    clean = "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads"
    assert {line.strip() for line in spills} == {clean}
