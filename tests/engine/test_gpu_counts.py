"""How many launches, copies and waits a prediction and a training step cost; they do not depend on the pictures' size."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.mark.gpu
@pytest.mark.gpu_once
@pytest.mark.skipif("SOFTGPU_TOP" not in os.environ, reason="the software GPU counts; a card would need a profiler")
def test_counts_stay_below_their_limits(tmp_path):
    command = [sys.executable, str(ROOT / "scripts" / "gpu_counts.py"), "--size", "160x256", "--json", str(tmp_path / "counts.json")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]  # it ends with the names of the limits that are exceeded
    counts = json.loads((tmp_path / "counts.json").read_text())
    one, four, step = counts.values()
    assert one["launches"] > 50 and one["calls"] > 50, "it counted nothing"
    # A batch costs no launch more than a picture; pictures in, boxes and masks out.
    assert (four["launches"], four["calls"]) == (one["launches"], one["calls"])
    assert one["up"] == 3 and one["down"] == 2 and one["waits"] <= 4
    assert step["down"] == 2 and step["waits"] <= 4
