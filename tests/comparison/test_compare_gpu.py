"""`jrdp compare` with Jittor on a GPU and the PyTorch twin on the CPU: small pictures, synthetic weights."""

import json

import pytest
from PIL import Image
from twin_python import TWIN_PYTHON

from jrdp.comparison.gradients import compare_gradients
from jrdp.comparison.layers import compare_layers
from jrdp.comparison.pair import Options
from jrdp.comparison.timing.speed import compare_speed
from jrdp.comparison.training import compare_training
from jrdp.dataset_tools.sample import write_sample

pytestmark = [pytest.mark.gpu, pytest.mark.gpu_once]

SMALL = ["input.min_size=64", "input.max_size=96", "solver.batch_size=1", "model.fcos.post_nms_top_n=10"]


def options(**values):
    return Options(settings=SMALL, twin_python=TWIN_PYTHON, device="cuda", twin_device="cpu", **values)


def report_of(folder):
    return json.loads((folder / "report.json").read_text())


def test_layers_and_a_mistake_of_the_twin(both_frameworks, tmp_path):
    Image.radial_gradient("L").convert("RGB").save(tmp_path / "picture.png")
    said = []
    assert compare_layers(options(), [tmp_path / "picture.png"], tmp_path / "same", print_line=said.append), said
    assert len(report_of(tmp_path / "same")["stages"]) >= 48
    wrong = options(negative_control="aligned")
    assert not compare_layers(wrong, [tmp_path / "picture.png"], tmp_path / "wrong", print_line=said.append)
    assert report_of(tmp_path / "wrong")["failures"][0].startswith("first stage over tolerance: mask_roi_1 ")


def test_gradients_and_training(both_frameworks, tmp_path):
    sample = write_sample(tmp_path / "sample", train=2, val=1)
    data, said = [f"{sample.images}:{sample.train}"], []
    assert compare_gradients(options(), data, tmp_path / "gradients", print_line=said.append), said
    assert len(report_of(tmp_path / "gradients")["gradients"]) > 100
    assert compare_training(options(), data, tmp_path / "training", steps=2, print_line=said.append), said
    report = report_of(tmp_path / "training")
    assert len(report["steps"]) == 2 and report["parameters"]["travelled"] > 0


def test_gradients_in_tf32_within_the_tolerances_of_the_check(both_frameworks, tmp_path):
    """As `scripts/gpu_check.sh parity_fast` asks for them."""
    sample = write_sample(tmp_path / "sample", train=2, val=1)
    loose, said = {"loss_tolerance": 1e-2, "norm_tolerance": 3e-2, "element_tolerance": 1e-1}, []
    data = [f"{sample.images}:{sample.train}"]
    assert compare_gradients(options(tf32=True), data, tmp_path / "out", **loose, print_line=said.append), said


def test_speed_with_the_training_step(both_frameworks, tmp_path):
    """Every part runs on both sides; the report says on which device each, and what of the card's memory was taken."""
    Image.radial_gradient("L").convert("RGB").save(tmp_path / "picture.png")
    said = []
    assert compare_speed(options(threads=1), [tmp_path / "picture.png"], tmp_path, rounds=1, training=True, print_line=said.append)
    report = report_of(tmp_path)
    assert "device cuda and the twin on cpu" in report["conditions"]
    assert {"backbone", "paste", "network", "detect", "training step"} <= set(report["seconds"])
    assert all(len(took) == 1 and took[0] > 0 for part in report["seconds"].values() for took in part.values() if took)
    assert report["memory_mib"]["jittor"]["device"] > 100 and "device" not in report["memory_mib"]["torch"]
    assert any(line.startswith("device ") or "\ndevice " in line for line in said), said
