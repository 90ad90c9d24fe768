"""`compare gradients` and `compare training` on trained weights and photographs, small pictures.

Needs the folder `shared` and a Python with torch (this one, or the one in JRDP_TWIN_PYTHON).
"""

from __future__ import annotations

import json

import pytest
from twin_python import TWIN_PYTHON

from jrdp.comparison.gradients import compare_gradients
from jrdp.comparison.pair import NEGATIVE_CONTROLS, Options
from jrdp.comparison.training import compare_training

DATASETS = ["ecssd/imgs:ecssd/train.json", "coco_salient/imgs:coco_salient/train.json"]


@pytest.fixture
def options(shared, both_frameworks):
    def make(seed: int, **values) -> Options:
        settings = [f"data.root={shared / 'data'}", "input.min_size=96", "input.max_size=144"]
        weights = shared / "weights" / "small_cpu_half.safetensors"
        return Options(settings=settings, weights=weights, twin_python=TWIN_PYTHON, seed=seed, **values)

    return make


def report_of(folder):
    return json.loads((folder / "report.json").read_text())


@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_gradients_agree_once_the_decisions_do(options, tmp_path, seed):
    lines = []
    assert compare_gradients(options(seed), DATASETS, tmp_path, print_line=lines.append), "\n".join(lines)
    report = report_of(tmp_path)
    worst = {name: value["worst"] for name, value in report["summary"].items()}
    assert worst["worst element over the largest, Jittor"] < 1e-4
    assert worst["worst element over the largest, PyTorch"] > 0
    assert len(report["gradients"]) == 157
    assert report["imposed"]["checks"]["positives"] > 0


@pytest.mark.parametrize("control", sorted(NEGATIVE_CONTROLS))
def test_every_negative_control_is_caught(options, tmp_path, control):
    assert not compare_gradients(
        options(1, negative_control=control), DATASETS, tmp_path, print_line=lambda line: None
    )
    words = "from the same maps" if control in ("nms-without-one", "sqrt-score") else ""
    assert any(words in failure for failure in report_of(tmp_path)["failures"])


def test_training_agrees_and_a_control_is_caught(options, tmp_path):
    lines = []
    assert compare_training(options(5), DATASETS, tmp_path / "right", steps=3, print_line=lines.append), "\n".join(lines)
    report = report_of(tmp_path / "right")
    assert len(report["steps"]) == 3 and report["parameters"]["travelled"] > 0
    wrong = options(5, negative_control="group-norm-eps")
    assert not compare_training(wrong, DATASETS, tmp_path / "wrong", steps=1, print_line=lambda line: None)
