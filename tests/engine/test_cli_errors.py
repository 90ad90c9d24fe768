"""Bad input to the command line: one clear line, exit code 2, nothing half-written."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from jrdp import cli
from jrdp.dataset_tools.sample import write_sample


@pytest.fixture
def run(monkeypatch, capsys):
    """`run("test", "--out", ...)` -> (exit code, standard error)."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["jrdp", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        captured = capsys.readouterr()
        return caught.value.code or 0, captured.err

    return call


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli-sample")
    write_sample(folder, train=2, val=1)
    return folder


def refused(result, *words):
    code, error = result
    lines = [line for line in error.splitlines() if line.strip()]
    assert code == 2, error
    assert len(lines) == 1 and lines[0].startswith("jrdp: error: "), error
    for word in words:
        assert str(word) in lines[0], error


def dataset(sample, name="val"):
    return f"data.test=[{sample}/imgs:{sample}/{name}.json]"


def test_config_missing_unreadable_unknown_key_wrong_type(run, tmp_path):
    refused(run("train", "--out", tmp_path / "o", "--config", tmp_path / "no.yaml"), "no.yaml", "No such file")
    (tmp_path / "bad.yaml").write_text("solver: {")
    refused(run("train", "--out", tmp_path / "o", "--config", tmp_path / "bad.yaml"), "bad.yaml", "not valid YAML")
    refused(run("train", "--out", tmp_path / "o", "--set", "solver.lr=1"), "unknown key solver.lr")
    refused(run("train", "--out", tmp_path / "o", "--set", "solver.base_lr=high"), "solver.base_lr", "number")
    assert not (tmp_path / "o").exists()


def test_missing_dataset(run, tmp_path, weights):
    refused(run("test", "--weights", weights, "--out", tmp_path / "o"), "isod_test", "datasets/isod", "docs/data.md")
    refused(run("test", "--weights", weights, "--out", tmp_path / "o", "--set", "data.test=[nonsense]"), "nonsense")
    refused(run("data", "check", "isod_train", "--set", f"data.root={tmp_path}"), tmp_path)
    assert not (tmp_path / "o").exists()


def changed(sample, tmp_path, change):
    content = json.loads((sample / "val.json").read_text())
    change(content)
    path = tmp_path / "changed.json"
    path.write_text(json.dumps(content))
    return f"data.test=[{sample}/imgs:{path}]"


def test_json_without_categories_or_segmentation(run, tmp_path, weights, sample):
    setting = changed(sample, tmp_path, lambda content: content.pop("categories"))
    common = ("test", "--weights", weights, "--out", tmp_path / "o")
    refused(run(*common, "--set", setting), "changed.json", "categories")
    setting = changed(sample, tmp_path, lambda content: [one.pop("segmentation") for one in content["annotations"]])
    refused(run(*common, "--set", setting), "changed.json", "no instance has a mask")
    assert not (tmp_path / "o").exists()


def test_an_instance_without_a_mask_is_counted(run, tmp_path, weights, sample):
    setting = changed(sample, tmp_path, lambda content: content["annotations"][0].pop("segmentation"))
    code, error = run("test", "--weights", weights, "--out", tmp_path / "o", "--set", setting, "--set", "input.min_size=64")
    assert code == 0, error
    assert json.loads((tmp_path / "o" / "metrics.json").read_text())["segm"]["without_mask"] == 1


def test_folder_without_pictures_and_missing_picture(run, tmp_path, weights):
    (tmp_path / "empty").mkdir()
    refused(run("predict", "--weights", weights, "--out", tmp_path / "o", tmp_path / "empty"), "no pictures", "empty")
    refused(run("predict", "--weights", weights, "--out", tmp_path / "o", tmp_path / "none.jpg"), "none.jpg")
    assert not (tmp_path / "o").exists()


def test_corrupt_picture_is_skipped_and_the_others_are_done(run, tmp_path, weights):
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(folder / "a.png")
    (folder / "b.png").write_bytes(b"this is no picture")
    (folder / "c.png").write_bytes((folder / "a.png").read_bytes()[:60])
    code, error = run("predict", "--weights", weights, "--out", tmp_path / "o", folder, "--set", "input.min_size=64")
    assert code == 1
    assert "b.png" in error and "c.png" in error and "a.png" not in error
    assert sorted(path.name for path in (tmp_path / "o").iterdir()) == ["a.png", "a_instances.png", "predictions.json"]
    results = json.loads((tmp_path / "o" / "predictions.json").read_text())
    assert results and {result["file_name"] for result in results} == {"a.png"}


