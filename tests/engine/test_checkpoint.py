"""Checkpoints: whole after every kill, readable by any safetensors tool, and refused when they do not fit together."""

import json

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from jrdp.config import load_config
from jrdp.engine.checkpoint import load_checkpoint, save_checkpoint
from jrdp.errors import UserError


@pytest.fixture
def parts():
    rng = np.random.default_rng(0)
    tensors = {"a.weight": rng.normal(size=(3, 2)).astype("f4"), "a.bias": rng.normal(size=3).astype("f4")}
    momentum = {name: value * 2 for name, value in tensors.items()}
    return tensors, momentum, load_config(None, ["solver.base_lr=0.125"])


def test_everything_comes_back(tmp_path, parts):
    tensors, momentum, config = parts
    path = tmp_path / "last.safetensors"
    save_checkpoint(path, tensors, momentum, config, 7)
    found = load_checkpoint(path)
    assert found.iteration == 7 and found.config == config
    for name in tensors:
        assert np.array_equal(found.tensors[name], tensors[name])
        assert np.array_equal(found.momentum[name], momentum[name])
    assert set(load_file(str(path))) == set(tensors)  # by the library, without jrdp
    with safe_open(str(path), framework="np") as file:
        header = json.loads(file.metadata()["jrdp"])
    assert header["preprocessing"]["channel_order"] == "bgr" and header["preprocessing"]["stride_in_1x1"] is True
    assert header["iteration"] == 7 and header["format_version"] == 1 and "jrdp" in header["versions"]


def test_only_the_newest_state_is_kept(tmp_path, parts):
    path = tmp_path / "last.safetensors"
    for iteration in (1, 2, 3):
        save_checkpoint(path, *parts, iteration)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["last.safetensors", "last.state-3.safetensors"]


def test_killed_between_the_two_files_the_older_checkpoint_is_whole(tmp_path, parts):
    tensors, momentum, config = parts
    path = tmp_path / "last.safetensors"
    save_checkpoint(path, tensors, momentum, config, 1)
    weights = path.read_bytes()
    other = tmp_path / "other"
    other.mkdir()
    save_checkpoint(other / "last.safetensors", tensors, momentum, config, 2)
    (other / "last.state-2.safetensors").rename(tmp_path / "last.state-2.safetensors")  # written, and then killed
    assert path.read_bytes() == weights and load_checkpoint(path).iteration == 1


def test_what_cannot_be_resumed_says_so(tmp_path, parts):
    tensors, momentum, config = parts
    path = tmp_path / "last.safetensors"
    with pytest.raises(UserError, match="nothing to resume.*last.safetensors"):
        load_checkpoint(path)
    save_checkpoint(path, tensors, None, config, 5)
    with pytest.raises(UserError, match="weights only"):
        load_checkpoint(path)
    save_checkpoint(path, tensors, momentum, config, 5)
    state = tmp_path / "last.state-5.safetensors"
    whole = state.read_bytes()
    state.write_bytes(whole[:-8])
    with pytest.raises(UserError, match="last.state-5"):
        load_checkpoint(path)
    state.unlink()
    with pytest.raises(UserError, match="last.state-5.*missing"):
        load_checkpoint(path)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(UserError, match="last.safetensors"):
        load_checkpoint(path)


def test_what_else_a_run_keeps_comes_back_or_is_refused(tmp_path, parts):
    path = tmp_path / "last.safetensors"
    progress = {"best": {"iteration": 3, "ap": 0.25}, "loss_scale": {"value": 512.0, "steps": 4}}
    save_checkpoint(path, *parts, 7, progress)
    assert load_checkpoint(path).progress == progress
    save_checkpoint(path, *parts, 7)
    assert load_checkpoint(path).progress == {}
    for odd in ({"best": 3}, {"best": {"ap": 1}}, {"best": {"iteration": "3", "ap": 1}}, {"other": {}}):
        save_checkpoint(path, *parts, 7, odd)
        with pytest.raises(UserError, match="its header is damaged: progress"):
            load_checkpoint(path)
