"""`jrdp doctor`: what this machine has, what was chosen and why, and whether the operators compute what they should."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Callable, Optional

from jrdp.machine import runtime
from jrdp.errors import UserError
from jrdp.machine.cache import cache_root
from jrdp.machine.driver import read_driver
from jrdp.machine.nvcc import Places, find_compilers
from jrdp.machine.processor import bfloat16_instructions
from jrdp.machine.python_headers import include_folders

PACKAGES = ("jittor", "numpy", "pillow", "opencv-python-headless", "pycocotools", "pydantic", "typer", "safetensors", "matplotlib")


class _Report:
    """Prints each finding as it is made and counts the bad ones."""

    def __init__(self) -> None:
        self.failed: list[str] = []

    def title(self, text: str) -> None:
        print(f"\n{text}", flush=True)

    def good(self, name: str, text: str) -> None:
        print(f"  ok    {name:<22} {text}", flush=True)

    def note(self, name: str, text: str) -> None:
        print(f"  note  {name:<22} {text}", flush=True)

    def bad(self, name: str, text: str) -> None:
        self.failed.append(name)
        print(f"  FAIL  {name:<22} {text}", flush=True)


def run_doctor(device: str = "auto", warm: bool = False) -> int:
    """Print the report; `warm` also compiles what a first prediction and training step need.

    Returns:
        0 when everything works on the chosen device, 1 otherwise.

    Raises:
        UserError: for a word that is no choice of device.
    """
    runtime.check_device(device)
    report = _Report()
    setup = runtime.prepare()
    _describe_machine(report)
    _describe_build_tools(report, setup)
    _describe_cuda(report, setup)
    report.title("Trying it")
    if setup.problems:
        for problem in setup.problems:
            report.bad("set-up", problem)
        return _verdict(report, None)
    started = time.monotonic()
    try:
        chosen = runtime.start(device, seed=1)
    except UserError as error:
        report.bad("import jittor", str(error))
        return _verdict(report, None)
    report.good("import jittor", f"{time.monotonic() - started:.1f} s, computing on {_device_name(chosen)}")
    if chosen == "cuda":
        report.note("TF32", runtime.describe_tf32())
    from jrdp.doctor import checks as doctor_checks

    for name, check in doctor_checks.CHECKS:
        _attempt(report, name, lambda: check(chosen))
    if doctor_checks.small_numbers_are_kept(chosen):
        report.good("numbers near zero", "kept by every thread, and by NumPy beside")
    else:
        report.note("numbers near zero", "kernels by this compiler make them zero: a resumed training may differ in its last bits")
    if warm:
        report.title("Compiling ahead (a minute or two the first time)")
        from jrdp.doctor.warm import warm_up

        _attempt(report, "train and predict", lambda: warm_up(chosen))
    return _verdict(report, chosen)


def _attempt(report: _Report, name: str, check: Callable[[], str]) -> None:
    started = time.monotonic()
    try:
        text = check()
    except KeyboardInterrupt:
        raise
    except Exception as error:  # whatever an operator does must not keep the next ones from being tried
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        report.bad(name, lines[0][:200])
    else:
        report.good(name, f"{text} ({time.monotonic() - started:.1f} s)")


def _describe_machine(report: _Report) -> None:
    report.title("Machine and packages")
    report.good("machine", f"{platform.system()} {platform.machine()}, {runtime.cores()} cores, {_memory()}")
    report.good("python", f"{platform.python_version()} at {sys.executable}")
    for package in PACKAGES:
        try:
            report.good(package, metadata.version(package))
        except metadata.PackageNotFoundError:
            report.bad(package, f"not installed: pip install {package}")


def _describe_build_tools(report: _Report, setup: runtime.Setup) -> None:
    report.title("What Jittor compiles with")
    if setup.compiler:
        report.good("compiler", f"{_first_line(setup.compiler, '--version')} at {setup.compiler}")
    report.good("Python headers", include_folders()[0])
    if setup.onednn.home:
        report.good("oneDNN", setup.onednn.note)
        found = bfloat16_instructions(setup.onednn.home)
        report.note("bfloat16", f"by {found}" if found else "neither AMX nor AVX512_BF16: precision=bfloat16 is refused")
    elif setup.onednn.note:
        report.note("oneDNN", setup.onednn.note)
    if setup.source:
        report.good("Jittor's source", str(setup.source))
    report.good("cache", f"{cache_root()} (delete it to compile everything anew)")
    mpi = shutil.which("mpirun")
    report.note("MPI", f"mpirun at {mpi}" if mpi else "no mpirun: training on several processes is not available here")


def _describe_cuda(report: _Report, setup: runtime.Setup) -> None:
    report.title("CUDA")
    driver = read_driver()
    if driver.usable:
        gpus = ", ".join(f"{capability // 10}.{capability % 10}" for capability in driver.capabilities)
        version = ".".join(map(str, driver.version))
        report.good("driver", f"runs CUDA up to {version}; {len(driver.capabilities)} GPU(s), compute capability {gpus}")
    else:
        report.note("driver", driver.problem)
    for nvcc in find_compilers(Places.of_this_machine()):
        report.note("nvcc", str(nvcc))
    if setup.cuda.usable:
        report.good("toolkit", setup.cuda.reason)
    else:
        report.note("toolkit", f"not used: {setup.cuda.reason}")
        if setup.cuda.fix:
            report.note("to use a GPU", setup.cuda.fix)
    for note in setup.cuda.notes:
        report.note("toolkit", note)


def _verdict(report: _Report, device: Optional[str]) -> int:
    if not report.failed:
        print(f"\nEverything works, on {_device_name(device)}.", flush=True)
        return 0
    print(f"\n{len(report.failed)} of the checks failed: {', '.join(report.failed)}. The lines marked FAIL say what to do.")
    return 1


def _device_name(device: Optional[str]) -> str:
    return {"cuda": "the GPU (CUDA)", "cpu": "the CPU"}.get(device or "", "nothing")


def _memory() -> str:
    try:
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB of memory"
    except (ValueError, OSError):
        return "memory unknown"


def _first_line(*command: str) -> str:
    try:
        lines = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout.splitlines()
    except (OSError, subprocess.TimeoutExpired):
        return "does not run"
    return lines[0] if lines else Path(command[0]).name
