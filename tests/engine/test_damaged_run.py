"""Damage in what a run has written itself: headers of checkpoints, lines of the log."""

import json

import numpy as np
import pytest

from jrdp import interchange
from jrdp.config import Config
from jrdp.engine.checkpoint import load_checkpoint, save_checkpoint
from jrdp.engine.curves import plot_curves
from jrdp.engine.log import TrainingLog, read_log
from jrdp.engine.weights import config_of
from jrdp.errors import UserError
from jrdp.interchange.layout import backbone_layout

ODD = [None, True, -1, 1e308, 10**30, "x", "", [], {}, [[1]], float("nan"), "\ud800", "../../x", "\0", ["a", "b", "c"]]


def keys(values, prefix=()):
    for key, value in values.items():
        yield (*prefix, key)
        if isinstance(value, dict):
            yield from keys(value, (*prefix, key))


def test_no_header_breaks_the_reader(tmp_path):
    """Every value of the header becomes every odd one: what is refused is refused in a line."""
    tensors = {entry.name: np.zeros(entry.shape, np.float16) for entry in backbone_layout("r50")[:3]}
    path = tmp_path / "last.safetensors"
    save_checkpoint(path, tensors, {"backbone.body.stem.conv1.weight": np.zeros(3, np.float32)}, Config(), 3)
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header, body = json.loads(whole[8 : 8 + length]), whole[8 + length :]
    native = json.loads(header["__metadata__"]["jrdp"])
    refusals = 0
    for place in keys(native):
        for value in ODD:
            changed = json.loads(json.dumps(native))
            section = changed
            for key in place[:-1]:
                section = section[key]
            section[place[-1]] = value
            header["__metadata__"]["jrdp"] = json.dumps(changed)
            text = json.dumps(header).encode()
            path.write_bytes(len(text).to_bytes(8, "little") + text + body)
            for read in (load_checkpoint, lambda path: config_of(interchange.read(path), None, [])):
                try:
                    read(path)
                except UserError as error:
                    refusals += 1
                    assert "\n" not in str(error), (place, value)
    assert refusals > 500


LINE = {"iteration": 1, "lr": 0.1, "loss": 1.0, "loss_cls": 1.0, "loss_reg": 1.0, "loss_centerness": 1.0, "loss_mask": 1.0,
        "seconds": 0.1}  # fmt: skip


def test_odd_lines_of_a_log_are_dropped_on_resuming(tmp_path):
    path = tmp_path / "log.jsonl"
    odd = [
        {**LINE, "iteration": "2"}, {**LINE, "iteration": True}, {**LINE, "iteration": 1e400}, {**LINE, "loss": None},
        {**LINE, "lr": "0.1"}, {"iteration": 1}, {**LINE, "iteration": 10**40}, [1], 3, None,
    ]  # fmt: skip
    lines = [json.dumps(LINE), *map(json.dumps, odd), "{", "", "\0\0\0", "[" * 5000, json.dumps({**LINE, "iteration": 2})]
    path.write_bytes("\n".join([*lines, json.dumps({**LINE, "iteration": 3})]).encode() + b"\n\xff\xfe\n")
    TrainingLog(path, first=2)
    assert [json.loads(line)["iteration"] for line in path.read_text().splitlines()] == [1, 2]
    assert read_log(path) == [LINE, {**LINE, "iteration": 2}]
    plot_curves(path, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_a_log_that_is_no_file_is_refused(tmp_path):
    import os

    os.mkfifo(tmp_path / "log.jsonl")
    with pytest.raises(UserError, match="named pipe"):
        TrainingLog(tmp_path / "log.jsonl", first=1)
