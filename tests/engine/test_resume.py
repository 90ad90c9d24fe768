"""A training run that is killed and resumed ends as one that was left alone: on a CPU with the same bits."""

import json
import signal
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file

import jrdp
from jrdp.config import load_config
from jrdp.dataset_tools.sample import write_sample
from jrdp.engine.checkpoint import load_checkpoint
from jrdp.machine import runtime
from jrdp.machine.processor import bfloat16_instructions

SETTINGS = [
    "input.min_size=64",
    "input.max_size=96",
    "solver.batch_size=2",
    "solver.warmup_iterations=2",
    "train.checkpoint_period=2",
    "train.log_period=1",
    "model.backbone.freeze_at=0",
    "data.test=[]",
]


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sample")
    write_sample(folder, train=6, val=2, seed=3)
    return folder


def command(sample, out, *more, device="cpu", iterations=6):
    settings = [*SETTINGS, f"solver.max_iterations={iterations}", f"solver.steps=[{iterations - 1}]"]
    settings.append(f"data.train=[{sample}/imgs:{sample}/train.json]")
    arguments = [argument for setting in settings for argument in ("--set", setting)]
    return [sys.executable, "-m", "jrdp", "train", "--device", device, "--out", str(out), *arguments, *more]


def resume(out, device="cpu"):
    """With the configuration that the checkpoint holds; returns the iteration that it resumes after."""
    told = run([sys.executable, "-m", "jrdp", "train", "--device", device, "--out", str(out), "--resume"])
    (line,) = [line for line in told.splitlines() if line.startswith("resuming after iteration")]
    return int(line.split()[-1])


def run(arguments):
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def log_of(out):
    records = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]


# `jrdp` of the other arguments, which gets the signal right after the log's line of the iteration.
SIGNALLED = """
import os, signal, sys
from jrdp import cli
from jrdp.engine.log import TrainingLog

write, last, number = TrainingLog.write, int(sys.argv.pop(1)), int(sys.argv.pop(1))

def write_and_signal(log, step):
    write(log, step)
    if step.iteration == last:
        os.kill(os.getpid(), number)

TrainingLog.write = write_and_signal
cli.main()
"""


def signal_after(arguments, iteration, number=signal.SIGKILL):
    """Run a command of `command`, sent a signal once its log has reached `iteration`; returns the ended process.

    From outside, a run of so few iterations can be over before a busy machine notices the line that it waits for.
    """
    python, _, _, *words = arguments
    words = [python, "-c", SIGNALLED, str(iteration), str(int(number)), *words]
    done = subprocess.run(words, capture_output=True, text=True, timeout=600)
    assert number != signal.SIGKILL or done.returncode == -signal.SIGKILL, done.stdout + done.stderr
    return done


ENGINES = ["train.engine=plain", "train.engine=fast", "train.precision=bfloat16"]
# What makes a step of several parts, and stands between steps: each leaves other work for Jittor to put off.
BETWEEN = "solver.accumulate=2 solver.clip_norm=1.0 train.eval_period=1 data.workers=2 data.hue=0.1"


