"""A test during training that fails loses no iteration: what came before it is saved, and `--resume` repeats the test."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file
from test_train_from_python import sample as small_sample
from test_train_from_python import settings

import jrdp
from jrdp.engine import train as training
from jrdp.engine.checkpoint import load_checkpoint
from jrdp.engine.log import TrainingLog, read_log
from jrdp.engine.steps import Step
from jrdp.errors import UserError

sample = small_sample  # a fixture of this file, too


@pytest.fixture(scope="module")
def config(sample):
    return settings(sample, 4, "train.eval_period=1", "train.checkpoint_period=100", f"data.test=[{sample}/imgs:{sample}/val.json]")


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    return out, jrdp.train(config, out, device="cpu")


def records(out):
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def assert_same(out, whole):
    assert records(out) == records(whole)
    for name in ("best", "last", "final", "last.state-4"):
        one, other = (load_file(str(folder / f"{name}.safetensors")) for folder in (out, whole))
        assert list(one) == list(other) and all(np.array_equal(one[key], other[key]) for key in one), name
    progress = [load_checkpoint(folder / "last.safetensors").progress for folder in (out, whole)]
    assert progress[0] == progress[1]


def failing_at(monkeypatch, number, error):
    """Let the test of this number raise after it has written its results."""
    validate, calls = training.validate, []

    def fail(*arguments):
        calls.append(validate(*arguments))
        if len(calls) == number:
            raise error
        return calls[-1]

    monkeypatch.setattr(training, "validate", fail)
    return calls


@pytest.mark.parametrize("number", [1, 3])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), UserError("cannot read 3.png: it is cut off")])
def test_what_came_before_a_failed_test_is_kept_and_the_test_repeated(config, whole, tmp_path, monkeypatch, number, error):
    out = tmp_path / "run"
    with monkeypatch.context() as patched, pytest.raises(type(error)) as raised:
        failing_at(patched, number, error)
        jrdp.train(config, out, device="cpu")
    assert raised.value is error
    assert load_checkpoint(out / "last.safetensors").iteration == number
    assert ["metrics" in line for line in records(out)] == [True] * (number - 1) + [False]
    calls = failing_at(monkeypatch, 100, error)
    assert jrdp.train(config, out, device="cpu", resume=True) == whole[1]
    assert len(calls) == 4 - number + 1
    assert_same(out, whole[0])


@pytest.mark.parametrize("period", [1, None])
def test_a_failed_closing_test_leaves_the_finished_weights_and_says_so(config, whole, tmp_path, monkeypatch, capsys, period):
    out = tmp_path / "run"
    config = config.model_copy(update={"train": config.train.model_copy(update={"eval_period": period})})
    with monkeypatch.context() as patched, pytest.raises(UserError) as raised:
        failing_at(patched, 4 if period else 1, UserError("the disk is full"))
        jrdp.train(config, out, device="cpu")
    safe = f"; the training itself is done, its weights are {out}/final.safetensors: --resume repeats the closing test alone"
    assert str(raised.value) == "the disk is full" + safe
    assert f"weights: {out}/final.safetensors" in capsys.readouterr().out and (out / "curves.png").exists()
    calls = failing_at(monkeypatch, 100, None)
    assert jrdp.train(config, out, device="cpu", resume=True)["metrics"] == whole[1]["metrics"]
    assert len(calls) == 1
    if period:
        assert_same(out, whole[0])
    else:
        assert not any("metrics" in line for line in records(out)) and not (out / "best.safetensors").exists()


@pytest.mark.parametrize("place", ["_save", "add_metrics"])
def test_stopped_between_a_test_and_its_line_in_the_log_a_run_goes_on_the_same(config, whole, tmp_path, monkeypatch, place):
    """As a kill would leave it: with the new `best.safetensors` alone, and with all but the line."""
    out = tmp_path / "run"
    owner = training._Run if place == "_save" else TrainingLog
    done, calls = getattr(owner, place), []

    def stop(self, name, *more):
        calls.append(name)
        if place == "add_metrics" or calls == ["last", "best", "last"]:  # before the test, and after it
            raise KeyboardInterrupt
        done(self, name, *more)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(owner, place, stop)
        jrdp.train(config, out, device="cpu")
    assert "metrics" not in records(out)[0] and (out / "best.safetensors").exists()
    jrdp.train(config, out, device="cpu", resume=True)
    assert_same(out, whole[0])


def test_a_line_of_the_log_that_the_disk_has_no_room_for_is_as_it_was(tmp_path):
    class Full:
        """A file that takes five more bytes at most, and then refuses."""

        def __init__(self, file):
            self.file, self.room = file, 5

        def __getattr__(self, name):
            return getattr(self.file, name)

        def write(self, data):
            if self.room == 0 and len(data) > 2:
                raise OSError(28, "No space left on device")
            written = self.file.write(data[: max(self.room, 2)])
            self.room = 0
            return written

    step = Step(1, 0.1, {"loss": 1.0}, 0.5)
    with TrainingLog(tmp_path / "log.jsonl", 0) as log:
        log.write(step)
        before = (tmp_path / "log.jsonl").read_bytes()
        file, log._file = log._file, Full(log._file)
        with pytest.raises(OSError):
            log.add_metrics({"a": {"segm": {"AP": 0.5}}})
        assert (tmp_path / "log.jsonl").read_bytes() == before
        log._file = Full(file)
        with pytest.raises(OSError):
            log.write(step._replace(iteration=2))
        assert (tmp_path / "log.jsonl").read_bytes() == before
        log._file = file
        log.add_metrics({"a": {"segm": {"AP": 0.5}}})
        log.write(step._replace(iteration=2))
    first, second = read_log(tmp_path / "log.jsonl")
    assert first["metrics"] == {"a": {"segm": {"AP": 0.5}}} and "metrics" not in second and second["iteration"] == 2


def test_what_fails_before_the_first_step_leaves_nothing_of_tensorboard(config, tmp_path, monkeypatch):
    pytest.importorskip("tensorboardX")
    config = config.model_copy(update={"train": config.train.model_copy(update={"tensorboard": True})})

    def broken(*_):
        raise UserError("cannot read 1.png")

    with monkeypatch.context() as patched, pytest.raises(UserError):
        patched.setattr(training, "training_steps", lambda *_: (broken() for _ in range(1)))
        jrdp.train(config, tmp_path / "run", device="cpu")
    assert list((tmp_path / "run").iterdir()) == []
    jrdp.train(config, tmp_path / "run", device="cpu")
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))
