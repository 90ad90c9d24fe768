"""The authors' weights by name: where to get them, where they are looked for, what is checked."""

from functools import partial

import numpy as np
import pytest
from command_line import run_jrdp
from safetensors.numpy import load_file, save_file

import jrdp
from jrdp.errors import UserError
from jrdp.interchange import published
from jrdp.interchange.layout import LAST_SCALE


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """`run("weights")` in an empty folder -> (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(published.VARIABLE, raising=False)
    return partial(run_jrdp, monkeypatch, capsys)


@pytest.fixture(scope="module")
def released(seeded):
    """A full checkpoint of R-50 with the scale that the authors' files have."""
    return {**seeded("r50"), LAST_SCALE: np.ones(seeded("r50")[LAST_SCALE].shape, np.float32)}


def test_listed_with_what_is_stated_and_whether_it_is_here(run, tmp_path):
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "r50_soc.pth").touch()
    code, out, _ = run("weights")
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert code == 0
    assert "ISOD" in lines["r50_isod"] and "58.6" in lines["r50_isod"] and lines["r50_isod"].endswith("no")
    assert lines["r50_soc"].endswith("weights/r50_soc.pth")
    assert "AP 43.1 AP50 67.3 (authors' README)" in lines["r50_come"]


def test_three_lines_say_where_to_get_one(run):
    code, out, _ = run("weights", "r50_isod")
    get, put, check = out.splitlines()
    assert code == 0
    assert "1P9HnPbeHKL_1EzKOcVYhjiYXyUiKCaYP" in get and "137 MB" in get and "code yhwu" in get
    assert "weights/r50_isod.pth" in put and "$JRDP_WEIGHTS" in put
    assert "jrdp test --weights r50_isod" in check


def test_one_that_is_here_is_checked(run, tmp_path, released):
    (tmp_path / "weights").mkdir()
    path = tmp_path / "weights" / "r50_isod.safetensors"
    save_file(released, str(path))
    code, out, _ = run("weights", "r50_isod")
    assert code == 0 and f"{len(released)} tensors" in out and "AP 58.6 AP50 88.9 AP70 73.8" in out
    save_file({**released, LAST_SCALE: np.full_like(released[LAST_SCALE], 0.5)}, str(path))
    code, _, error = run("weights", "r50_isod")
    assert code == 2 and "scales.5.scale is 0.5, not 1" in error
    name = "rpn.head.cls_logits.bias"
    save_file({**released, name: np.full_like(released[name], np.nan)}, str(path))
    code, _, error = run("weights", "r50_isod")
    assert code == 2 and name in error and "NaN" in error
    save_file({key: value for key, value in released.items() if key != name}, str(path))
    code, _, error = run("weights", "r50_isod")
    assert code == 2 and name in error
    code, _, error = run("weights", "r101_isod")
    assert code == 2 and "known: r50_isod, r50_soc, r50_come" in error


def test_every_option_for_weights_takes_a_name(run, monkeypatch, tmp_path, released):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    save_file(released, str(elsewhere / "mine.safetensors"))
    monkeypatch.setenv(published.VARIABLE, str(elsewhere))
    assert published.locate("mine") == elsewhere / "mine.safetensors"
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "mine.pth").touch()
    assert published.locate("mine").name == "mine.pth"  # weights/ first
    assert published.locate("mine.pth").name == "mine.pth" and not published.locate("mine.pth").exists()
    code, out, _ = run("convert", "r50_isod", "x.safetensors")
    assert code == 2
    (tmp_path / "weights" / "mine.pth").unlink()
    code, _, error = run("convert", "mine", "copy.safetensors")
    assert code == 0, error
    assert set(load_file(str(tmp_path / "copy.safetensors"))) == set(released)
    for command in (
        ["predict", "x.png", "--out", "o"], ["test", "--out", "o"], ["export", "m.onnx"], ["demo"],
        ["bench", "--out", "o"], ["train", "--out", "o"], ["compare", "layers", "--images", ".", "--out", "o"],
        ["compare", "twin-test", "--dataset", "a:b.json", "--out", "o"],
    ):
        code, _, error = run(*command, "--weights", "r50_isod")
        assert code == 2 and "`jrdp weights r50_isod` says where to get them" in error, command
        assert len(error.splitlines()) == 1 and not (tmp_path / "o").exists()
    with pytest.raises(UserError, match="`jrdp weights` lists"):
        jrdp.load("nothing")
