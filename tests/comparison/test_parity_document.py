"""docs/parity.md is made of reports: whatever stands in them, and what did not end as expected, is in the document."""

from __future__ import annotations

import importlib.util
import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def document():
    spec = importlib.util.spec_from_file_location("parity_document", ROOT / "scripts" / "parity_document.py")
    module = importlib.util.module_from_spec(spec)
    path = list(sys.path)
    spec.loader.exec_module(module)
    sys.path[:] = path
    return module


def done(out, name, command, code=0, expected=0, log="", report=None):
    folder = out / name
    folder.mkdir()
    (folder / "command").write_text(command + "\n")
    (folder / "exit").write_text(f"{code} {expected}\n")
    (folder / "log").write_text(log)
    if report is not None:
        (folder / "report.json").write_text(json.dumps(report))


def test_commands_are_shown_as_a_person_types_them(document, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    words = f"/opt/python -m jrdp compare layers --weights {out}/inputs/golden.safetensors"
    done(out, "a", f"{words} --images tests/golden/imgs --out {out}/a --twin-python /opt/torch --threads 1")
    assert document._command(out, "a") == (
        "jrdp compare layers --weights G --images tests/golden/imgs --out out/a --twin-python T"
    )
    done(out, "b", f"/opt/python -m jrdp compare layers --weights /home/x/w.safetensors --images {out}/inputs/few")
    assert document._command(out, "b") == "jrdp compare layers --weights W --images P"
    pytest_words = "/opt/python -m pytest -q -p no:cacheprovider tests/ops -k roi or nms"
    done(out, "c", pytest_words, log="x\n== 3 passed in 2.10s ==\n")
    assert document._command(out, "c") == 'pytest tests/ops -k "roi or nms"'
    assert document._passed(out, "c") == "3 passed"
    done(out, "d", "/opt/python -m pytest -q -p no:cacheprovider tests/ops -m not gpu", log="3 passed, 2 deselected in 1.0s\n")
    assert document._command(out, "d") == 'pytest tests/ops -m "not gpu"'
    assert document._passed(out, "d") == "3 passed"


def test_a_control_that_was_not_caught_is_visible(document, tmp_path):
    names = ("rgb", "group-norm-eps", "aligned", "sqrt-score", "nms-without-one", "tensor")
    for name in names:
        caught = name != "aligned"
        failures = [f"first stage over tolerance: {name}"] if caught else []
        done(tmp_path, f"control_{name}", "jrdp compare", int(caught), 1, report={"failures": failures})
    rows = [line for line in document._controls(tmp_path) if line.startswith("| `") or line.startswith("| 1.0")]
    assert len(rows) == 6
    assert [row for row in rows if "| 0 | nothing |" in row] == [row for row in rows if "`aligned`" in row]


def test_tolerances_are_those_of_the_reports(document, tmp_path):
    assert document._tolerances(tmp_path) == []
    done(tmp_path, "gradients1", "jrdp compare", report={"tolerances": {"loss": 2e-5, "norm": 0.5, "element": 0.25}})
    rows = [line for line in document._tolerances(tmp_path) if line.startswith("| ") and "---" not in line]
    assert [row.split(" | ")[1].rstrip(" |") for row in rows] == ["tolerance", "2e-05", "0.5", "0.25"]


def test_the_rounding_of_plain_sums_is_shown_beside_the_frameworks(document, tmp_path):
    found = {"sums_jittor": {"jittor": 3e-7}, "sums_torch": {"torch": 7e-8}, "sums_chains": {"one chain": 4e-7, "eight chains": 6e-8}}
    for name, sides in found.items():
        assert document._sums(tmp_path) == []
        words = f"/opt/python scripts/parity_sums.py {name[5:]}"
        done(tmp_path, name, words, log="compiling\n" + json.dumps({side: {"4": value} for side, value in sides.items()}) + "\n")
    lines = document._sums(tmp_path)
    assert "| a convolution to 4 channels | 3e-07 | 7e-08 | 4e-07 | 6e-08 |" in lines and "    python scripts/parity_sums.py torch" in lines


def test_a_whole_training_has_a_document_with_its_curves(document, monkeypatch, tmp_path):
    def metrics(value):
        return {"val": {kind: {"AP": value, "AP50": 0.9, "AP70": 0.8} for kind in ("bbox", "segm")}}

    report = {
        "title": "", "passed": True, "failures": [], "machine": "a machine", "steps": 600, "seeds": [3], "config": "c.yaml",
        "settings": ["data.root=/home/x", "train.weights=/home/x/start.pth"], "weights": "start.pth", "weights_of_config": False, "pictures_per_step": 4, "size": [128, 192],
        "losses": [{"seed": 3, "loss": "total", "Jittor": 1.25, "PyTorch": 1.5, "difference": -0.25, "scatter": 0.125}],
        "spread": [{"set": "val", "of": "segm", "measure": "AP", "Jittor": 0.5, "PyTorch": 0.25, "difference": 0.25, "gap": "one seed"}],
        "common": [{"seed": 3, "step": 601, "losses": 2e-7, "apart": 7e-5}],
        "metrics": {"3": {"jittor": {"jittor": metrics(0.5), "torch": metrics(0.4375)}}},
    }  # fmt: skip
    done(tmp_path, "whole", "jrdp compare training", report=report)
    page = tmp_path / "whole" / "report.html"
    page.write_text('jittor 1.3.11, torch 2.13.0 <img alt="x" src="data:image/png;base64,aGFsbG8=">')
    script = [sys.executable, str(ROOT / "scripts" / "parity_document.py"), "whole", str(tmp_path), str(tmp_path / "t.md")]
    monkeypatch.setenv("PARITY_WHOLE_ABOUT", "What it was.")
    subprocess.run(script, check=True)
    text = (tmp_path / "t.md").read_text()
    assert (tmp_path / "t_seed3.png").read_bytes() == b"hallo" and "(t_seed3.png)" in text and "What it was." in text
    assert "| 3 | total | 1.2500 | 1.5000 | -0.2500 | 0.1250 |" in text and "at most 0.062 apart" in text
    assert "--config c.yaml --weights start.pth --set data.root=DATA --set train.weights=weights/start.pth --steps 600 --evaluate --seeds 3" in text
    assert "| 3 | 601 | 2e-07 | 7e-05 |" in text
    assert "/home/x" not in text and "torch 2.13.0" in text and "Verdict: equal" in text
    report["weights_of_config"] = True
    (tmp_path / "whole" / "report.json").write_text(json.dumps(report))
    subprocess.run(script, check=True)
    assert "--config c.yaml --set data.root=DATA" in (tmp_path / "t.md").read_text()
    page.write_text("no picture")
    assert subprocess.run(script, capture_output=True).returncode == 1


def test_one_float32_chain_is_rougher_than_eight():
    words = [sys.executable, str(ROOT / "scripts" / "parity_sums.py")]
    done = subprocess.run([*words, "chains"], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert all(2 * found["eight chains"][key] < found["one chain"][key] < 3e-6 for key in ("4", "128", "weights"))
    assert subprocess.run([*words, "else"], capture_output=True).returncode == 1


def test_bad_arguments_are_told_before_anything_runs(tmp_path):
    script = ROOT / "scripts" / "parity.sh"
    cases = (([], "usage:"), ([tmp_path / "no", tmp_path], "no weight file"), ([script, script], "no folder"))
    for arguments, words in cases:
        found = subprocess.run(["bash", script, *arguments], capture_output=True, text=True)
        assert found.returncode == 2 and words in found.stderr
