"""`scripts/gpu_check.sh` without a GPU: its refusals, and its reckoning over a driver that only pretends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jrdp.machine.driver import read_driver

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "scripts" / "gpu_check.sh"
DRIVER = ROOT / "tests" / "softgpu" / "driver.c"

# Stands in for the interpreter: answers what is asked of jrdp and pytest, and leaves the script's own helper to Python.
INTERPRETER = """#!/bin/sh
case "$1 $2" in
scripts/gpu_check.py*) exec {python} "$@" ;;
esac
echo "$@" >> {folder}/asked
case "$*" in
*doctor*) echo "no operator works"; exit 1 ;;
*"compare speed"*) sleep 30 ;;
*"tests -m gpu"*) echo "7 passed" ;;
esac
"""


@pytest.fixture
def check(tmp_path):
    """`check("doctor", GPU_SECONDS=1)` -> the finished process, on a machine with a pretend driver."""
    subprocess.run(["gcc", "-shared", "-fPIC", "-w", str(DRIVER), "-o", str(tmp_path / "libcuda.so.1")], check=True)
    interpreter = tmp_path / "python"
    interpreter.write_text(INTERPRETER.format(python=sys.executable, folder=tmp_path))
    interpreter.chmod(0o755)

    def call(*parts, **settings):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("GPU_")}
        environment.update(
            PYTHON=str(interpreter), GPU_OUT=str(tmp_path / "out"), LD_LIBRARY_PATH=str(tmp_path), nvcc_path="",
            **{name: str(value) for name, value in settings.items()},
        )  # fmt: skip
        return subprocess.run(["bash", str(SCRIPT), *parts], env=environment, capture_output=True, text=True)

    call.folder = tmp_path
    return call


def runs(check) -> list:
    found = json.loads((check.folder / "out" / "summary.json").read_text())
    assert set(found) == {"device", "versions", "commit", "runs"}
    return [(run["part"], run["verdict"], run["last_line"]) for run in found["runs"]]


def test_without_a_gpu_it_ends_with_the_reason(tmp_path):
    if read_driver().usable:
        pytest.skip("this machine has a GPU")
    environment = {**os.environ, "PYTHON": sys.executable, "GPU_OUT": str(tmp_path / "out")}
    done = subprocess.run(["bash", str(SCRIPT)], env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == f"error: no usable NVIDIA GPU: {read_driver().problem}\n"
    assert not (tmp_path / "out").exists()


def test_an_unknown_part_is_named(check):
    done = check("doctor", "everything")
    assert done.returncode == 2 and "unknown part everything: choose among pack install" in done.stderr
    assert not (check.folder / "asked").exists()


def test_verdicts_are_kept_over_several_calls(check):
    done = check("doctor", "tests")
    assert done.returncode == 1, done.stdout + done.stderr
    assert runs(check) == [("doctor", "FAILED", "no operator works"), ("tests", "ok", "7 passed")]
    done = check("speed", GPU_SECONDS=1, GPU_TWIN="cpu")
    assert done.returncode == 3, done.stdout + done.stderr
    assert runs(check)[2][:2] == ("speed", "unfinished")
    rows = {line.split()[0]: line.split()[1] for line in (check.folder / "out" / "table.txt").read_text().splitlines()}
    assert rows == {"part": "verdict", "doctor": "FAILED", "tests": "ok", "speed": "unfinished"}
    asked = (check.folder / "asked").read_text()
    assert "pytest" in asked and "tests/ops -m not gpu" in asked
    # The first of the two speeds used up the time, so the second was not begun.
    assert asked.count("compare speed --device cuda --twin-device cpu --training --rounds 30") == asked.count("compare speed") == 1


def test_a_training_that_was_stopped_is_continued(check):
    data = check.folder / "data"
    (data / "ecssd").mkdir(parents=True)
    (data / "backbone").write_text("")
    settings = {"GPU_DATA": data, "GPU_BACKBONE": data / "backbone", "GPU_ITERATIONS": 30}
    assert check("train", **settings).returncode == 0
    (check.folder / "out" / "run").mkdir()
    (check.folder / "out" / "run" / "last.safetensors").write_text("")
    assert check("train", **settings).returncode == 0
    first, second = (check.folder / "asked").read_text().splitlines()
    assert second == f"{first} --resume" and "solver.steps=[20]" in first
    assert check("train", **{**settings, "GPU_BACKBONE": "none"}).returncode == 1
    assert runs(check)[2] == ("train", "FAILED", "GPU_BACKBONE=none is missing: jrdp data weights r50 makes it")


def test_wheels_are_divided_into_pieces_that_can_be_carried(tmp_path):
    new = tmp_path / "new"
    new.mkdir()
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "old.whl").write_bytes(b"")
    sizes = {"a": 50, "b": 30, "c": 20, "d": 9, "e": 70}
    for name, size in sizes.items():
        (new / f"{name}.whl").write_bytes(b"0" * (size * 2**10))
    helper = [sys.executable, str(ROOT / "scripts" / "gpu_check.py"), "pieces", str(tmp_path), str(60 / 1024)]
    subprocess.run(helper, check=True)
    found = {path.name: sorted(wheel.stem for wheel in path.glob("*.whl")) for path in tmp_path.iterdir()}
    assert found == {"1": ["e"], "2": ["a", "d"], "3": ["b", "c"]}
