"""`jrdp compare layers` for a backbone and a pyramid of one's own, whose twins are written in PyTorch too."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from twin_python import TWIN_PYTHON

from jrdp.comparison.layers import compare_layers
from jrdp.comparison.pair import Options, resolve_config
from jrdp.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
OWN = ["model.backbone.name=examples.resnet18:ResNet18", "model.pyramid.enhancement=examples.gated_pyramid:GatedPyramid"]
SMALL = ["input.min_size=64", "input.max_size=96", "model.fcos.channels=64"]
MISTAKEN = """
import torch
from torch import nn
from examples.in_torch import GatedPyramid, ResNet18

class Ungated(GatedPyramid):
    def build_enhancement(self):
        super().build_enhancement()
        for gate in self.gates:
            gate.register_forward_hook(lambda module, inputs, output: output + 1)

class Wider(ResNet18):
    def __init__(self, freeze_at=0):
        super().__init__(freeze_at)
        self.layer4[1].conv2 = nn.Conv2d(512, 512, 5, padding=2, bias=False)

class Broken(nn.Module):
    def __init__(self, freeze_at=0):
        raise ValueError("too deep")
"""


@pytest.fixture
def compare(both_frameworks, tmp_path, monkeypatch):
    (tmp_path / "mistaken_twins.py").write_text(MISTAKEN)
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{tmp_path}")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)).save(tmp_path / "picture.png")

    def compared(body, fpn):
        options = Options(settings=[*OWN, *SMALL], twin_python=TWIN_PYTHON, twin_backbone=body, twin_pyramid=fpn).checked()
        passed = compare_layers(options, [tmp_path / "picture.png"], tmp_path / "out", print_line=lambda line: None)
        return passed, json.loads((tmp_path / "out" / "report.json").read_text())

    return compared


def test_the_examples_agree_stage_by_stage(compare):
    passed, report = compare("examples.in_torch:ResNet18", "examples.in_torch:GatedPyramid")
    assert passed, report["failures"]
    assert [stage["stage"] for stage in report["stages"]][:4] == ["C3", "C4", "C5", "P3"]
    assert report["stages"][2]["shape"] == [1, 512, 2, 3]


def test_a_twin_that_computes_something_else_is_noticed_where_it_does(compare):
    passed, report = compare("examples.in_torch:ResNet18", "mistaken_twins:Ungated")
    assert not passed
    assert [stage["stage"] for stage in report["stages"] if stage["over"]][0] in ("RP3", "RP6")
    assert not any(stage["over"] for stage in report["stages"] if stage["stage"][0] in "CP")


@pytest.mark.parametrize(
    "body, words",
    [
        ("mistaken_twins:Wider", "different tensors: backbone.body.layer4.1.conv2.weight"),
        ("mistaken_twins:Broken", "--twin-backbone: mistaken_twins:Broken: making it raised ValueError: too deep"),
        ("mistaken_twins:nn", "--twin-backbone: mistaken_twins:nn is no class derived from torch.nn.modules.module.Module"),
        ("no_such_twins:Any", "--twin-backbone: no_such_twins:Any: there is no module no_such_twins"),
    ],
)
def test_a_twin_that_does_not_fit_is_named(compare, body, words):
    with pytest.raises(UserError, match=words):
        compare(body, "examples.in_torch:GatedPyramid")


def test_without_its_twin_the_line_says_what_is_possible():
    with pytest.raises(UserError, match="not model.pyramid.enhancement = .*layers.*--twin-pyramid package.module:Class.*detections"):
        resolve_config(None, Options(settings=OWN, twin_backbone="examples.in_torch:ResNet18"))
    with pytest.raises(UserError, match="--twin-pyramid mine: expected an import path, package.module:Class"):
        Options(twin_pyramid="mine").checked()


def test_weights_choose_no_code_here_either(tmp_path):
    from jrdp import interchange
    from jrdp.config import load_config

    config = load_config(None, OWN).model_dump(mode="json")
    path = tmp_path / "w.safetensors"
    interchange.write(path, interchange.WeightFile({"a": np.zeros(1, np.float32)}, metadata={"config": config}))
    code = f"""
from jrdp.comparison.pair import Options, resolve_config
from jrdp import interchange
resolve_config(interchange.read({str(path)!r}), Options(twin_backbone="a:B", twin_pyramid="a:C"))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "to run that code, add --set model.backbone.name=examples.resnet18:ResNet18" in done.stderr
