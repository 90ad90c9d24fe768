"""Run by test_compile_sweep.py with the pretend GPU: compile every CUDA kernel that the network needs.

Numbers mean nothing here. A step fails when something does not compile or load, not when it computes nonsense.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import jrdp  # noqa: F401
from jrdp.machine import runtime

assert runtime.start("cuda") == "cuda", runtime.prepare().cuda.reason

import jittor as jt  # noqa: E402
import numpy as np  # noqa: E402

from jrdp.doctor import checks as doctor_checks  # noqa: E402
from jrdp.config import Config  # noqa: E402
from jrdp.engine.solver import Solver  # noqa: E402
from jrdp.models import rdpnet  # noqa: E402
from jrdp.models.fcos_decode import Detections, decode_vars  # noqa: E402
from jrdp.models.layers import use_half_convolutions  # noqa: E402
from jrdp.models.rdpnet import RDPNet  # noqa: E402
from jrdp.models.state import trainable_parameters  # noqa: E402
from jrdp.ops import multilevel_roi_align, paste_mask_rle  # noqa: E402
from jrdp.structures import ImageBatch, Targets  # noqa: E402


def operators():
    """What `jrdp doctor` tries; its verdicts on the numbers are expected to be bad."""
    for _, check in doctor_checks.CHECKS:
        try:
            check("cuda")
        except ArithmeticError:
            pass


def scattered_gradient():
    features = [jt.zeros((1, 4, 8, 8)), jt.zeros((1, 4, 4, 4))]
    rois = jt.array(np.array([[0, 1, 1, 20, 20]], np.float32))
    pooled = multilevel_roi_align(features, rois, (4, 2), (0.25, 0.125), deterministic=False)
    jt.sync(jt.grad(sum(p.sum() for p in pooled), features))


def _decode_and_go_on(*arguments):
    """Compile what decodes, and then go on with two boxes: those of a machine that computes nothing may be nothing."""
    try:
        decode_vars(*arguments)
    except ValueError:  # "not finite"
        pass
    boxes = np.array([[10, 10, 60, 50], [20, 20, 70, 60]], np.float32)
    return [Detections(boxes, np.array([0.9, 0.8], np.float32)) for _ in arguments[3]]


rdpnet.decode_vars = _decode_and_go_on


def _batch():
    pictures = np.random.default_rng(0).standard_normal((2, 3, 96, 128)).astype(np.float32)
    sizes = [(96, 128), (96, 128)]
    return ImageBatch(pictures, sizes, sizes, [1, 2])


def prediction():
    model = RDPNet(Config().model)
    model.eval()
    found = model.detect(_batch())[0]
    paste_mask_rle(np.full((2, 32, 32), 0.7, np.float32), found.boxes, 96, 128)
    jt.sync_all(True)


def training():
    _train(half=False)


def mixed_training():
    _train(half=True)


def _train(half: bool):
    model = RDPNet(Config().model)
    use_half_convolutions(model, half)
    solver = Solver(trainable_parameters(model), Config().solver)
    polygons = [[np.array([20.0, 20.0, 70.0, 20.0, 70.0, 60.0, 20.0, 60.0])]]
    box = np.array([[20, 20, 70, 60]], np.float32)
    targets = [Targets(box, polygons, [None], (96, 128)) for _ in range(2)]
    for iteration in (1, 2):
        losses = model.losses(_batch(), targets)
        total = sum(losses.values())
        solver.backward(total, 1024.0 if half else 1.0)
        total.item()
        solver.step(iteration)
    jt.sync_all(True)


failed = 0
for step in (operators, scattered_gradient, prediction, training, mixed_training):
    started = time.monotonic()
    try:
        step()
        verdict = "ok"
    except Exception as error:
        failed += 1
        verdict = "FAILED " + " ".join(str(error).split())[:1500]
    print(f"{step.__name__:<20} {time.monotonic() - started:6.0f} s  {verdict}", flush=True)
kernels = [path.name for path in (Path(jt.flags.cache_path) / "jit").glob("*.so")]
print(f"{len(kernels)} kernels in {jt.flags.cache_path}")
sys.exit(1 if failed else 0)
