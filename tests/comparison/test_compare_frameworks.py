"""`jrdp compare` end to end: both frameworks in their processes, small pictures, synthetic weights.

The Python that has torch is this one, or the one in JRDP_TWIN_PYTHON.
"""

from __future__ import annotations

import importlib.util
import json
import sys

import numpy as np
import pytest
from PIL import Image
from twin_python import TWIN_PYTHON

from jrdp import interchange
from jrdp.comparison import process
from jrdp.comparison.gradients import compare_gradients
from jrdp.comparison.layers import compare_layers
from jrdp.comparison.pair import NEGATIVE_CONTROLS, Options, open_pair
from jrdp.comparison.process import Worker
from jrdp.comparison.timing.speed import compare_speed
from jrdp.comparison.training import compare_training
from jrdp.errors import UserError

SMALL = ["input.min_size=96", "input.max_size=128", "solver.batch_size=2"]


@pytest.fixture
def picture(tmp_path):
    y, x = np.mgrid[:100, :140]
    pixels = np.stack([x % 256, (x * y // 40) % 256, 255 * ((x - 70) ** 2 + (y - 50) ** 2 < 900)], axis=2)
    Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def options(**values):
    return Options(settings=SMALL, twin_python=TWIN_PYTHON, **values)


def report_of(folder):
    return json.loads((folder / "report.json").read_text())


def silent(line):
    pass


def test_layers_agree_and_a_changed_tensor_is_named(both_frameworks, picture, tmp_path, golden, seeded):
    from safetensors.numpy import save_file

    state = seeded("r50")
    save_file(state, str(tmp_path / "right.safetensors"))
    state["backbone.fpn.att_block_3.weight"] = state["backbone.fpn.att_block_3.weight"].copy()
    state["backbone.fpn.att_block_3.weight"][0, 0, 1, 1] += 1
    save_file(state, str(tmp_path / "changed.safetensors"))

    # The twin reads the .pth with torch itself: the return trip of weights from Jittor.
    interchange.write(tmp_path / "right.pth", interchange.read(tmp_path / "right.safetensors"), legacy=True)
    right = options(weights=tmp_path / "right.safetensors", twin_weights=tmp_path / "right.pth")
    assert compare_layers(right, [picture], tmp_path / "same", print_line=silent)
    report = report_of(tmp_path / "same")
    assert len(report["stages"]) >= 48 and max(s["relative_l2"] for s in report["stages"]) < 1e-4

    changed = options(weights=tmp_path / "right.safetensors", twin_weights=tmp_path / "changed.safetensors")
    assert not compare_layers(changed, [picture], tmp_path / "changed", print_line=silent)
    report = report_of(tmp_path / "changed")
    assert report["failures"][0].startswith("first stage over tolerance: att_logit_P6 ")
    assert report["differing_tensors"] == ["backbone.fpn.att_block_3.weight"]


@pytest.mark.parametrize("control,stage", [("rgb", "stem"), ("aligned", "mask_roi_1")])
def test_negative_controls_are_caught(both_frameworks, picture, tmp_path, control, stage):
    wrong = options(negative_control=control)
    assert not compare_layers(wrong, [picture], tmp_path / "out", print_line=silent)
    assert report_of(tmp_path / "out")["failures"][0].startswith(f"first stage over tolerance: {stage} ")


@pytest.mark.parametrize("backbone", ["r101", "x101"])
def test_the_larger_backbones_on_a_photograph(both_frameworks, shared, seeded, tmp_path, backbone):
    from safetensors.numpy import save_file

    save_file(seeded(backbone), str(tmp_path / "weights.safetensors"))
    photograph = sorted((shared / "data").glob("*/imgs/*.jpg"))[200]
    larger = Options(
        settings=[*SMALL, f"model.backbone.name={backbone}"],
        weights=tmp_path / "weights.safetensors",
        twin_python=TWIN_PYTHON,
    )
    passed = compare_layers(larger, [photograph], tmp_path / "out", print_line=silent)
    report = report_of(tmp_path / "out")
    assert passed, report["failures"]
    assert len(report["stages"]) >= 48


def test_speed_alternates_and_reports(both_frameworks, picture, tmp_path):
    assert compare_speed(options(), [picture], tmp_path / "out", rounds=2, print_line=silent)
    report = report_of(tmp_path / "out")
    parts = {row["part"]: row for row in report["parts"]}
    names = {"backbone", "pyramid", "dense pyramid", "head", "boxes", "masks", "paste", "network", "detect"}
    assert names == set(parts)
    for part, seconds in report["seconds"].items():
        assert len(seconds["jittor"]) == len(seconds["torch"]) == 2 and min(seconds["jittor"]) > 0
        assert parts[part]["least"] <= parts[part]["ratio"] <= parts[part]["most"]
    assert report["memory_mib"]["jittor"]["process"] > 100
    assert not compare_speed(options(), [picture], tmp_path / "slow", rounds=1, most=1e-6, print_line=silent)


def test_gradients_and_training(both_frameworks, tmp_path):
    assert compare_gradients(options(), ["sample"], tmp_path / "gradients", print_line=silent)
    report = report_of(tmp_path / "gradients")
    assert len(report["gradients"]) > 100
    assert report["summary"]["relative L2 from float64, Jittor"]["worst"] < 1e-3

    assert compare_training(options(), ["sample"], tmp_path / "training", steps=2, print_line=silent)
    report = report_of(tmp_path / "training")
    assert len(report["steps"]) == 2 and report["parameters"]["travelled"] > 0


def test_a_worker_that_cannot_start_is_one_clear_line(tmp_path):
    with pytest.raises(UserError, match="cannot start"):
        Worker("torch", str(tmp_path / "no-python"), tmp_path)
    (tmp_path / "broken").write_text("#!/bin/sh\necho no such library >&2\nexit 3\n")
    (tmp_path / "broken").chmod(0o755)
    with Worker("torch", str(tmp_path / "broken"), tmp_path) as worker:
        with pytest.raises(UserError, match="no such library"):
            worker.ask("memory")


def test_a_worker_that_is_killed_is_told_from_one_that_fails(tmp_path):
    (tmp_path / "killed").write_text("#!/bin/sh\nread line\necho a warning >&2\nkill -9 $$\n")
    (tmp_path / "killed").chmod(0o755)
    with Worker("torch", str(tmp_path / "killed"), tmp_path) as worker:
        with pytest.raises(UserError, match="killed, as the system does when memory runs out"):
            worker.ask("memory")


def test_who_waits_long_is_told_what_for(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(process, "PATIENCE", 0.2)
    words = "read line\nsleep 0.5\necho compiling >&2\nsleep 0.7\necho compiled >&2\nsleep 0.5\necho '{\"result\": 7}'\nread line\nsleep 0.5\n"
    (tmp_path / "slow").write_text(f"#!/bin/sh\n{words}echo '{{\"result\": 8}}'\n")
    (tmp_path / "slow").chmod(0o755)
    with Worker("jittor", str(tmp_path / "slow"), tmp_path) as worker:
        assert worker.ask("gradients") == 7
        assert capsys.readouterr().err.splitlines() == [
            "jrdp: waiting for jittor (gradients; what is new to this machine is compiled once) ...",
            "jrdp: jittor: compiling",
            "jrdp: jittor: compiled",
        ]
        assert worker.ask("gradients") == 8
        assert capsys.readouterr().err == ""


def test_a_pair_needs_torch_and_says_so():
    if importlib.util.find_spec("torch") is not None:
        pytest.skip("this Python has torch")
    with pytest.raises(UserError, match="--twin-python"):
        with open_pair(Options(twin_python=sys.executable)):
            pass


def test_the_twin_stays_on_the_device_it_is_given():
    assert Options(device="cuda").checked().device_of_twin == "cuda"
    assert Options(device="cuda", twin_device="cpu").checked().device_of_twin == "cpu"


def test_unknown_words_are_refused():
    for word in ("device", "twin_device", "precision", "engine", "negative_control"):
        with pytest.raises(UserError, match="choose"):
            Options(**{word: "nonsense"}).checked()
    assert {"rgb", "aligned", "nms-without-one", "sqrt-score", "group-norm-eps"} == set(NEGATIVE_CONTROLS)
