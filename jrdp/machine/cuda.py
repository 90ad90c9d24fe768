"""Which CUDA toolkit Jittor gets, or why it runs on the CPU.

Every toolkit found is judged in turn; the first without an objection is used. With CUDA on and no GPU, Jittor ends the
process, so CUDA is on only when the driver itself reports a GPU.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Mapping, Optional

from jrdp.machine.cache import own_folder
from jrdp.machine.driver import Driver, read_driver
from jrdp.machine.nvcc import Nvcc, Places, find_compilers, folders_for
from jrdp.machine.view import CUDA13_FLAGS, Options, View, make_view

OLDEST, NEWEST = 11, 13  # major versions of CUDA that the view is made for

# The newest major version of g++ that each CUDA accepts, from NVIDIA's installation guides: (CUDA from, g++).
_NEWEST_GXX = (((13, 0), 15), ((12, 8), 14), ((12, 4), 13), ((12, 0), 12), ((11, 5), 11), ((11, 1), 10), ((11, 0), 9))

# The oldest compute capability that each major version of CUDA still compiles for.
_OLDEST_GPU = {11: 35, 12: 50, 13: 75}

# The oldest Linux driver for each major version of CUDA (minor versions are compatible with one another).
_DRIVERS = {11: 450, 12: 525, 13: 580}

_INSTALL = "pip install 'jrdp[cuda13]' brings CUDA 13 (driver 580 or newer)"


@dataclass(frozen=True)
class CudaChoice:
    usable: bool
    reason: str  # one sentence: what was chosen, or why there is no CUDA
    fix: str = ""  # what a person can do about it
    notes: tuple[str, ...] = ()  # one line for each toolkit that was found and not chosen
    environment: dict = field(default_factory=dict)  # what Jittor must find in os.environ; overrides what is there
    cards: int = 0  # that this process sees, where `usable`


@dataclass(frozen=True)
class Refusal:
    reason: str
    fix: str


def choose_cuda(compiler: str, places: Optional[Places] = None, driver: Optional[Driver] = None) -> CudaChoice:
    """Judge what this machine has; `compiler` is the path of g++. Tests pretend with `places` and `driver`."""
    places = places or Places.of_this_machine()
    environ = places.environ
    if environ.get("nvcc_path") == "":
        return _off("CUDA is switched off: the environment variable nvcc_path is empty", "unset nvcc_path")
    driver = driver or read_driver()
    if not driver.usable:
        fix = "" if driver.version == (0, 0) else "run nvidia-smi: it must list the GPU"
        return _off(driver.problem, fix or "on a machine with an NVIDIA GPU, install its driver")
    compilers = find_compilers(places)
    refusals: list[tuple[Nvcc, Refusal]] = []
    for index, nvcc in enumerate(compilers):
        refusal = _refuse_version(nvcc, driver) or _refuse_compiler(nvcc, compiler)
        if refusal is None:
            view = make_view(own_folder(), nvcc, folders_for(nvcc, places), _options(nvcc, driver, environ))
            refusal = _refuse_view(nvcc, view)
        if refusal is None:
            others = [f"{other} was not needed" for other in compilers[index + 1 :]]
            refused = [f"{other} was passed over: {why.reason}; {why.fix}" for other, why in refusals]
            notes, environment = (*refused, *others), _environment(nvcc, view, environ)
            return CudaChoice(True, f"{nvcc}, through {view.folder}", "", notes, environment, len(driver.capabilities))
        refusals.append((nvcc, refusal))
    if not refusals:
        version = ".".join(map(str, driver.version))
        return _off(f"the driver is ready for CUDA {version}, but no nvcc was found to compile with", _INSTALL)
    notes = tuple(f"{nvcc} was passed over: {why.reason}; {why.fix}" for nvcc, why in refusals)
    first, why = refusals[0]
    return _off(f"{first}: {why.reason}", why.fix, notes)


def _off(reason: str, fix: str, notes: tuple[str, ...] = ()) -> CudaChoice:
    # An unset nvcc_path would not do: Jittor then looks for nvcc itself.
    return CudaChoice(False, reason, fix, notes, {"nvcc_path": ""})


def _refuse_version(nvcc: Nvcc, driver: Driver) -> Optional[Refusal]:
    major = nvcc.version[0]
    if not OLDEST <= major <= NEWEST:
        return Refusal(f"only CUDA {OLDEST} to {NEWEST} are supported", _INSTALL)
    if driver.version[0] < major:
        has = ".".join(map(str, driver.version))
        return Refusal(
            f"the driver is too old for it (it runs CUDA up to {has})",
            f"update the NVIDIA driver to {_DRIVERS[major]} or newer, or install a CUDA {driver.version[0]} toolkit",
        )
    oldest = min(driver.capabilities)
    if oldest < _OLDEST_GPU[major]:
        return Refusal(
            f"it no longer compiles for this GPU (compute capability {_dotted(oldest)})",
            "install a CUDA 12 toolkit" if oldest >= _OLDEST_GPU[12] else "install a CUDA 11 toolkit",
        )
    return None


def _refuse_compiler(nvcc: Nvcc, compiler: str) -> Optional[Refusal]:
    found = _gxx_major(compiler)
    newest = next((limit for since, limit in _NEWEST_GXX if nvcc.version >= since), None)
    if found is None or newest is None or found <= newest:
        return None
    return Refusal(
        f"it accepts g++ up to {newest}, {compiler} is {found}",
        f"install g++-{newest} and set cc_path=/usr/bin/g++-{newest}",
    )


def _gxx_major(compiler: str) -> Optional[int]:
    try:
        told = subprocess.run([compiler, "-dumpversion"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.match(r"\d+", told.stdout)
    return int(match.group()) if match and "g++" in Path(compiler).name else None


def _refuse_view(nvcc: Nvcc, view: View) -> Optional[Refusal]:
    if not view.missing:
        return None
    major = nvcc.version[0]
    lacking = ", ".join(view.missing)
    if all("cudnn" in name for name in view.missing):
        return Refusal(f"cuDNN is missing ({lacking})", f"pip install nvidia-cudnn-cu{major}, or set CUDNN_HOME to its folder")
    wheels = "pip install 'jrdp[cuda13]'" if major == 13 else f"install the complete CUDA {major} toolkit and nvidia-cudnn-cu{major}"
    return Refusal(f"the toolkit is incomplete, it lacks {lacking}", wheels)


def _options(nvcc: Nvcc, driver: Driver, environ: Mapping[str, str]) -> Options:
    newest = 90 if nvcc.version >= (11, 8) else 86 if nvcc.version >= (11, 1) else 80  # as Jittor 1.3.11 limits it
    return Options(ptx=max(driver.capabilities) > newest, precise=environ.get("JRDP_PRECISE") == "1")


def _environment(nvcc: Nvcc, view: View, environ: Mapping[str, str]) -> dict:
    values = {"nvcc_path": str(view.nvcc)}
    if nvcc.version[0] >= 13:
        values["cc_flags"] = f"{environ.get('cc_flags', '')} {CUDA13_FLAGS}".strip()
    return values


def _dotted(capability: int) -> str:
    return f"{capability // 10}.{capability % 10}"
