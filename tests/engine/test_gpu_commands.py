"""What the command line does on a GPU: predicting pictures with several jobs, and a video."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jittor as jt
import numpy as np
import pytest

from small_datasets import write_clip

import jrdp
from jrdp.dataset_tools.sample import write_sample
from jrdp.engine.video import predict_video

pytestmark = [pytest.mark.gpu, pytest.mark.gpu_once]  # new processes, which compile and load what others have already

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["input.min_size=64", "input.max_size=96"]


def jrdp_command(*arguments, **environment) -> str:
    """What a `jrdp` process prints; it must end well."""
    done = subprocess.run(
        [sys.executable, "-m", "jrdp", *map(str, arguments)], capture_output=True, text=True, timeout=1800,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sample")
    write_sample(folder, train=3, val=1)
    return folder


def test_several_jobs_predict_what_one_does(weights, sample, tmp_path):
    pictures = sorted((sample / "imgs").iterdir())
    settings = [word for setting in SMALL for word in ("--set", setting)]
    found = {}
    for device, jobs in (("cuda", 1), ("cuda", 2), ("cpu", 1)):
        out = tmp_path / f"{device}{jobs}"
        jrdp_command(
            "predict", *pictures, "--weights", weights, "--device", device, "--jobs", jobs, "--out", out, *settings,
            OMP_NUM_THREADS="1",
        )  # fmt: skip
        found[device, jobs] = {
            path.relative_to(out): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()
        }
    assert list(found["cuda", 2]) == list(found["cuda", 1]) == list(found["cpu", 1])
    assert found["cuda", 1], "nothing was written"


def test_a_video(weights, tmp_path):
    clip = tmp_path / "clip.mp4"
    write_clip(clip, 3)
    scores = {}
    for device in ("cuda", "cpu"):
        (tmp_path / device).mkdir()
        with jt.flag_scope(use_cuda=int(device == "cuda")):
            model = jrdp.load(weights, device=device, overrides=SMALL)
            assert predict_video(model, clip, tmp_path / device, "clip", 0.1) == 3
        found = json.loads((tmp_path / device / "clip.json").read_text())["results"]
        scores[device] = [[entry["score"] for entry in found if entry["image_id"] == frame] for frame in range(3)]
    for on_gpu, on_cpu in zip(scores["cuda"], scores["cpu"]):
        assert abs(len(on_gpu) - len(on_cpu)) <= 1
        shorter = min(len(on_gpu), len(on_cpu))
        np.testing.assert_allclose(sorted(on_gpu)[-shorter:], sorted(on_cpu)[-shorter:], atol=1e-3)
