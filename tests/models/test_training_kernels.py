"""No batch, picture size or ground truth makes a training step compile anything after the first two steps."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(not pathlib.Path("/proc/self/maps").exists(), reason="needs /proc/self/maps")

# In a process of its own: only there are all kernels that a step loads, compiled or from the cache, new ones.
TRAIN = """
import json
from jrdp.machine import runtime

runtime.start("cpu", seed=1)
import jittor as jt
import numpy as np
from jrdp.config import parse_config
from jrdp.engine.solver import Solver
from jrdp.models.rdpnet import RDPNet
from jrdp.models.state import trainable_parameters
from jrdp.structures import ImageBatch, Targets

config = parse_config({}, "the test")
model = RDPNet(config.model)
solver = Solver(trainable_parameters(model), config.solver)
said = {}


def kernels():
    with open("/proc/self/maps") as maps:
        return {line.split()[-1] for line in maps if "/jit/" in line and line.endswith(".so\\n")}


def step(name, count, height, width, boxes):
    before = kernels()
    images = np.random.standard_normal((count, 3, height, width)).astype(np.float32)
    size = (height, width)
    targets = []
    for one in boxes:
        one = np.array(one, np.float32).reshape(-1, 4)
        corners = [[np.array([x1, y1, x2, y1, x2, y2, x1, y2], np.float64)] for x1, y1, x2, y2 in one]
        targets.append(Targets(one, corners, [None] * len(one), size))
    losses = model.losses(ImageBatch(images, [size] * count, [size] * count, list(range(count))), targets)
    solver.backward(losses["loss_cls"] + losses["loss_reg"] + losses["loss_centerness"] + losses["loss_mask"])
    values = {key: loss.item() for key, loss in losses.items()}
    solver.step(1)
    jt.sync_all(True)
    said[name] = {"new": len(kernels() - before), "losses": values}


some, other = [[10, 10, 70, 80], [30, 20, 90, 60]], [[5, 20, 60, 75]]
step("first", 2, 96, 128, [some, other])
step("second", 2, 96, 128, [other, some])
step("one picture", 1, 192, 160, [some])
step("three pictures", 3, 160, 96, [some, other, some])
step("one without ground truth", 2, 96, 128, [some, []])
step("none with ground truth", 2, 96, 128, [[], []])
step("one positive location, one mask", 1, 160, 160, [[[1, 1, 11, 11]]])
step("two positive locations", 1, 160, 160, [[[1, 1, 15, 11]]])
step("no positive location", 1, 160, 160, [[[5, 5, 7, 7]]])
step("large", 2, 288, 416, [some, other])
step("narrow", 2, 288, 32, [[[2, 10, 25, 100]], []])
step("tiny", 2, 32, 32, [[[2, 2, 25, 25]], [[4, 4, 30, 20]]])
step("smallest map of one pixel, one picture", 1, 96, 128, [some])

# What the network avoids, for the count to see it.
values, maps = jt.ones((8,)), [jt.ones((count, 8, 5, 5)) for count in (2, 1)]
(maps[0] * values.reshape(1, 8, 1, 1)).sync()
before = kernels()
(maps[1] * values.reshape(1, 8, 1, 1)).sync()
said["control"] = {"new": len(kernels() - before)}
print(json.dumps(said))
"""


def test_only_the_first_two_steps_compile():
    root = pathlib.Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run([sys.executable, "-c", TRAIN], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    new = {name: step["new"] for name, step in said.items()}
    assert new.pop("control") == 1
    assert 0 < new.pop("first") <= 120  # 110 when this was written
    assert new.pop("second") <= 3
    # A stretch that copies every number once is materialised by Jittor's fusion; docs/speed.md.
    assert new.pop("smallest map of one pixel, one picture") <= 1
    assert set(new.values()) == {0}, new
    assert said["none with ground truth"]["losses"]["loss_mask"] == 0
    assert said["no positive location"]["losses"]["loss_reg"] == 0
    assert said["one positive location, one mask"]["losses"]["loss_reg"] > 0
