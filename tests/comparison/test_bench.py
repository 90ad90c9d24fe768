import json
import subprocess
import sys

import pytest

from jrdp.comparison.timing.bench import BenchOptions, format_bench, run_bench
from jrdp.comparison.worker import TRAINING_STEPS
from jrdp.errors import UserError


def test_jittor_alone_on_a_tiny_picture(tmp_path):
    said = []
    options = BenchOptions(
        settings=["input.min_size=64", "input.max_size=96"], threads=1, rounds=2, training=False, seed=3,
        onnxruntime=True,
    )
    result = run_bench(options, tmp_path / "out", said.append)
    assert json.loads((tmp_path / "out" / "bench.json").read_text()) == result
    parts = {row["part"]: row for row in result["parts"]}
    assert {"backbone", "network", "end to end", "RoIAlign with backward", "NMS of 5000"} <= set(parts)
    assert not {*TRAINING_STEPS, "forward of a training batch"} & set(parts)
    exported = parts.pop("detect, ONNX Runtime")
    assert exported["torch_ms"] > 0 and exported["least"] <= exported["ratio"] <= exported["most"]
    assert len(result["seconds"].pop("detect, ONNX Runtime")["onnxruntime"]) == 2
    assert all(row["jittor_ms"] > 0 and row["ratio"] is None for row in parts.values())
    assert all(len(seconds["jittor-bench"]) == 2 for seconds in result["seconds"].values())
    assert parts["end to end"]["jittor_ms"] > parts["read and resize"]["jittor_ms"]
    first = result["first_prediction"]["jittor-bench"]
    assert first["found"] > 0 and 1 <= first["kernels"] <= 12 and 0 < first["packed_mib"] < first["peak_mib"]
    assert format_bench(result) in said


def test_ratios_are_medians_of_rounds():
    from jrdp.comparison.timing.bench import _row

    row = _row("x", {"jittor-bench": [1.0, 2.0, 30.0], "torch-bench": [2.0, 2.0, 10.0]})
    assert row == {"part": "x", "jittor_ms": 2000.0, "torch_ms": 2000.0, "ratio": 1.0, "least": 0.5, "most": 3.0}


def test_bad_options_are_named(tmp_path):
    with pytest.raises(UserError, match="--engine 'quick'"):
        run_bench(BenchOptions(engine="quick"), tmp_path)
    with pytest.raises(UserError, match="test.precision=bfloat16 has no effect with --engine plain"):
        run_bench(BenchOptions(engine="plain", settings=["test.precision=bfloat16"]), tmp_path / "out")
    with pytest.raises(UserError, match="cannot start"):
        run_bench(BenchOptions(twin_python=str(tmp_path / "none")), tmp_path)
    assert not (tmp_path / "bench.json").exists()


def test_the_package_needs_no_jittor():
    """The twin's Python imports it too."""
    code = "import sys; import jrdp.comparison.timing, jrdp.comparison.exchange; assert 'jittor' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
