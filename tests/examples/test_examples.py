"""Every file of `examples/` does what it says, on small pictures."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

import jrdp
from jrdp.dataset_tools.sample import write_sample

ROOT = Path(__file__).resolve().parents[2]
BACKBONE = "model.backbone.name=examples.resnet18:ResNet18"
SMALL = {
    "model": {
        "backbone": {"name": "examples.resnet18:ResNet18", "freeze_at": 0},
        "pyramid": {"enhancement": "none"},
        "fcos": {"channels": 32, "pre_nms_threshold": 0.0, "pre_nms_top_n": 5, "post_nms_top_n": 5},
    },
    "input": {"min_size": 64, "max_size": 96},
    "data": {"test": [], "workers": 0},
    "solver": {"batch_size": 2, "base_lr": 0.001, "max_iterations": 2, "steps": [100], "warmup_iterations": 0},
}


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sample")
    write_sample(folder, train=4, val=2, seed=3)
    return folder


@pytest.fixture(scope="module")
def small(sample):
    """A recipe of two iterations on the sample set."""
    sets = {"train": [f"{sample}/imgs:{sample}/train.json"], "test": [f"{sample}/imgs:{sample}/val.json"]}
    path = sample / "small.yaml"
    path.write_text(yaml.safe_dump({**SMALL, "data": {**SMALL["data"], **sets}}))
    return path


@pytest.fixture(autouse=True)
def examples_can_be_imported(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="module")
def trained(small, tmp_path_factory):
    """A network with the backbone of the examples, trained for two iterations and tested."""
    sys.path.insert(0, str(ROOT))
    try:
        out = tmp_path_factory.mktemp("resnet18") / "run"
        return out, jrdp.train(small, out, device="cpu")
    finally:
        sys.path.remove(str(ROOT))


def test_a_backbone_of_ones_own_is_trained_tested_saved_loaded_and_predicts(trained, sample):
    out, result = trained
    assert result["iteration"] == 2 and list(result["metrics"])
    weights = load_file(str(out / "final.safetensors"))
    assert weights["backbone.body.layer3.1.conv2.weight"].shape == (256, 256, 3, 3)
    assert weights["backbone.fpn.fpn_inner4.weight"].shape == (256, 512, 1, 1)
    assert not any("conv3" in name for name in weights if name.startswith("backbone.body"))
    model = jrdp.load(out / "final.safetensors", device="cpu")
    picture = sorted((sample / "imgs").iterdir())[0]
    assert len(model.predict(picture).boxes)
    assert model.network.backbone.body.layer4[1].conv2.weight.shape == (512, 512, 3, 3)


def test_stages_of_the_example_backbone_are_frozen_as_asked():
    from examples.resnet18 import ResNet18
    from jrdp.models.state import trainable_names

    assert next(iter(trainable_names(ResNet18(freeze_at=0)))) == "conv1.weight"
    assert next(iter(trainable_names(ResNet18(freeze_at=2)))) == "layer2.0.conv1.weight"


def test_the_command_line_takes_it_when_named_and_says_so_when_not(trained, sample, tmp_path):
    out, _ = trained
    picture = sorted((sample / "imgs").iterdir())[0]
    command = [sys.executable, "-m", "jrdp", "predict", "--device", "cpu", "--weights", str(out / "final.safetensors")]
    command += ["--out", str(tmp_path / "out"), str(picture)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    refused = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert refused.returncode == 2 and f"add --set {BACKBONE}" in refused.stderr
    done = subprocess.run([*command, "--set", BACKBONE], capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out" / "predictions.json").read_text())


def test_the_training_loop(sample, small, tmp_path):
    from examples import train_loop

    out = tmp_path / "mine.safetensors"
    history = train_loop.main(str(sample / "imgs"), str(sample / "train.json"), str(out), str(small), steps=4)
    assert len(history) == 4 and np.isfinite(history).all()
    picture = sorted((sample / "imgs").iterdir())[0]
    assert len(jrdp.load(out, device="cpu").predict(picture).scores)
    source = (ROOT / "examples" / "train_loop.py").read_text()
    body = source[source.index("    dataset =") : source.index("    print(")]
    assert len([line for line in body.splitlines() if line.strip()]) <= 25


def test_a_dataset_of_the_script_itself_with_workers(tmp_path):
    settings = ["solver.max_iterations=2", "solver.steps=[2]", "data.workers=2", "input.min_size=64", "input.max_size=96"]
    settings += [BACKBONE, "train.weights=null", "model.fcos.channels=32", "solver.batch_size=2"]
    command = [sys.executable, "examples/own_dataset.py", str(tmp_path / "run"), *settings]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "training on 64 pictures" in done.stdout and (tmp_path / "run" / "final.safetensors").exists()


def test_the_dataset_example_tells_its_masks():
    from examples.own_dataset import Discs

    picture, masks = Discs(height=64, width=96)[5]
    assert picture.shape == (64, 96, 3) and all(mask.shape == (64, 96) and mask.any() for mask in masks)
    assert np.array_equal(picture, Discs(height=64, width=96)[5][0])


def test_fine_tuning_moves_the_heads_only(trained, sample, tmp_path):
    from examples import fine_tune

    out, _ = trained
    before = load_file(str(out / "final.safetensors"))
    small_steps = ["solver.max_iterations=2", "solver.steps=[2]", "solver.warmup_iterations=0", "data.min_sizes=[64,96]"]
    dataset = f"{sample}/imgs:{sample}/train.json"
    fine_tune.main(str(out / "final.safetensors"), dataset, str(tmp_path / "run"), *small_steps)
    after = load_file(str(tmp_path / "run" / "final.safetensors"))
    moved = {name.split(".")[0] for name in before if not np.array_equal(before[name], after[name])}
    assert moved == {"rpn", "roi_heads"}


def test_a_pyramid_of_ones_own_beside_the_papers(small, tmp_path):
    """From a folder of one's own, which has the design and the pyramid's module."""
    (tmp_path / "mine.py").write_text("from examples.gated_pyramid import GatedPyramid\n")
    design = (ROOT / "examples" / "gated_pyramid.yaml").read_text().replace("examples.gated_pyramid:", "mine:")
    (tmp_path / "gated_pyramid.yaml").write_text(design)
    command = ["bash", str(ROOT / "scripts" / "ablation.sh"), "--recipe", str(small), "--out", "out"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHON": sys.executable}
    twice = [*command, "gated_pyramid.yaml", str(ROOT / "examples" / "gated_pyramid.yaml")]
    refused = subprocess.run(twice, capture_output=True, text=True, timeout=100, env=environment, cwd=tmp_path)
    assert refused.returncode == 2 and "two designs are called gated_pyramid" in refused.stderr
    command += ["gated_pyramid.yaml", "--", "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| gated_pyramid | test | 1 of 1 |" in done.stdout
    weights = load_file(str(tmp_path / "out" / "gated_pyramid_seed1" / "final.safetensors"))
    assert weights["backbone.fpn.gates.3.weight"].shape == (256, 256, 1, 1)


def test_the_gated_pyramid_leaves_uncovered_levels_as_they_are():
    import jittor as jt

    from examples.gated_pyramid import GatedPyramid

    pyramid = GatedPyramid((3, 4, 5), levels="p3-p5")
    assert len(pyramid.gates) == 2
    levels = [jt.randn(1, 256, -(-64 // s), -(-96 // s)) for s in (8, 16, 32, 64, 128)]
    enhanced = pyramid.enhance(levels)
    same = [np.array_equal(one.numpy(), other.numpy()) for one, other in zip(levels, enhanced)]
    assert same == [False, False, True, True, True]
