"""The folder of a training: one process at a time, nothing of an earlier run lost, no rubbish left."""

import os
import signal

import numpy as np
import pytest
from typer.testing import CliRunner

from jrdp import files
from jrdp.cli import app
from jrdp.config import dump_config, load_config
from jrdp.engine.evaluate import folder_names
from jrdp.engine.growing_file import GrowingFile
from jrdp.engine.run_lock import run_lock
from jrdp.engine.weights import check_finite
from jrdp.errors import UserError


def test_a_second_training_into_one_folder_is_refused(tmp_path):
    with run_lock(tmp_path, False):
        with pytest.raises(UserError, match="another process is training"):
            with run_lock(tmp_path, True):
                pass
    with run_lock(tmp_path, False):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_processes_that_were_forked_meanwhile_hold_nothing_afterwards(tmp_path):
    def forked():
        child = os.fork()
        if child == 0:
            try:
                signal.pause()
            finally:
                os._exit(0)
        return child

    children = []
    try:
        with run_lock(tmp_path, False):
            children.append(forked())
        with run_lock(tmp_path, True):
            pass
        growing = GrowingFile(tmp_path / "test.partial.jsonl", {})
        growing.open()
        children.append(forked())
        growing.close()
        GrowingFile(tmp_path / "test.partial.jsonl", {}).open()
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def test_what_killed_runs_left_is_removed_and_the_rest_stays(tmp_path):
    left = (".last.safetensors.ab12cd3_", ".last.state-20.safetensors.abcdefgh", ".final.safetensors.abcdefgh")
    kept = ("last.safetensors", "last.state-20.safetensors", ".mine")
    for name in left + kept:
        (tmp_path / name).touch()
    with run_lock(tmp_path, True):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)


@pytest.mark.parametrize("name", ["log.jsonl", "config.yaml", "last.safetensors", "final.safetensors"])
def test_a_folder_with_anything_of_a_run_is_protected(tmp_path, name):
    from jrdp.config import Config
    from jrdp.engine.run_folder import open_run

    (tmp_path / name).write_text("precious")
    with pytest.raises(UserError, match="already holds a run"):
        open_run(Config(), tmp_path, False)


def test_what_was_killed_before_its_first_step_is_no_run(tmp_path):
    from jrdp.config import Config
    from jrdp.engine.run_folder import open_run

    (tmp_path / "config.yaml").write_text(dump_config(load_config()))
    (tmp_path / "log.jsonl").touch()
    assert open_run(Config(), tmp_path, False) is None
    (tmp_path / "log.jsonl").write_text("precious")
    with pytest.raises(UserError, match=r"already holds a run \(log.jsonl, config.yaml\)"):
        open_run(Config(), tmp_path, False)


def test_a_rank_that_comes_late_does_not_refuse_the_folder_of_its_own_run(tmp_path, monkeypatch):
    from jrdp.config import Config
    from jrdp.engine import distributed
    from jrdp.engine.run_folder import open_run

    for name in ("config.yaml", "log.jsonl", "tensorboard"):
        (tmp_path / name).write_text("written by rank 0 meanwhile")
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    assert open_run(Config(), tmp_path, False) is None


@pytest.mark.parametrize("name", ["curves.png", "best.safetensors", "eval", "validation", "tensorboard"])
def test_what_only_has_a_name_that_a_run_writes_to_is_not_replaced(tmp_path, name):
    from jrdp.config import Config
    from jrdp.engine.run_folder import open_run

    (tmp_path / name).write_text("precious")
    with pytest.raises(UserError, match=f"{tmp_path} holds {name}, which a training writes"):
        open_run(Config(), tmp_path, False)
    (tmp_path / name).rename(tmp_path / f"my_{name}")  # anything else may lie there
    assert open_run(Config(), tmp_path, False) is None


def test_folders_of_test_sets_are_unique():
    assert folder_names(["x/imgs:set/val.json", "y/imgs:set/val.json", "z:set_val.json", "z:SET_val.json"]) == [
        "set_val", "set_val_2", "set_val_3", "SET_val_4",
    ]


def test_weights_that_are_not_finite_are_named():
    check_finite({"a": np.ones(3, np.float32)}, "w.pth")
    for value in (np.nan, np.inf):
        with pytest.raises(UserError, match=r"w.pth: b holds NaN or infinity \(1 of 3"):
            check_finite({"a": np.ones(2, np.float32), "b": np.array([1, value, 2], np.float32)}, "w.pth")


def test_an_infinite_gradient_is_found_before_it_is_applied():
    import jittor as jt

    from jrdp.config import SolverConfig
    from jrdp.engine.solver import Solver

    good, bad = jt.array(np.ones(2, np.float32)), jt.array(np.zeros(2, np.float32))
    solver = Solver({"good": good, "bad": bad}, SolverConfig())
    solver.backward((good * 2).sum())
    assert solver.broken_gradients() == []
    solver.backward((good * 2).sum() + (bad * jt.array(np.float32([np.inf, 1]))).sum())
    assert solver.broken_gradients() == ["bad"]


@pytest.mark.parametrize("name, resume, goes_on", [("config.yaml", True, True), ("config.yaml", False, False), ("mine.yaml", True, False)])
def test_only_a_run_that_goes_on_may_write_its_own_configuration_anew(name, resume, goes_on, monkeypatch, tmp_path):
    monkeypatch.setattr(files, "_inputs", {})
    monkeypatch.setattr("jrdp.machine.runtime.start", lambda *_, **__: "cpu")
    monkeypatch.setattr("jrdp.engine.train.train", lambda config, out, resume: files.write_text(out / name, dump_config(config)))
    (tmp_path / name).write_text(dump_config(load_config()))
    arguments = ["train", "--config", str(tmp_path / name), "--set", "train.seed=3", "--out", str(tmp_path), *["--resume"][:resume]]
    done = CliRunner().invoke(app, arguments)
    assert (done.exit_code == 0) == goes_on and (goes_on or isinstance(done.exception, UserError))
    assert load_config(tmp_path / name).train.seed == (3 if goes_on else 1)