@pytest.mark.parametrize("setting", [*ENGINES, BETWEEN])
def test_killed_and_resumed_equals_uninterrupted(sample, tmp_path, setting):
    if setting == "train.precision=bfloat16" and bfloat16_instructions(runtime.prepare().onednn.home) is None:
        pytest.skip("this processor has neither AMX nor AVX512_BF16")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    chosen = [argument for each in setting.split() for argument in ("--set", each)]
    if setting == BETWEEN:
        chosen += ["--set", f"data.test=[{sample}/imgs:{sample}/val.json]"]
    run(command(sample, whole, *chosen))
    signal_after(command(sample, killed, *chosen), 3)
    assert not (killed / "final.safetensors").exists()
    assert resume(killed) == 2
    assert log_of(killed) == log_of(whole)
    assert [record["iteration"] for record in log_of(whole)] == [1, 2, 3, 4, 5, 6]
    one, other = load_file(str(whole / "final.safetensors")), load_file(str(killed / "final.safetensors"))
    assert list(one) == list(other)
    differing = [name for name in one if not np.array_equal(one[name], other[name])]
    assert not differing
    moved = load_file(str(whole / "last.state-6.safetensors")), load_file(str(killed / "last.state-6.safetensors"))
    assert all(np.array_equal(moved[0][name], moved[1][name]) for name in moved[0])

    if setting != "train.engine=plain":
        return
    # A run that came to its end goes on to a later one as if it had been asked for that at first; not to an earlier one.
    longer = tmp_path / "longer"
    told = run(command(sample, longer, "--set", "solver.max_iterations=4")).splitlines()
    weights = longer / "final.safetensors"
    assert told[-2].startswith(f"test:    jrdp test --weights {weights} --out {longer / 'test'} --set 'data.test=[IMAGES")
    assert told[-1] == f"predict: jrdp predict --weights {weights} --out {longer / 'pictures'} PHOTO_OR_FOLDER"
    run(command(sample, longer, "--resume"))
    assert log_of(longer) == log_of(whole)
    last = load_file(str(weights))
    assert all(np.array_equal(one[name], last[name]) for name in one)
    shorter = subprocess.run(
        command(sample, longer, "--resume", iterations=6) + ["--set", "solver.max_iterations=5"],
        capture_output=True, text=True, timeout=600,
    )
    assert shorter.returncode == 2 and "solver.max_iterations" in shorter.stderr

    # Negative control: another seed orders and flips the pictures differently, and must not give the same bits.
    other_seed = tmp_path / "other"
    run(command(sample, other_seed, "--seed", "2", "--set", "solver.max_iterations=2", "--set", "solver.steps=[2]"))
    assert log_of(other_seed)[1]["loss"] != log_of(whole)[1]["loss"]

    # The same folder again, and resuming with other settings, are refused before anything is touched.
    before = (whole / "final.safetensors").stat().st_mtime_ns
    again = subprocess.run(command(sample, whole), capture_output=True, text=True, timeout=600)
    changed = subprocess.run(
        command(sample, whole, "--resume", "--set", "solver.base_lr=0.1"), capture_output=True, text=True, timeout=600
    )
    assert again.returncode == changed.returncode == 2
    assert "--resume" in again.stderr and "solver.base_lr" in changed.stderr
    assert (whole / "final.safetensors").stat().st_mtime_ns == before


def test_stopped_by_a_signal_it_is_put_down_and_can_be_resumed(sample, tmp_path):
    done = signal_after(command(sample, tmp_path, "--set", "data.workers=2"), 3, signal.SIGTERM)
    assert done.returncode == 143 and done.stderr.endswith("jrdp: stopped by SIGTERM\n"), done.stdout + done.stderr
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["config.yaml", "last.safetensors", "last.state-2.safetensors", "log.jsonl"]
    assert resume(tmp_path) == 2 and (tmp_path / "final.safetensors").exists()


LOSS_TOLERANCE = 0.02  # relative, of the total loss of any iteration
WAY_TOLERANCE = 0.05  # distance of the parameters at the end, over the way travelled


def way_apart(one, other, start):
    """Distance of two networks' tensors over the distance that the first has come from `start`."""
    first, second, begin = (load_file(str(out / "final.safetensors")) for out in (one, other, start))
    apart = sum(np.square(first[name].astype(np.float64) - second[name]).sum() for name in first)
    travelled = sum(np.square(first[name].astype(np.float64) - begin[name]).sum() for name in first)
    return float(np.sqrt(apart / travelled))


def resumed_on(device, sample, folder, iterations):
    """(worst relative loss difference, distance of the parameters, that of a run with other data) of a resumed run."""
    whole, killed, start, other = (folder / name for name in ("whole", "killed", "start", "other"))
    slow = ["--set", "solver.base_lr=0.0001"]  # from scratch, the recipe's rate diverges, and a higher one magnifies rounding
    run(command(sample, whole, *slow, device=device, iterations=iterations))
    standing = ["--set", "solver.base_lr=1e-30", "--set", "solver.max_iterations=1", "--set", "solver.steps=[1]"]
    run(command(sample, start, *standing, device=device, iterations=iterations))
    run(command(sample, other, "--set", "data.flip_probability=0", *slow, device=device, iterations=iterations))
    signal_after(command(sample, killed, *slow, device=device, iterations=iterations), 3)
    assert not (killed / "final.safetensors").exists()
    assert resume(killed, device) == 2
    pairs = list(zip(log_of(whole), log_of(killed)))
    assert [a["iteration"] for a, _ in pairs] == list(range(1, iterations + 1)) == [b["iteration"] for _, b in pairs]
    worst = max(abs(a["loss"] - b["loss"]) / a["loss"] for a, b in pairs)
    return worst, way_apart(whole, killed, start), way_apart(whole, other, start)


