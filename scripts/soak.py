"""Fault injection on the command line: kills, full disks, damaged files by format, wrong command lines. See soak.sh.

Every command runs in a process of its own with a limit on time and address space. A round is bad when it prints a
traceback, ends with a code that the kind does not allow, dies of a signal that nobody sent, or loses something.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
SMALL = ["--device", "cpu", "--set", "input.min_size=64", "--set", "input.max_size=96"]
WRONG = [
    ["predict"], ["nonsense"], ["train", "--seed", "-1", "--out", "OUT"], ["train", "--seed", "9" * 23, "--out", "OUT"],
    ["train", "--out", "OUT", "--set", "train.seed=2020-13-45"], ["train", "--out", "OUT", "--set", "a"],
    ["train", "--out", "OUT", "--set", "solver.base_lr=.inf"], ["train", "--out", "OUT", "--set", "a=" + "[" * 5000],
    ["train", "--out", "OUT", "--resume"], ["data", "sample", "--seed", "-1", "OUT"], ["data", "check", "nonsense"],
    ["test", "--weights", "none.pth", "--out", "OUT"], ["predict", "--weights", "none.pth", "--out", "OUT", "none.jpg"],
    ["predict", "--weights", "none.pth", "--out", "OUT", "\u00b2"], ["convert", "none.pth", "OUT.pth"],
    ["predict", "--weights", "none.pth", "--out", "OUT", "9" * 20], ["bench", "--cost", "--out", "OUT", "--set", "x=1"],
    ["analyze", "--ground-truth", "none.json", "--compare", "a=none.json", "--out", "OUT"],
    ["analyze", "--ground-truth", "none.json", "--compare", "a", "--out", "OUT"], ["doctor", "--device", "tpu"],
]


class Soak:
    def __init__(self, work: Path, seed: int):
        self.work, self.random = work, random.Random(seed)
        self.rounds: Counter[str] = Counter()
        self.bad: Counter[str] = Counter()
        self.notes: list[str] = []
        self.sample = work / "sample"
        self.call(["data", "sample", str(self.sample), "--train", "4", "--val", "2"], check=True)
        self.training = [
            "--set", f"data.train=[{self.sample}/imgs:{self.sample}/train.json]", "--set", "data.test=[]", *SMALL,
            "--set", "solver.batch_size=2", "--set", "solver.max_iterations=6", "--set", "train.checkpoint_period=1",
            "--set", "data.workers=1",
        ]
        self.whole = work / "whole"
        self.call(["train", "--out", str(self.whole), *self.training], check=True)
        self.weights = self.whole / "final.safetensors"
        self.pictures = self.sample / "imgs"
        self.call(self.predicting(work / "predicted"), check=True)

    def predicting(self, out: Path) -> list[str]:
        return ["predict", "--weights", str(self.weights), "--out", str(out), *SMALL, str(self.pictures)]

    def command(self, arguments: list[str]) -> list[str]:
        return [sys.executable, "-m", "jrdp.cli", *arguments]

    def call(self, arguments: list[str], check: bool = False, file_limit: int | None = None, seconds: int = 300):
        def limits() -> None:
            if file_limit is not None:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))

        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
        try:
            done = subprocess.run(
                self.command(arguments), cwd=self.work, env=environment, capture_output=True, text=True,
                errors="replace", timeout=seconds, preexec_fn=limits,
            )
        except subprocess.TimeoutExpired:
            return subprocess.CompletedProcess(arguments, -1, "", f"no end within {seconds} s")
        if check and done.returncode != 0:
            sys.exit(f"soak: {' '.join(arguments)} failed before any fault:\n{done.stderr}")
        return done

    def judge(self, kind: str, done, codes: set[int], lost: str = "") -> None:
        self.rounds[kind] += 1
        reason = lost
        if "Traceback" in done.stderr:
            reason = "a traceback"
        elif done.returncode not in codes:
            reason = f"exit code {done.returncode}"
        if reason:
            self.bad[kind] += 1
            self.notes.append(f"{kind}: {reason}: {' '.join(map(str, done.args))[-300:]}\n    {done.stderr[-400:].strip()}")

    def kill(self) -> None:
        """Kill a training or a prediction, continue it, and compare with the run that nobody killed."""
        training = self.random.random() < 0.5
        out = Path(tempfile.mkdtemp(dir=self.work)) / "out"
        arguments = ["train", "--out", str(out), *self.training] if training else self.predicting(out)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
        process = subprocess.Popen(
            self.command(arguments), cwd=self.work, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        mark = out / ("last.safetensors" if training else "predictions.partial.jsonl")
        end = time.monotonic() + 120
        while not mark.exists() and process.poll() is None and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(self.random.random())
        process.kill()
        process.wait()
        done = self.call([*arguments, "--resume"])
        lost = ""
        if done.returncode == 0:
            name, reference = (
                ("final.safetensors", self.whole) if training else ("predictions.json", self.work / "predicted")
            )
            if (out / name).read_bytes() != (reference / name).read_bytes():
                lost = f"another {name} than without the kill"
            elif [path.name for path in out.iterdir() if path.name.startswith(".")]:
                lost = "temporary files are left"
        self.judge("kills", done, {0}, lost)
        shutil.rmtree(out.parent)

    def full_disk(self) -> None:
        """No file may grow beyond a few bytes: as a full disk, without needing one. Then continue without the limit."""
        out = Path(tempfile.mkdtemp(dir=self.work)) / "out"
        done = self.call(self.predicting(out), file_limit=self.random.choice([0, 100, 1000, 5000]))
        self.judge("full disks", done, {1, 2})
        done = self.call([*self.predicting(out), "--resume"])
        same = done.returncode == 0 and (out / "predictions.json").read_bytes() == (
            self.work / "predicted" / "predictions.json"
        ).read_bytes()
        self.judge("full disks, continued", done, {0}, "" if same else "other predictions than without the fault")
        shutil.rmtree(out.parent)

    def mutate(self) -> None:
        """Damage one file of a known format and give it to the command that reads it."""
        suffix = self.random.choice([".safetensors", ".json", ".yaml", ".png", ".pth"])
        folder = Path(tempfile.mkdtemp(dir=self.work))
        path, out = folder / f"x{suffix}", folder / "out"
        annotations = self.sample / "val.json"
        if suffix == ".safetensors":
            data, arguments = self.weights.read_bytes(), ["convert", str(path), str(folder / "y.pth")]
        elif suffix == ".pth":
            source = self.work / "whole.pth"
            if not source.exists():
                self.call(["convert", str(self.weights), str(source)], check=True)
            data, arguments = source.read_bytes(), ["convert", str(path), str(folder / "y.safetensors")]
        elif suffix == ".json":
            data, arguments = annotations.read_bytes(), ["data", "check", f"{self.pictures}:{path}"]
        elif suffix == ".yaml":
            data = (self.whole / "config.yaml").read_bytes()
            arguments = ["data", "check", "nonsense", "--config", str(path)]
        else:
            Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(path)
            data, arguments = path.read_bytes(), [*self.predicting(out)[:-1], str(path)]
        path.write_bytes(self.damaged(data))
        self.judge(f"mutations {suffix}", self.call(arguments), {0, 1, 2})
        shutil.rmtree(folder)

    def damaged(self, data: bytes) -> bytes:
        changed = bytearray(data)
        how = self.random.randrange(3)
        if how == 0:
            return bytes(changed[: self.random.randrange(len(changed))])
        for _ in range(self.random.choice([1, 3, 30])):
            place = self.random.randrange(min(len(changed), 4096) if how == 1 else len(changed))
            changed[place] = self.random.randrange(256)
        return bytes(changed)

    def wrong_command_line(self) -> None:
        out = self.work / "never"
        arguments = [part.replace("OUT", str(out)) for part in self.random.choice(WRONG)]
        done = self.call(arguments)
        self.judge("wrong command lines", done, {2}, "an output folder is left" if out.exists() else "")

    def table(self) -> str:
        rows = [f"{'kind':<26}{'rounds':>8}{'bad':>6}"]
        rows += [f"{kind:<26}{self.rounds[kind]:>8}{self.bad[kind]:>6}" for kind in sorted(self.rounds)]
        return "\n".join([*rows, *self.notes])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="also write the table as JSON to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="jrdp-soak-") as folder:
        soak = Soak(Path(folder), options.seed)
        end = time.monotonic() + 60 * options.minutes
        kinds = [soak.wrong_command_line, soak.mutate, soak.full_disk, soak.mutate, soak.kill, soak.wrong_command_line]
        number = 0
        while number < len(kinds) or time.monotonic() < end:  # every kind at least once
            kinds[number % len(kinds)]()
            number += 1
    print(soak.table())
    if options.out:
        options.out.write_text(json.dumps({"rounds": soak.rounds, "bad": soak.bad, "notes": soak.notes}, indent=1))
    return 1 if sum(soak.bad.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
