"""The page that the quickstart ends with, and what its configuration starts from."""

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from jrdp.config import load_config
from jrdp.interchange import packed_backbone
from jrdp.interchange.published import locate

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def page(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import quickstart_page

    yield quickstart_page
    sys.modules.pop("quickstart_page")


class Links(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.targets, self.open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.targets += [value for name, value in attributes if name in ("src", "href")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_shows_what_was_found_and_what_to_do_next(page, monkeypatch, tmp_path, capsys):
    for name in ("pictures/a.png", "pictures/a_instances.png", "pictures/<b> & c.png", "run/curves.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "run" / "log.jsonl").write_text('{"iteration": 1}\n{"iteration": 420}\n')
    (tmp_path / "sample").mkdir()
    (tmp_path / "sample" / "val.json").write_text(json.dumps({"images": [{}] * 16}))
    figures = {"bbox": {"AP": 0.4, "AP50": 0.9, "AP70": 0.5, "AP75": 0.25}, "segm": {"AP": 0.62, "AP50": 0.894, "AP70": 0.8, "AP75": 0.7}}
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "metrics.json").write_text(json.dumps(figures))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["quickstart_page.py", ".", "--command", "/venv/bin/jrdp"])
    page.main()
    assert capsys.readouterr().out == "index.html\n"
    text = (tmp_path / "index.html").read_text()
    links = Links(text)
    assert not links.open
    assert links.targets == ["pictures/<b> & c.png"] * 2 + ["pictures/a.png"] * 2 + ["run/curves.png"]
    assert all((tmp_path / target).is_file() for target in links.targets)
    assert "<b> & c" not in text and "420 batches" in text and "16 held-out" in text
    rows = re.findall(r"<tr><th>(\w+)</th>(.*?)</tr>", text)
    assert dict((name, re.findall(r"<td>([\d.]+)</td>", cells)) for name, cells in rows) == {
        "boxes": ["40.0", "90.0", "50.0", "25.0"], "masks": ["62.0", "89.4", "80.0", "70.0"]
    }
    assert f"/venv/bin/jrdp predict --weights {tmp_path}/run/final.safetensors --out out PHOTO_OR_FOLDER" in text


def test_the_quickstarts_begin_where_they_say():
    assert locate(load_config(ROOT / "configs" / "quickstart.yaml").train.weights) == packed_backbone.PATH
    photos = load_config(ROOT / "configs" / "quickstart_photos.yaml")
    assert photos.train.weights == "weights/r50_imagenet.safetensors"
    assert max(photos.solver.steps) < photos.solver.max_iterations


def quickstart(tmp_path, *words):
    """Run it with an interpreter that it refuses, so that it ends before anything is installed."""
    environment = {**os.environ, "PYTHON": "/bin/false", "JRDP_VENV": str(tmp_path / "venv")}
    command = ["bash", str(ROOT / "scripts" / "quickstart.sh"), *map(str, words)]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    return done.stderr


@pytest.mark.parametrize("name", ["sample", "run", "test", "pictures", "index.html"])
def test_a_folder_with_somebodys_own_files_is_refused(tmp_path, name):
    mine = tmp_path / "album" / name / "mine.jpg"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    assert f"{name} is there, and no quickstart has made it" in quickstart(tmp_path, "album")
    assert mine.read_bytes() == b"mine" and list(mine.parents[1].iterdir()) == [mine.parent]


def test_photographs_that_would_be_removed_with_the_last_results_are_refused(tmp_path):
    photographs, masks = tmp_path / "out" / "sample" / "imgs", tmp_path / "out" / "sample" / "train.json"
    photographs.mkdir(parents=True)
    masks.write_text("{}")
    (tmp_path / "out" / ".quickstart").touch()
    (tmp_path / "linked").symlink_to(photographs)
    for images in ("out/sample/imgs", "linked"):
        assert "would be removed" in quickstart(tmp_path, "--photos", images, masks, "out")
    assert photographs.is_dir() and masks.read_text() == "{}"


def test_what_the_last_quickstart_left_is_kept_until_the_next_one_can_run(tmp_path):
    (tmp_path / "out" / "run").mkdir(parents=True)
    (tmp_path / "out" / ".quickstart").touch()
    assert "PYTHON=/bin/false must be a Python" in quickstart(tmp_path, "out")
    assert (tmp_path / "out" / "run").is_dir()


def test_a_folder_that_is_no_environment_is_not_removed(tmp_path):
    mine = tmp_path / "venv" / "thesis.tex"
    mine.parent.mkdir()
    mine.write_text("mine")
    assert "is no virtual environment of Python 3.9 to 3.12" in quickstart(tmp_path, "out")
    assert mine.read_text() == "mine"
