"""Helpers of gpu_check.sh, with nothing but Python's library and `jrdp.machine`: run them from the clone's root.

    gpu_check.py gpu                             exit code 1 and the reason, when there is no usable NVIDIA GPU
    gpu_check.py pieces FOLDER MIB               move the wheels in FOLDER/new into FOLDER/1, /2, ... of at most MIB
    gpu_check.py summary OUT PART VERDICT SECONDS    add a run to OUT/summary.json
    gpu_check.py table OUT                       the latest run of every part
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

PACKAGES = ("jittor", "numpy", "torch", "torchvision")
SETTINGS = (
    "GPU_ITERATIONS", "GPU_STEPS", "GPU_SECONDS", "GPU_TESTS", "GPU_ROUNDS", "NVIDIA_TF32_OVERRIDE", "JRDP_PRECISE",
    "GPU_TWIN", "GPU_SETTINGS",
)  # fmt: skip


def gpu() -> None:
    from jrdp.machine.driver import read_driver

    driver = read_driver()
    if not driver.usable:
        sys.exit(driver.problem)


def pieces(folder: Path, mib: float) -> None:
    """Largest first, each wheel into the first piece that has room; a wheel above the limit gets a piece of its own."""
    for old in folder.glob("[0-9]*/*.whl"):
        old.unlink()
    wheels = sorted((folder / "new").glob("*.whl"), key=lambda path: (-path.stat().st_size, path.name))
    filled: list[int] = []
    for wheel in wheels:
        size = wheel.stat().st_size
        number = next((n for n, used in enumerate(filled) if used + size <= mib * 2**20), len(filled))
        if number == len(filled):
            filled.append(0)
        filled[number] += size
        target = folder / str(number + 1)
        target.mkdir(exist_ok=True)
        os.replace(wheel, target / wheel.name)
    (folder / "new").rmdir()
    for number, used in enumerate(filled, start=1):
        print(f"{folder / str(number)}: {used / 2**20:.1f} MiB")
    print(f"{len(wheels)} wheels, {sum(filled) / 2**20:.1f} MiB in {len(filled)} pieces")


def summary(out: Path, part: str, verdict: str, seconds: int) -> None:
    path = out / "summary.json"
    found = json.loads(path.read_text()) if path.exists() else {"runs": []}
    lines = (out / f"{part}.log").read_text(errors="replace").strip().splitlines()
    found.update(device=_device(), versions=_versions(), commit=_asked("git", "rev-parse", "HEAD"))
    found["runs"].append(
        {
            "part": part,
            "verdict": verdict,
            "seconds": seconds,
            "date": time.strftime("%Y-%m-%d %H:%M:%S"),
            "last_line": lines[-1] if lines else "",
            "settings": {name: os.environ[name] for name in SETTINGS if name in os.environ},
        }
    )
    new = path.with_suffix(".new")
    new.write_text(json.dumps(found, indent=1) + "\n")
    os.replace(new, path)


def table(out: Path) -> None:
    runs = json.loads((out / "summary.json").read_text())["runs"]
    latest = {run["part"]: run for run in runs}
    print(f"{'part':<13} {'verdict':<10} {'time':>8}   last line")
    for part, run in latest.items():
        print(f"{part:<13} {run['verdict']:<10} {run['seconds']:6d} s   {run['last_line'][:80]}")


def _device() -> str:
    return _asked("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader")


def _versions() -> dict:
    versions = {"python": platform.python_version()}  # the CUDA toolkit that was chosen is in doctor.log
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return versions


def _asked(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


if __name__ == "__main__":
    task, *rest = sys.argv[1:]
    if task == "gpu":
        gpu()
    elif task == "pieces":
        pieces(Path(rest[0]), float(rest[1]))
    elif task == "summary":
        summary(Path(rest[0]), rest[1], rest[2], int(rest[3]))
    elif task == "table":
        table(Path(rest[0]))
    else:
        sys.exit(__doc__)
