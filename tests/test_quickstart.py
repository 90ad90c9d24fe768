"""The page that the quickstart ends with, and what its configuration starts from."""

import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from jrdp.config import load_config
from jrdp.interchange import start
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
    assert locate(load_config(ROOT / "configs" / "quickstart.yaml").train.weights) == start.PATH
    photos = load_config(ROOT / "configs" / "quickstart_photos.yaml")
    assert photos.train.weights == "weights/r50_imagenet.safetensors"
    assert max(photos.solver.steps) < photos.solver.max_iterations