def test_checkpoint_of_another_backbone_truncated_or_none(run, tmp_path, weights, sample):
    out = tmp_path / "o"
    common = ("--out", out, "--set", dataset(sample))
    refused(run("test", "--weights", weights, *common, "--set", "model.backbone.name=r101"), "r50", "101")
    truncated = tmp_path / "truncated.safetensors"
    truncated.write_bytes(weights.read_bytes()[:5_000_000])
    refused(run("test", "--weights", truncated, *common), "truncated.safetensors")
    (tmp_path / "no.pth").write_text("hello")
    refused(run("test", "--weights", tmp_path / "no.pth", *common), "no.pth", "not a checkpoint")
    refused(run("test", "--weights", tmp_path / "missing.pth", *common), "missing.pth")
    assert not out.exists()


def test_output_folder_that_cannot_be_written(run, tmp_path, weights, sample):
    (tmp_path / "file").write_text("")
    refused(run("test", "--weights", weights, "--out", tmp_path / "file", "--set", dataset(sample)), "file")
    refused(run("predict", "--weights", weights, "--out", tmp_path / "file", sample / "imgs"), "file")
    # A folder without write permission; root may write everywhere, so use one that even root cannot write to.
    locked = "/proc/jrdp" if os.geteuid() == 0 else str(tmp_path / "locked" / "out")
    if os.geteuid():
        (tmp_path / "locked").mkdir(mode=0o500)
    refused(run("test", "--weights", weights, "--out", locked, "--set", dataset(sample)), locked)


def test_cuda_without_a_gpu(run, tmp_path, weights, sample):
    from jrdp.machine import runtime

    if runtime.prepare().cuda.usable:
        pytest.skip("this machine has a usable GPU")
    common = ("predict", "--weights", weights, "--out", tmp_path / "o", sample / "imgs")
    refused(run(*common, "--device", "cuda"), "cuda", "GPU")
    refused(run(*common, "--device", "tpu"), "tpu")


def test_tf32_without_a_gpu(run, tmp_path, weights, sample):
    train = ("train", "--out", tmp_path / "o", "--device", "cpu", "--set", "train.tf32=true")
    refused(run(*train), "train.tf32", "need a GPU")
    test = ("test", "--weights", weights, "--out", tmp_path / "o", "--device", "cpu", "--set", dataset(sample))
    refused(run(*test, "--set", "test.tf32=true"), "test.tf32", "need a GPU")
    compare = ("compare", "gradients", "--out", tmp_path / "o", "--dataset", "sample", "--tf32")
    refused(run(*compare), "--tf32 needs a GPU", "--device cuda")
    assert not (tmp_path / "o").exists()


def test_weights_of_another_preprocessing_are_refused(run, tmp_path, weights, sample):
    from safetensors.numpy import load_file

    tensors = {name: value for name, value in load_file(str(weights)).items() if name.startswith("backbone.body.")}
    header = {"preprocessing": {"channel_order": "rgb", "scale": 1.0, "stride_in_1x1": False}}
    path = tmp_path / "torchvision_like.safetensors"
    save_file(tensors, str(path), metadata={"jrdp": json.dumps(header)})
    setting = f"data.train=[{sample}/imgs:{sample}/train.json]"
    result = run("train", "--weights", path, "--out", tmp_path / "o", "--set", setting, "--set", "data.test=[]")
    refused(result, "input.channel_order=rgb", "input.scale=1.0", "model.backbone.stride_in_1x1=false")


def test_unknown_options_and_help_are_typers_own(run):
    assert run("predict", "--nonsense")[0] == 2
    for command in ("doctor", "train", "test", "predict", "convert", "analyze", "compare", "data"):
        assert run(command, "--help")[0] == 0


def test_the_installed_command_exits_with_2(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "jrdp.cli", "train", "--out", str(tmp_path / "o"), "--set", "a=1"],
        capture_output=True, text=True, timeout=300,
    )
    assert done.returncode == 2 and done.stderr.startswith("jrdp: error: ") and "Traceback" not in done.stderr


def test_nothing_to_resume(run, tmp_path):
    refused(run("train", "--out", tmp_path / "o", "--resume"), "nothing to resume", tmp_path / "o")
    assert not (tmp_path / "o").exists()
