"""What is compiled, and when: nothing for new sizes, scales, thresholds, counts; an edited header; all by nvcc."""

import json
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


USE_OPERATORS = """
import json, os, pathlib, sys
import jrdp
from jrdp.ops import compile, nms
kept = len(nms([[0, 0, 9, 9], [0, 0, 9, 4]], [1, 0.5], 0.49))
import jittor as jt
from jrdp.fast import operators
operators.max_pool(jt.ones((1, 4, 4, 8))).numpy()
maps = pathlib.Path("/proc/self/maps").read_text().splitlines()
kernels = {line.split()[-1] for line in maps if "/jit/code__" in line and line.endswith("_op.so")}
kernels = {kernel: os.stat(kernel).st_mtime_ns for kernel in sorted(kernels)}
print(json.dumps({"package": jrdp.__file__, "headers": str(compile.KERNELS), "kept": kept, "kernels": kernels}))
"""


def copy_package(root: pathlib.Path) -> pathlib.Path:
    package = pathlib.Path(__file__).resolve().parents[2] / "jrdp"
    shutil.copytree(package, root / "jrdp", ignore=shutil.ignore_patterns("__pycache__"))
    return root


def use_operators(root: pathlib.Path) -> dict:
    """What a new process says that runs two operators of the package in `root`."""
    environment = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    command = [sys.executable, "-c", USE_OPERATORS]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=root)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["package"].startswith(str(root))
    return said


@linux_only
def test_another_copy_of_the_package_compiles_nothing(tmp_path):
    first = use_operators(copy_package(tmp_path / "first"))
    second_root = copy_package(tmp_path / "second")
    second = use_operators(second_root)
    assert len(first["kernels"]) == 2
    assert second["kernels"] == first["kernels"]  # the same files, not written again
    # Negative control, and an edited header is compiled anew: not the one included by the source but one that it
    # includes.
    header = second_root / "jrdp" / "ops" / "kernels" / "nms.h"
    text = header.read_text()
    assert text.count("multiply_exact(width") == 1
    header.write_text(text.replace("multiply_exact(width", "0.0f * multiply_exact(width"))
    edited = use_operators(second_root)
    assert (first["kept"], second["kept"], edited["kept"]) == (1, 1, 2)
    new = set(edited["kernels"]) - set(first["kernels"])
    assert len(new) == 1 and len(edited["kernels"]) == 2
    assert edited["headers"] != first["headers"]
    shutil.rmtree(edited["headers"])


def find_nvcc():
    return shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")


ENTRY_POINTS = """
#include "roi_align.cuh"
#include "nms.cuh"
#include "decode.cuh"
#include "paste.cuh"
#include "join.cuh"
#include "group_norm.cuh"
#include "frozen_norm.cuh"
#include "canvas.cuh"
#include "constant.cuh"
#include "many.cuh"
void use(const RoiLevels& levels, const DecodeLevels& answers, const Canvas& canvas, const CanvasMaps& maps,
         const CanvasAnswers& levels_of, const CanvasSums& sums, const JoinParts<float>& parts, float* numbers, int* indices) {
    join_copy<true>(parts, numbers);
    join_copy<false>(parts, numbers);
    group_norm_forward(numbers, numbers, numbers, 1, 1, 1, 1, 1e-5, true, numbers, numbers);
    group_norm_backward(numbers, numbers, numbers, numbers, numbers, 1, 1, 1, 1, true, numbers, numbers, numbers,
                        numbers);
    frozen_norm_forward(numbers, numbers, numbers, numbers, numbers, numbers, 1, 1, 1, true, numbers);
    frozen_norm_backward(numbers, numbers, numbers, numbers, 1, 1, 1, true, numbers, numbers);
    canvas_place(canvas, maps, 1, numbers);
    canvas_take(canvas, maps, 1, numbers);
    canvas_norm_forward(canvas, numbers, numbers, numbers, numbers, 1, 1, 1, 1e-5, numbers, numbers);
    canvas_norm_backward(canvas, numbers, numbers, numbers, numbers, numbers, numbers, 1, 1, 1, numbers, numbers, numbers,
                         numbers, numbers);
    canvas_answers(canvas, levels_of, numbers, numbers, numbers, numbers, numbers, numbers, 1, numbers, numbers, numbers);
    canvas_answers_backward(canvas, levels_of, numbers, numbers, numbers, numbers, numbers, numbers, 1, numbers, numbers,
                            numbers, sums);
    constant_set(1.0, numbers);
    Sgd sgd = sgd_begin(0.1, 0.9, 1e-4);
    sgd_add(sgd, numbers, numbers, numbers, numbers, numbers, 1);
    sgd_flush(sgd);
    Report report = report_begin(numbers);
    report_number(report, numbers);
    report_numbers_end(report, 1);
    report_array(report, numbers, 1);
    report_flush(report);
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
    assert len(kernels) == 3 * 29
    spills = [line for line in done.stderr.splitlines() if "spill stores" in line]
    assert len(spills) == 3 * 29
    clean = "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads"
    assert {line.strip() for line in spills} == {clean}
