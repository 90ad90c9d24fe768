"""`jrdp compare layers` with Jittor on a GPU and the PyTorch twin on the CPU: small pictures, synthetic weights."""

import json

import pytest
from PIL import Image
from twin_python import TWIN_PYTHON

from jrdp.comparison.layers import compare_layers
from jrdp.comparison.pair import Options

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
