"""Fault injection on the command line: kills, interruptions, full disks, damaged files by format, wrong command lines.
See soak.sh.

Every command runs in a process of its own with a limit on time. A round is bad when it prints a traceback, ends with a
code that the kind does not allow, dies of a signal that nobody sent, or loses something. Besides, thousands of damaged
files a round go to the readers in one process (`--read`): there, anything but a `UserError` is bad.
"""

from __future__ import annotations

import argparse
import contextlib
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
from typing import Iterator

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
SMALL = ["--device", "cpu", "--set", "input.min_size=64", "--set", "input.max_size=96"]
READ_COUNT = 500  # damaged files of each format in a round of `read_mutations`
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

    def environment(self) -> dict:
        return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}

    def command(self, arguments: list[str]) -> list[str]:
        return [sys.executable, "-m", "jrdp", *arguments]

    def call(self, arguments: list[str], check: bool = False, file_limit: int | None = None, seconds: int = 300):
        def limits() -> None:
            if file_limit is not None:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))

        try:
            done = subprocess.run(
                self.command(arguments), cwd=self.work, env=self.environment(), capture_output=True, text=True,
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
        """Kill a training or a prediction, or send it and its children what Ctrl-C, a batch system or a closed terminal does;
        continue it, and compare with the run that was left alone."""
        number = self.random.choice([signal.SIGKILL, signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
        kind = "kills" if number == signal.SIGKILL else "interruptions"
        training = self.random.random() < 0.5
        out = Path(tempfile.mkdtemp(dir=self.work)) / "out"
        arguments = ["train", "--out", str(out), *self.training] if training else self.predicting(out)
        process = subprocess.Popen(
            self.command(arguments), cwd=self.work, env=self.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        mark = out / ("last.safetensors" if training else "predictions.partial.jsonl")
        end = time.monotonic() + 300
        while not mark.exists() and process.poll() is None and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(self.random.random())
        lost = ended(process, number) or cut_files(out)
        if not out.exists() or not (mark.exists() or (out / "predictions.json").exists()):
            shutil.rmtree(out.parent)  # a machine so busy that nothing was done yet: there is nothing to continue
            return
        done = self.call([*arguments, "--resume"])
        if done.returncode == 0 and not lost:
            name, reference = (
                ("final.safetensors", self.whole) if training else ("predictions.json", self.work / "predicted")
            )
            if (out / name).read_bytes() != (reference / name).read_bytes():
                lost = f"another {name} than without it"
            elif [path.name for path in out.iterdir() if path.name.startswith(".")]:
                lost = "temporary files are left"
        self.judge(kind, done, {0}, lost)
        shutil.rmtree(out.parent)

    def full_disk(self) -> None:
        """A small disk for the output where one may be mounted, which is full soon; then continue on a larger one.

        Elsewhere no file may grow beyond a few bytes, which ends a run when Jittor starts already. A training fails at its first checkpoint then, and has nothing to continue.
        """
        out = Path(tempfile.mkdtemp(dir=self.work)) / "out"
        if self.random.random() < 0.3:
            with small_disk(out, self.random.choice([8, 64, 1024])) as disk:
                done = self.call(["train", "--out", str(out), *self.training], file_limit=None if disk else 5000)
                self.judge("full disks", done, {1, 2}, cut_files(out))
            shutil.rmtree(out.parent)
            return
        with small_disk(out, self.random.choice([8, 64, 128])) as disk:
            done = self.call(self.predicting(out), file_limit=None if disk else 5000)
            self.judge("full disks", done, {1, 2}, cut_files(out))
            if disk:
                subprocess.run(["mount", "-o", "remount,size=256m", str(out)], check=True)
            self.continued(out)
        shutil.rmtree(out.parent)

    def continued(self, out: Path) -> None:
        done = self.call([*self.predicting(out), "--resume"])
        same = done.returncode == 0 and (out / "predictions.json").read_bytes() == (
            self.work / "predicted" / "predictions.json"
        ).read_bytes()
        self.judge("full disks, continued", done, {0}, "" if same else "other predictions than without the fault")

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
        path.write_bytes(damaged(data, self.random))
        self.judge(f"mutations {suffix}", self.call(arguments), {0, 1, 2})
        shutil.rmtree(folder)

    def read_mutations(self) -> None:
        """Damage small files of every format by the thousand and give them to the readers themselves."""
        command = [sys.executable, __file__, "--read", str(READ_COUNT), "--seed", str(self.random.randrange(1 << 30))]
        done = subprocess.run(command, cwd=self.work, env=self.environment(), capture_output=True, text=True, timeout=600)
        try:
            counted = json.loads(done.stdout.splitlines()[-1])
        except (IndexError, ValueError):
            self.rounds["mutations, read"] += 1
            self.bad["mutations, read"] += 1
            self.notes.append(f"mutations, read: ended with {done.returncode}: {done.stderr[-400:].strip()}")
            return
        for suffix, (rounds, notes) in counted.items():
            self.rounds[f"mutations, read {suffix}"] += rounds
            self.bad[f"mutations, read {suffix}"] += len(notes)
            self.notes += [f"mutations, read {suffix}: {note}" for note in notes[:3]]

    def wrong_command_line(self) -> None:
        out = self.work / "never"
        arguments = [part.replace("OUT", str(out)) for part in self.random.choice(WRONG)]
        done = self.call(arguments)
        self.judge("wrong command lines", done, {2}, "an output folder is left" if out.exists() else "")

    def table(self) -> str:
        rows = [f"{'kind':<26}{'rounds':>8}{'bad':>6}"]
        rows += [f"{kind:<26}{self.rounds[kind]:>8}{self.bad[kind]:>6}" for kind in sorted(self.rounds)]
        return "\n".join([*rows, *self.notes])


@contextlib.contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[bool]:
    """Mount a disk of so many kilobytes at `folder`; gives whether that was allowed."""
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode != 0:
        folder.rmdir()
        yield False
        return
    try:
        yield True
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def ended(process: subprocess.Popen, number: int) -> str:
    """Send SIGKILL to the process alone and any other signal to its whole group; what is wrong with how it then ends."""
    if process.poll() is None:
        os.kill(process.pid, number) if number == signal.SIGKILL else os.killpg(process.pid, number)
    try:
        code = process.wait(60)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return f"no end within 60 s of {signal.Signals(number).name}"
    expected = {0, -number, 128 + number}  # 0: it was done; -number: at its very end, where the signal is the system's again
    return "" if code in expected else f"exit code {code} after {signal.Signals(number).name}"


def cut_files(folder: Path) -> str:
    """Which files under their final names are not whole, in words; "" for none. What grows by the line may be cut."""
    broken = []
    for path in sorted(folder.iterdir() if folder.is_dir() else ()):
        try:
            if path.name.startswith("."):
                continue  # temporary
            if path.suffix == ".png":
                assert path.read_bytes().endswith(b"IEND\xaeB`\x82")  # Pillow reads one without its end
            elif path.suffix == ".json":
                json.loads(path.read_text())
            elif path.suffix == ".yaml":
                assert path.read_text().endswith("\n")
            elif path.suffix == ".safetensors":
                data = path.read_bytes()
                header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
                ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
                assert len(data) == 8 + int.from_bytes(data[:8], "little") + max(ends)
        except Exception:
            broken.append(path.name)
    return f"not whole: {', '.join(broken)}" if broken else ""


def damaged(data: bytes, random_: random.Random) -> bytes:
    """Cut off somewhere, or with a few bytes changed, near the beginning or anywhere."""
    changed = bytearray(data)
    how = random_.randrange(3)
    if how == 0:
        return bytes(changed[: random_.randrange(len(changed))])
    for _ in range(random_.choice([1, 3, 30])):
        place = random_.randrange(min(len(changed), 4096) if how == 1 else len(changed))
        changed[place] = random_.randrange(256)
    return bytes(changed)


def readable_files(folder: Path) -> dict:
    """Suffix -> (a small sound file's bytes, what reads a file like it)."""
    sys.path.insert(0, str(ROOT))
    from jrdp import interchange
    from jrdp.config import Config, dump_config, load_config
    from jrdp.data.annotations import load_json, parse_annotations
    from jrdp.data.transforms import read_image
    from jrdp.dataset_tools.masks import index_map
    from jrdp.dataset_tools.matfile import read_mat
    from jrdp.engine.weights import config_of
    from jrdp.evaluation.ground_truth import load_ground_truth
    from jrdp.evaluation.results import check_results, read_results
    from jrdp.interchange import native

    names = ("backbone.body.stem.conv1.weight", "backbone.body.stem.bn1.bias", "rpn.head.scales.0.scale")
    tensors = {name: np.arange(24, dtype=np.float32).reshape(2, 3, 4) for name in names}
    # What a ResNet-50 is recognised by: another backbone's configuration is not asked any further.
    last = [f"backbone.body.layer{stage + 1}.{blocks - 1}.conv3.weight" for stage, blocks in enumerate((3, 4, 6, 3))]
    tensors.update({name: np.ones((1, 1, 1, 1), np.float32) for name in last})
    tensors["backbone.body.layer1.0.conv2.weight"] = np.ones((64, 64, 1, 1), np.float32)
    file = interchange.WeightFile(tensors, iteration=3, metadata=native.header(Config(), 3))
    square = [2, 2, 12, 2, 12, 12, 2, 12]
    results = [{"image_id": 1, "category_id": 1, "score": 0.5, "bbox": [2, 2, 10, 10], "segmentation": [square]}]
    annotations = {
        "images": [{"id": 1, "file_name": "a.png", "width": 32, "height": 24}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "area": 100, "bbox": [2, 2, 10, 10], "segmentation": [square]},
            {"id": 2, "image_id": 1, "category_id": 1, "iscrowd": 0, "segmentation": {"size": [24, 32], "counts": [50, 20, 698]}},
        ],
        "categories": [{"id": 1, "name": "salient"}],
    }  # fmt: skip
    (folder / "truth.json").write_text(json.dumps(annotations))
    truth = load_ground_truth(folder / "truth.json", "segm")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (24, 32, 3), dtype=np.uint8))
    head = b"MATLAB 5.0 MAT-file".ljust(124) + b"\0\1IM"
    body = bytes.fromhex("0600000008000000") + bytes([6, 0, 0, 0, 0, 0, 0, 0])
    body += bytes.fromhex("05000000080000000200000002000000") + bytes.fromhex("0100010061000000")
    body += bytes.fromhex("0900000020000000") + np.arange(4.0).tobytes()
    found = {}
    for suffix in (".safetensors", ".pth", ".pkl"):
        interchange.write(folder / f"w{suffix}", file)
        found[suffix] = ((folder / f"w{suffix}").read_bytes(), lambda path: config_of(interchange.read(path), None, []))
    for suffix in (".png", ".jpg", ".webp", ".tif", ".gif", ".bmp"):
        picture.save(folder / f"p{suffix}")
        found[suffix] = ((folder / f"p{suffix}").read_bytes(), read_image)
    mask = Image.fromarray(np.kron(np.arange(4, dtype=np.uint8).reshape(2, 2), np.ones((12, 16), np.uint8)))
    mask.save(folder / "m.png")
    found["mask.png"] = ((folder / "m.png").read_bytes(), index_map)
    found["annotations.json"] = (
        json.dumps(annotations).encode(), lambda path: parse_annotations(load_json(path), str(path))
    )  # fmt: skip
    found["results.json"] = (
        json.dumps(results).encode(), lambda path: check_results(read_results(path), truth, str(path))
    )  # fmt: skip
    found[".yaml"] = (dump_config(Config()).encode(), load_config)
    found[".mat"] = (head + (14).to_bytes(4, "little") + len(body).to_bytes(4, "little") + body, read_mat)
    return found


def read_damaged(count: int, seed: int) -> dict:
    """Suffix -> (how many damaged files were read, what went wrong): anything but a `UserError` has."""
    random_ = random.Random(seed)
    counted = {}
    with tempfile.TemporaryDirectory(prefix="jrdp-soak-read-") as name:
        folder = Path(name)
        files = readable_files(folder)
        from jrdp.errors import UserError

        for suffix, (data, read) in files.items():
            path, notes = folder / f"damaged{suffix}", []
            path.write_bytes(data)
            read(path)  # the sound one is read
            for _ in range(count):
                path.write_bytes(damaged(data, random_))
                try:
                    read(path)
                except UserError as error:
                    if "\n" in str(error):
                        notes.append(f"more than one line: {error!r:.300}")
                except Exception as error:
                    notes.append(f"{error!r:.300}")
            counted[suffix] = (count, notes)
    return counted


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="also write the table as JSON to this file")
    parser.add_argument("--read", type=int, metavar="COUNT", help="only give COUNT damaged files a format to the readers")
    options = parser.parse_args()
    if options.read:
        print(json.dumps(read_damaged(options.read, options.seed)))
        return 0
    with tempfile.TemporaryDirectory(prefix="jrdp-soak-") as folder:
        soak = Soak(Path(folder), options.seed)
        end = time.monotonic() + 60 * options.minutes
        kinds = [
            soak.wrong_command_line, soak.mutate, soak.full_disk, soak.read_mutations, soak.kill, soak.wrong_command_line,
            soak.mutate,
        ]  # fmt: skip
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
