"""`--resume` takes what is there for its own only where the earlier run is known to have been asked the same."""

import os
from functools import partial

import pytest
from command_line import run_jrdp
from safetensors.numpy import save_file
from small_datasets import write_clip

from jrdp.dataset_tools.sample import write_sample
from jrdp.errors import UserError


@pytest.fixture
def run(monkeypatch, capsys):
    """`run("predict", ...)` -> (exit code, standard output, standard error)."""
    return partial(run_jrdp, monkeypatch, capsys)


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    folder = tmp_path_factory.mktemp("asked-sample")
    write_sample(folder, train=1, val=2)
    return folder


@pytest.fixture
def checkpoint(seeded, tmp_path):
    path = tmp_path / "last.safetensors"
    save_file(seeded("r50"), str(path))
    return path


SMALL = ("--set", "input.min_size=64", "--set", "input.max_size=96", "--device", "cpu")


def refused(result, *words):
    code, output, error = result
    assert code == 2 and output == "" and len(error.splitlines()) == 1, error
    for word in words:
        assert str(word) in error, error


@pytest.mark.parametrize("command", ["test", "predict"])
def test_another_checkpoint_of_the_same_name_and_size_is_other_weights(run, sample, checkpoint, tmp_path, monkeypatch, command):
    """A training that goes on writes its last weights anew: the same bytes in number."""
    if command == "test":
        from jrdp.engine import evaluate as module

        what = ["--set", f"data.test=[{sample}/imgs:{sample}/val.json]"]
    else:
        from jrdp.engine import predict as module

        what = [sample / "imgs"]
    asked = [command, *what, "--weights", checkpoint, *SMALL, "--out", tmp_path / "out"]
    function = "find_in_batch" if command == "test" else "finish_picture"
    right, calls = getattr(module, function), []

    def stops(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise UserError("the disk is full")
        return right(*arguments)

    monkeypatch.setattr(module, function, stops)
    assert run(*asked)[0] > 0
    os.utime(checkpoint, ns=(1, 1))
    refused(run(*asked, "--resume"), "--resume with other", "weights")


def test_a_finished_prediction_is_not_taken_for_another_one(run, sample, checkpoint, tmp_path):
    out = tmp_path / "out"
    asked = ["predict", "--weights", checkpoint, *SMALL, "--out", out]
    assert run(*asked, sample / "imgs")[0] == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    code, output, error = run(*asked, sample / "imgs", "--resume")
    assert code == 0 and output.startswith("nothing left to do for 3 pictures") and error == ""
    for other in (["--threshold", 0.1], ["--set", "input.min_size=80"]):
        refused(run(*asked, *other, sample / "imgs", "--resume"), "other weights, settings or threshold", "finished")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before

    assert run(*asked, sample / "imgs" / "val_000.png")[0] == 0  # replaces predictions.json
    code, output, _ = run(*asked, sample / "imgs", "--resume")
    assert code == 0 and output.startswith("3 of 3 pictures")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    (out / "predictions.asked.json").unlink()
    refused(run(*asked, sample / "imgs", "--resume"), "predictions.json is finished", "give another --out, or leave out --resume")
    os.utime(checkpoint, ns=(1, 1))
    assert run(*asked, sample / "imgs")[0] == 0
    os.utime(checkpoint, ns=(2, 2))
    refused(run(*asked, sample / "imgs", "--resume"), "other weights, settings or threshold")


def test_a_finished_video_is_not_taken_for_another_one(run, checkpoint, tmp_path):
    out, clip = tmp_path / "out", tmp_path / "clip.mp4"
    write_clip(clip, 3)
    asked = ["predict", clip, "--weights", checkpoint, *SMALL, "--out", out]
    assert run(*asked, "--frames", 2)[0] == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    code, output, error = run(*asked, "--frames", 2, "--resume")
    assert code == 0 and output == f"nothing left to do for the video {out / 'clip.mp4'}\n" and error == ""
    for other in (["--frames", 3], [], ["--frames", 2, "--threshold", 0.1], ["--frames", 2, "--set", "input.min_size=80"]):
        refused(run(*asked, *other, "--resume"), "other inputs, weights, settings, threshold or --frames", "clip.json")
    os.utime(checkpoint, ns=(1, 1))
    refused(run(*asked, "--frames", 2, "--resume"), "weights")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    (out / "clip.json").write_text('{"fps": 10.0, "size": [64, 96], "frames": 2, "results": []}')  # of an older version
    refused(run(*asked, "--frames", 2, "--resume"), "clip.json is finished", "give another --out, or leave out --resume")
