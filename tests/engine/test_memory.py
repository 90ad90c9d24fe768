"""Memory stays flat while a network trains on pictures of many sizes: of the process, and on the GPU."""

import ctypes
import json
import os

import jittor as jt
import numpy as np
import pytest
from PIL import Image

from jrdp.config import load_config
from jrdp.engine.solver import Solver
from jrdp.engine.train import train

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
# scripts/test_gpu.sh asks for fewer on the software GPU, which takes seconds for what takes a card milliseconds.
ITERATIONS = {"cpu": 16, "cuda": int(os.environ.get("JRDP_MEMORY_ITERATIONS", 500))}
ALLOWED = 32.0  # MiB from the second quarter of the iterations to the last; in 500, keeping each batch would be more


def write_pictures(folder):
    """Noise of twelve shapes, from upright to broad, with one salient rectangle each."""
    random = np.random.default_rng(0)
    images, annotations = [], []
    for number, (width, height) in enumerate((96, 96 + 16 * step) for step in range(12)):
        width, height = (height, width) if number % 2 else (width, height)
        name = f"{number}.png"
        Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(folder / name)
        images.append({"id": number + 1, "file_name": name, "width": width, "height": height})
        outline = [10, 10, width - 20, 10, width - 20, height - 20, 10, height - 20]
        box = [10, 10, width - 30, height - 30]
        annotations.append(
            {"id": number + 1, "image_id": number + 1, "category_id": 1, "segmentation": [outline], "bbox": box,
             "area": box[2] * box[3], "iscrowd": 0}
        )
    categories = [{"id": 1, "name": "salient"}]
    (folder / "train.json").write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )


def memory() -> tuple[float, float]:
    """MiB of this process, and in use on the GPU (0 on a CPU)."""
    with open("/proc/self/statm") as file:
        resident = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    device = 0
    if jt.flags.use_cuda:
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        code = ctypes.CDLL("libcuda.so.1").cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total))
        assert code == 0, f"the driver does not tell its memory: error {code}"
        device = total.value - free.value
    return resident / 2**20, device / 2**20


def growth(samples: list) -> tuple[float, float]:
    """From the most in the second quarter, when every size has been seen, to the most in the last."""
    quarter = len(samples) // 4
    early, late = np.array(samples[quarter : 2 * quarter]), np.array(samples[-quarter:])
    return tuple(late.max(axis=0) - early.max(axis=0))


@pytest.mark.parametrize("device", DEVICES)
def test_memory_is_flat_over_many_iterations(device, tmp_path, monkeypatch, record_property):
    write_pictures(tmp_path)
    iterations = ITERATIONS[device]
    config = load_config(
        None,
        [
            f"data.train=[{tmp_path}:{tmp_path}/train.json]",
            "data.test=[]",
            "data.workers=1",
            "input.min_size=64",
            "input.max_size=96",
            "solver.batch_size=2",
            "model.backbone.freeze_at=0",
            "solver.base_lr=1e-6",  # noise teaches nothing, and a network from scratch may diverge on it
            f"solver.max_iterations={iterations}",
        ],
    )
    samples, step = [], Solver.step

    def step_and_measure(solver, iteration):
        samples.append(memory())
        return step(solver, iteration)

    monkeypatch.setattr(Solver, "step", step_and_measure)
    with jt.flag_scope(use_cuda=int(device == "cuda")):
        train(config, tmp_path / "run")
    assert len(samples) == iterations
    host, on_device = growth(samples)
    record_property("host MiB", samples[-1][0])
    record_property("device MiB", samples[-1][1])
    assert host < ALLOWED and on_device < ALLOWED, samples[:: max(iterations // 20, 1)]


@pytest.mark.parametrize("device", DEVICES)
def test_a_leak_is_noticed(device):
    kept, samples = [], []
    with jt.flag_scope(use_cuda=int(device == "cuda")):
        jt.gc()  # else what other tests have left in Jittor's pools would be used first
        for _ in range(8):
            kept.append(jt.array(np.ones(10 * 2**20, np.float32)) + 1)  # 40 MiB: too much for the heap's free places
            jt.sync(kept, True)
            samples.append(memory())
    assert max(growth(samples)) > ALLOWED
