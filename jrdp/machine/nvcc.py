"""Finding CUDA compilers and the folders that belong to each: system toolkits, conda, and pip wheels."""

from __future__ import annotations

import os
import re
import shutil
import site
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Mapping, Optional

SYSTEM_LIBRARIES = ("usr/lib/x86_64-linux-gnu", "usr/lib/aarch64-linux-gnu", "usr/lib64", "usr/lib")
SYSTEM_HEADERS = ("usr/include", "usr/include/x86_64-linux-gnu", "usr/include/aarch64-linux-gnu")


@dataclass(frozen=True)
class Places:
    """Where to look. The default is this machine; tests name a pretend one."""

    environ: Mapping[str, str]
    sites: tuple[Path, ...]  # folders that may hold `nvidia/`, the pip wheels
    system: Path = Path("/")

    @staticmethod
    def of_this_machine() -> Places:
        folders = [sysconfig.get_paths()["purelib"], *site.getsitepackages(), site.getusersitepackages(), *sys.path]
        found = dict.fromkeys(Path(f) for f in folders if f and (Path(f) / "nvidia").is_dir())
        return Places(os.environ, tuple(found))


@dataclass(frozen=True)
class Nvcc:
    path: Path  # the real compiler, not a wrapper or a link to it
    version: tuple[int, int]
    origin: str  # where it was found, for people

    @property
    def root(self) -> Path:
        return self.path.parent.parent

    def __str__(self) -> str:
        return f"CUDA {self.version[0]}.{self.version[1]} ({self.origin}: {self.path})"


def find_compilers(places: Places) -> list[Nvcc]:
    """Every nvcc of this machine that runs, most explicit choice first, each once."""
    found: dict[Path, Nvcc] = {}
    for origin, path in _candidates(places):
        nvcc = _examine(path, origin)
        if nvcc is not None:
            found.setdefault(nvcc.path, nvcc)
    return list(found.values())


def _candidates(places: Places) -> list[tuple[str, Path]]:
    environ = places.environ
    found = [("nvcc_path", Path(environ["nvcc_path"]))] if environ.get("nvcc_path") else []
    found += [
        (name, Path(environ[name]) / "bin" / "nvcc")
        for name in ("CUDA_HOME", "CUDA_PATH", "CONDA_PREFIX")
        if environ.get(name)
    ]
    on_path = shutil.which("nvcc", path=environ.get("PATH", ""))
    if on_path:
        found.append(("PATH", Path(on_path)))
    for folder in places.sites:
        wheels = sorted((folder / "nvidia").glob("cu[0-9]*/bin/nvcc"), reverse=True)
        wheels += (folder / "nvidia").glob("cuda_nvcc/bin/nvcc")
        found += [("pip", path) for path in wheels]
    local = places.system / "usr" / "local"
    versioned = sorted(local.glob("cuda-*/bin/nvcc"), key=_number_in, reverse=True)
    system = [local / "cuda/bin/nvcc", *versioned, places.system / "opt/cuda/bin/nvcc", places.system / "usr/bin/nvcc"]
    return found + [("system", path) for path in system]


def _number_in(path: Path) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", path.parent.parent.name))


def _examine(path: Path, origin: str) -> Optional[Nvcc]:
    """The compiler behind `path`: a wrapper script is seen through by asking nvcc where its toolkit is."""
    if not (path.is_file() and os.access(path, os.X_OK)):
        return None
    try:
        told = subprocess.run([str(path), "--version"], capture_output=True, text=True, timeout=60)
        plan = subprocess.run(
            [str(path), "--dryrun", "-x", "cu", "-c", "/dev/null", "-o", "/dev/null"],
            capture_output=True,
            text=True,
            timeout=60,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    version = re.search(r"release (\d+)\.(\d+)", told.stdout)
    if not version:
        return None
    top = re.search(r"^#\$ TOP=(.+)$", plan.stderr, re.MULTILINE)
    real = Path(os.path.realpath(os.path.join(top.group(1).strip(), "bin", "nvcc"))) if top else Path()
    if not real.is_file():
        real = Path(os.path.realpath(path))
    return Nvcc(real, (int(version.group(1)), int(version.group(2))), origin)


@dataclass(frozen=True)
class Folders:
    """Headers and libraries for one nvcc, in order of preference."""

    headers: tuple[Path, ...]
    libraries: tuple[Path, ...]
    system_headers: tuple[Path, ...]  # on every compiler's default path; only cuDNN is taken from them
    system_libraries: tuple[Path, ...]  # only libraries of CUDA and cuDNN are taken from them


def folders_for(nvcc: Nvcc, places: Places) -> Folders:
    """Where the headers and libraries for `nvcc` lie: its own toolkit, CUDNN_HOME, wheels of its major version."""
    roots = [nvcc.root, nvcc.root / "targets" / "x86_64-linux", nvcc.root / "targets" / "sbsa-linux"]
    roots += [Path(places.environ[name]) for name in ("CUDNN_HOME", "CUDNN_PATH") if places.environ.get(name)]
    for folder in places.sites:
        roots += [wheel for wheel in sorted((folder / "nvidia").iterdir()) if _fits(wheel, nvcc.version[0])]
    headers, libraries = [], []
    for root in roots:
        if root == places.system / "usr":
            continue  # a distribution's toolkit: its folders are the system's
        headers += [root / "include"]
        libraries += [root / "lib64", root / "lib"]
    return Folders(
        _existing(headers),
        _existing(libraries),
        _existing(places.system / part for part in SYSTEM_HEADERS),
        _existing(places.system / part for part in SYSTEM_LIBRARIES),
    )


def _fits(wheel: Path, major: int) -> bool:
    """Whether the wheel folder `nvidia/NAME` is for this CUDA: by its name (cu13), or by its package's (…-cu12)."""
    if re.fullmatch(r"cu\d+", wheel.name):
        return wheel.name == f"cu{major}"
    majors = {
        int(match.group(1))
        for info in wheel.parent.parent.glob(f"nvidia_{wheel.name}_cu*.dist-info")
        for match in [re.match(rf"nvidia_{wheel.name}_cu(\d+)-", info.name)]
        if match
    }
    return wheel.is_dir() and (not majors or major in majors)


def _existing(folders) -> tuple[Path, ...]:
    found: dict[str, Path] = {}
    for folder in folders:
        if folder.is_dir():
            found.setdefault(os.path.realpath(folder), folder)
    return tuple(found.values())
