"""`--resume` takes what is there for its own only where the earlier run is known to have been asked the same."""

import json
import os
import sys
from pathlib import Path

import pytest
from safetensors.numpy import save_file

from jrdp import cli
from jrdp.dataset_tools.sample import write_sample
from jrdp.errors import UserError


@pytest.fixture
def run(monkeypatch, capsys):
    """`run("predict", ...)` -> (exit code, standard output, standard error)."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["jrdp", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        captured = capsys.readouterr()
        return caught.value.code or 0, captured.out, captured.err

    return call


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
