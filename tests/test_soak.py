"""`scripts/soak.py` sees what it claims to see: a file that is not whole, and a process that does not end as it should."""

import importlib.util
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

SPEC = importlib.util.spec_from_file_location("soak", Path(__file__).resolve().parents[1] / "scripts" / "soak.py")
soak = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(soak)


@pytest.mark.parametrize("name", ["a.png", "a.json", "a.yaml", "a.safetensors"])
def test_a_cut_file_is_seen(tmp_path, name):
    assert soak.cut_files(tmp_path / "none") == "" == soak.cut_files(tmp_path)
    path = tmp_path / name
    if name == "a.png":
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (9, 9, 3), dtype=np.uint8)).save(path)
    elif name == "a.safetensors":
        save_file({"x": np.zeros(9, np.float32)}, path)
    else:
        path.write_text('{"a": [1, 2]}\n' if name == "a.json" else "a: 1\n")
    assert soak.cut_files(tmp_path) == ""
    data = path.read_bytes()
    for length in (0, len(data) // 2, len(data) - (2 if name == "a.json" else 1)):
        path.write_bytes(data[:length])
        (tmp_path / f".{name}.abcd1234").write_bytes(data[:length])  # a temporary one may be cut, and lines that grow
        (tmp_path / "log.jsonl").write_text('{"a"')
        assert soak.cut_files(tmp_path) == f"not whole: {name}", length


@pytest.mark.parametrize(
    "code, number, words",
    [
        ("time.sleep(60)", signal.SIGKILL, ""),
        ("time.sleep(60)", signal.SIGTERM, ""),
        ("signal.signal(signal.SIGTERM, lambda *_: os._exit(143)); print(flush=True); time.sleep(60)", signal.SIGTERM, ""),
        ("signal.signal(signal.SIGTERM, lambda *_: os._exit(1)); print(flush=True); time.sleep(60)", signal.SIGTERM, "exit code 1 after SIGTERM"),
        ("pass", signal.SIGTERM, ""),
    ],
)  # fmt: skip
def test_how_a_process_ended_is_judged(code, number, words):
    process = subprocess.Popen(
        [sys.executable, "-c", f"import os, signal, time; {code}"], stdout=subprocess.PIPE, start_new_session=True
    )
    if "print" in code or code == "pass":
        process.stdout.readline()
    assert soak.ended(process, number) == words
    process.stdout.close()


@pytest.mark.filterwarnings("ignore::UserWarning")  # of Pillow, about what is damaged
def test_every_sound_file_is_read_before_damaged_ones_are():
    counted = soak.read_damaged(10, seed=0)
    assert {".safetensors", ".pth", ".png", "results.json", ".yaml"} < set(counted)
    assert all((count, notes) == (10, []) for count, notes in counted.values()), counted
