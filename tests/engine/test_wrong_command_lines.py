"""Wrong command lines, by the hundred: exit code 2, one line that says what is wrong, and nothing left behind."""

import itertools
import json
import os
import sys

import pytest
from PIL import Image

from jrdp import cli

# What people give where a file or a folder is asked for, by name.
PLACES = ("none", "folder", "empty", "bytes.bin", "pipe", "http://host/x", "x" * 300, "\udcff", "/dev/zero")
SET = "data.train=[imgs:a.json]"
READERS = {
    "predict weights": ("predict", "--weights", "{}", "--out", "o", "imgs/a.png"),
    "test weights": ("test", "--weights", "{}", "--out", "o", "--set", "data.test=[imgs:a.json]"),
    "train config": ("train", "--out", "o", "--config", "{}", "--set", "data.train=[nix]"),
    "convert": ("convert", "{}", "o.pth"),
    "export": ("export", "o.onnx", "--weights", "{}"),
    "ground truth": ("analyze", "--ground-truth", "{}", "--compare", "a=r.json", "--out", "o"),
    "results": ("analyze", "--ground-truth", "a.json", "--compare", "a={}", "--out", "o"),
    "data check": ("data", "check", "imgs:{}"),
    "data check name": ("data", "check", "{}"),
    "data stats": ("data", "stats", "imgs:{}", "--out", "o"),
    "masks": ("data", "convert", "{}", "imgs", "o.json"),
    "pictures": ("data", "convert", "masks", "{}", "o.json"),
    "source": ("data", "weights", "r50", "o.safetensors", "--source", "{}"),
    "compare": ("compare", "detections", "{}", "r.json", "--dataset", "imgs:a.json", "--out", "o"),
    "compare dataset": ("compare", "detections", "r.json", "r.json", "--dataset", "{}", "--out", "o"),
}
# An empty configuration is one, and a folder of masks or of pictures may be a folder.
SENSIBLE = {("train config", "empty")}
NUMBERS = ("-1", "x", "9" * 30, "nan", "\u00b2", "1e3")
OPTIONS = {
    "--seed": ("train", "--out", "o", "--seed", "{}", "--set", "data.train=[nix]"),
    "--jobs": ("predict", "--weights", "none", "--out", "o", "--jobs", "{}", "imgs"),
    "--frames": ("predict", "--weights", "none", "--out", "o", "--frames", "{}", "imgs"),
    "--threshold": ("predict", "--weights", "none", "--out", "o", "--threshold", "{}", "imgs"),
    "--port": ("demo", "--weights", "none", "--port", "{}"),
    "--train": ("data", "sample", "o", "--train", "{}", "--val", "0"),
    "--rounds": ("bench", "--out", "o", "--rounds", "{}", "--config", "none"),
    "--steps": ("compare", "training", "--out", "o", "--steps", "{}", "--device", "x"),
}
SETTINGS = (
    "a", "=", "=1", "solver", "solver.=1", ".solver=1", "solver.base_lr=", "solver.base_lr.x=1", "solver.base_lr={a: 1}",
    "solver=1", "data.train=[]", "data.train=x", "input.mean=[1,2]", "input.min_size=1.5", "input.max_size=1", "a.b.c.d=1",
    "solver.steps=[0]", "data.workers=100000", "\udcff=1", "solver.base_lr=!!python/object/apply:os.system ['id']",
    "solver.base_lr=&a *a", "solver.base_lr=\"", "train.weights=[1]", "test.mask_threshold=1", "input.exif=yes",
)  # fmt: skip
LINES = [
    *(
        pytest.param([part.format(place) for part in line], id=f"{name} {place[:12]!a}")
        for (name, line), place in itertools.product(READERS.items(), PLACES)
        if (name, place) not in SENSIBLE
    ),
    *(
        pytest.param([part.format(number) for part in line], id=f"{name} {number[:6]!a}")
        for (name, line), number in itertools.product(OPTIONS.items(), NUMBERS)
    ),
    *(pytest.param(["train", "--out", "o", "--set", SET, "--set", setting], id=f"set {setting!a}"[:40]) for setting in SETTINGS),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A working folder with one of everything."""
    folder = tmp_path_factory.mktemp("wrong")
    for name in ("imgs", "masks", "folder"):
        (folder / name).mkdir()
    Image.new("RGB", (32, 24)).save(folder / "imgs" / "a.png")
    Image.new("L", (32, 24), 1).save(folder / "masks" / "a.png")
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[2, 2, 12, 2, 12, 12]]}
    images = [{"id": 1, "file_name": "a.png", "width": 32, "height": 24}]
    content = {"images": images, "annotations": [annotation], "categories": [{"id": 1}]}
    (folder / "a.json").write_text(json.dumps(content))
    (folder / "r.json").write_text("[]")
    (folder / "empty").touch()
    (folder / "bytes.bin").write_bytes(bytes(range(256)))
    os.mkfifo(folder / "pipe")
    return folder


@pytest.mark.parametrize("line", LINES)
def test_one_line_and_nothing_left(line, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "argv", ["jrdp", *line])
    before = sorted(place.rglob("*"))
    with pytest.raises(SystemExit) as caught:
        cli.main()
    error = capsys.readouterr().err
    assert caught.value.code == 2, error
    said = [text for text in error.splitlines() if text.strip()]
    # Typer's own refusals have two lines of usage before theirs.
    assert said[-1].startswith("Error: ") if said[0].startswith("Usage: ") else len(said) == 1, error
    assert said[-1].startswith(("jrdp: error: ", "Error: ")) and len(said[-1]) < 700 and "Traceback" not in error
    assert sorted(place.rglob("*")) == before