@pytest.mark.gpu
def test_resumed_on_a_gpu_ends_near_the_uninterrupted_run(sample, tmp_path, record_property):
    """Jittor has no switch for determinism on a GPU (sums by atomics, cuDNN's algorithms chosen by their time).

    The runs are short, because a network that starts from scratch magnifies the last bit of a sum ten- to several
    hundredfold in every iteration, by the boxes it chooses: eight iterations after the resumption, at twice the rate and
    with each kernel's blocks in another random order, the losses of two right runs were 20 % apart.
    """
    loss, way, other_way = resumed_on("cuda", sample, tmp_path, 6)
    record_property("worst loss difference", loss)
    record_property("parameters apart", way)
    record_property("parameters apart with other data", other_way)
    assert loss <= LOSS_TOLERANCE and way <= WAY_TOLERANCE
    assert other_way > WAY_TOLERANCE, "the tolerance would let any run pass"


def test_a_run_that_goes_on_with_other_pictures_says_so(sample, tmp_path):
    (tmp_path / "imgs").symlink_to(sample / "imgs")
    data = json.loads((sample / "train.json").read_text())
    (tmp_path / "train.json").write_text(json.dumps(data))
    run(command(tmp_path, tmp_path / "run", iterations=2))
    longer = [sys.executable, "-m", "jrdp", "train", "--device", "cpu", "--out", str(tmp_path / "run"), "--resume", "--set"]
    assert "resuming after iteration 2\n" in run([*longer, "solver.max_iterations=3"])
    gone = data["images"].pop()["id"]
    data["annotations"] = [annotation for annotation in data["annotations"] if annotation["image_id"] != gone]
    (tmp_path / "train.json").write_text(json.dumps(data))
    told = run([*longer, "solver.max_iterations=4"])
    assert "resuming after iteration 3; not as if it had never stopped" in told and "(6 then, 5 now)" in told


TINY = [
    "model.fcos.channels=32", "model.pyramid.enhancement=none", "data.workers=0", "solver.base_lr=0.001", "solver.steps=[100]",
]  # fmt: skip


def tiny(sample, backbone, iterations, *more):
    """The configuration of a training that takes seconds."""
    data = f"data.train=[{sample}/imgs:{sample}/train.json]"
    size = f"solver.max_iterations={iterations}"
    return load_config(None, [*SETTINGS, *TINY, f"model.backbone.name=tiny_parts:{backbone}", data, size, *more])


def stop_at(iteration):
    def stop(step):
        if step.iteration == iteration:
            raise KeyboardInterrupt

    return stop


def test_a_part_that_draws_random_numbers_draws_the_same_when_resumed(sample, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    config = tiny(sample, "Dropped", 4, "solver.accumulate=2")
    jrdp.train(config, whole, device="cpu")
    with pytest.raises(KeyboardInterrupt):
        jrdp.train(config, killed, device="cpu", on_step=stop_at(2))
    jrdp.train(config, killed, device="cpu", resume=True)
    assert log_of(killed) == log_of(whole)
    jrdp.train(tiny(sample, "Tiny", 1, "solver.accumulate=2"), tmp_path / "tiny", device="cpu")
    assert log_of(tmp_path / "tiny")[0]["loss"] != log_of(whole)[0]["loss"], "nothing was dropped"


def test_what_a_resumed_run_was_asked_for_is_kept_before_its_first_checkpoint(sample, tmp_path):
    jrdp.train(tiny(sample, "Tiny", 2), tmp_path / "run", device="cpu")
    before = load_checkpoint(tmp_path / "run" / "last.safetensors")
    more = ["train.checkpoint_period=50", "train.log_period=7"]
    with pytest.raises(KeyboardInterrupt):
        jrdp.train(tiny(sample, "Tiny", 5, *more), tmp_path / "run", device="cpu", resume=True, on_step=stop_at(3))
    after = load_checkpoint(tmp_path / "run" / "last.safetensors")
    assert after.iteration == 2 and after.progress == before.progress
    assert after.config == load_config(tmp_path / "run" / "config.yaml") == tiny(sample, "Tiny", 5, *more)
    for one, other in ((before.tensors, after.tensors), (before.momentum, after.momentum)):
        assert list(one) == list(other) and all(np.array_equal(one[name], other[name]) for name in one)
