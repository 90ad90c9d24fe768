"""A GPU whose memory is full, or that fails in the middle of the work: one line, code 2, and the last checkpoint whole.

The software GPU can be told to be small, or to fail after so many kernels and library calls. In processes of their own,
which they end.
"""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from jrdp.dataset_tools.sample import write_sample
from jrdp.engine.checkpoint import load_checkpoint

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.gpu_once,
    pytest.mark.skipif("SOFTGPU_TOP" not in os.environ, reason="needs the software GPU (scripts/test_gpu.sh --software)"),
]

SMALL = ["input.min_size=64", "input.max_size=96", "model.fcos.post_nms_top_n=10"]
FAILURES = {"full": ("SOFTGPU_MEMORY", "the GPU's memory is full"), "lost": ("SOFTGPU_LOSE_AFTER", "the GPU has failed")}


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sample")
    write_sample(folder, train=4, val=1, seed=3)
    return folder


def jrdp(command, *arguments, settings=(), **variables):
    told = [argument for setting in (*SMALL, *settings) for argument in ("--set", setting)]
    return subprocess.run(
        [sys.executable, "-m", "jrdp", command, "--device", "cuda", *map(str, arguments), *told],
        env={**os.environ, **variables}, capture_output=True, text=True, timeout=900,
    )  # fmt: skip


def told_in_one_line(done, *words):
    """The one line on standard error, without the software GPU's own."""
    lines = [line for line in done.stderr.splitlines() if line and not line.startswith("softgpu:") and "Compiling" not in line]
    assert done.returncode == 2 and len(lines) == 1 and lines[0].startswith("jrdp: error: "), done.stdout + done.stderr
    for word in words:
        assert word in lines[0]


def counted(path):
    """Peak of memory in bytes, and the number of kernels and library calls."""
    numbers = json.loads(path.read_text())
    launches = sum(kernel["launches"] for kernel in numbers["kernels"].values())
    return numbers["peak_memory"], launches + sum(call["calls"] for call in numbers["calls"].values())


@pytest.fixture(scope="module")
def trained(sample, tmp_path_factory):
    """A run of two iterations with a checkpoint, its settings, and what it took."""
    folder = tmp_path_factory.mktemp("trained")
    settings = [
        f"data.train=[{sample}/imgs:{sample}/train.json]", "data.test=[]", "solver.batch_size=2", "solver.max_iterations=2",
        "solver.steps=[9]", "solver.warmup_iterations=1", "train.checkpoint_period=1", "train.log_period=1",
    ]  # fmt: skip
    done = jrdp("train", "--out", folder / "run", settings=settings, SOFTGPU_STATS=str(folder / "stats.json"))
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "run", settings, counted(folder / "stats.json")


@pytest.mark.parametrize("failure", FAILURES)
def test_a_training_ends_with_its_last_checkpoint_whole(trained, failure):
    run, settings, (memory, launches) = trained
    variable, words = FAILURES[failure]
    longer = [setting.replace("max_iterations=2", "max_iterations=4") for setting in settings]
    before = load_checkpoint(run / "last.safetensors")
    value = {"full": str(int(0.9 * memory)), "lost": str(int(0.7 * launches))}[failure]
    done = jrdp("train", "--out", run, "--resume", settings=longer, **{variable: value})
    told_in_one_line(done, words)
    if failure == "lost":  # memory may be full before the first step; before iteration 3 there is loading
        assert "at iteration 3 with " in done.stderr and "last.safetensors is from before this iteration" in done.stderr
    after = load_checkpoint(run / "last.safetensors")  # with the settings of the run that went on
    assert after.iteration == before.iteration == 2
    for one, other in ((before.tensors, after.tensors), (before.momentum, after.momentum)):
        assert list(one) == list(other) and all(np.array_equal(one[name], other[name]) for name in one)
    assert not list(run.glob("*.tmp*"))


@pytest.fixture(scope="module")
def one_prediction(trained, sample, tmp_path_factory):
    """What the prediction of one picture takes: peak of memory, and kernels and library calls."""
    folder = tmp_path_factory.mktemp("predicted")
    picture = sorted((sample / "imgs").glob("*.png"))[0]
    arguments = ["--weights", trained[0] / "last.safetensors", "--out", folder / "out", picture]
    done = jrdp("predict", *arguments, SOFTGPU_STATS=str(folder / "stats.json"))
    assert done.returncode == 0, done.stdout + done.stderr
    return counted(folder / "stats.json")


@pytest.mark.parametrize("failure, jobs", [("full", "1"), ("lost", "1"), ("lost", "2")])
def test_a_prediction_says_at_what(trained, one_prediction, sample, tmp_path, failure, jobs):
    run, _, _ = trained
    memory, launches = one_prediction
    pictures = sorted((sample / "imgs").glob("*.png"))[:2]
    arguments = ["--weights", run / "last.safetensors", "--out", tmp_path / "out", "--jobs", jobs, *pictures]
    variable, words = FAILURES[failure]
    value = {"full": str(memory), "lost": str(launches - 50)}[failure]
    larger = ["input.min_size=480", "input.max_size=640"] if failure == "full" else []  # the weights fit, this does not
    done = jrdp("predict", *arguments, settings=larger, **{variable: value})
    told_in_one_line(done, words, "with 1 picture of ")
    assert not (tmp_path / "out" / "predictions.json").exists()


def test_weights_that_do_not_fit(trained, sample, tmp_path):
    run, _, _ = trained
    picture = next((sample / "imgs").glob("*.png"))
    done = jrdp("predict", "--weights", run / "last.safetensors", "--out", tmp_path / "out", picture, SOFTGPU_MEMORY="100000000")
    told_in_one_line(done, "the GPU's memory is full", "MB more were wanted")
    assert not (tmp_path / "out").exists()
