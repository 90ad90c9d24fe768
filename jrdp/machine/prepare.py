"""Sets what Jittor reads when it is imported: its source folder, oneDNN, the CUDA toolkit, its compilers.

`prepare()` is called when Jittor is first imported (`importing.py`) or started, never by `import jrdp`. It writes only
below Jittor's cache folder (`~/.cache/jittor`, or `$JITTOR_HOME/.cache/jittor`), sets environment variables of this
process, and never raises: what it could not arrange is listed in the result, `start()` raises it, and `jrdp doctor`
explains it.
"""

from __future__ import annotations

import importlib.machinery
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Optional

from jrdp.machine import subnormals
from jrdp.machine.cache import cache_root, chosen_home, fingerprint
from jrdp.machine.cuda import CudaChoice, choose_cuda
from jrdp.machine.onednn import OneDnn, prepare_onednn
from jrdp.machine.python_headers import config_script, missing_headers
from jrdp.machine.source import installed_site, stable_copy

JITTOR_RELEASE = "1.3.11"

MEMORY = "JRDP_PREPARED"  # environment variable: what prepare() set in this process or its parent


@dataclass(frozen=True)
class Setup:
    """What `prepare()` found and arranged."""

    problems: tuple[str, ...]  # each one line with its fix; Jittor cannot be imported while there is one
    onednn: OneDnn
    cuda: CudaChoice
    source: Optional[Path]  # the folder that Jittor is imported from
    compiler: str  # path of g++, or an empty string


_setup: Optional[Setup] = None


def prepare() -> Setup:
    """Set what Jittor reads when it is imported; later calls return the first result."""
    global _setup
    if _setup is None:
        _setup = _prepare()
    return _setup


def _prepare() -> Setup:
    _forget()
    _drop_empty()
    compiler = os.environ.get("cc_path") or shutil.which("g++") or ""
    problems = _wrong_python() + _wrong_packages() + _missing_compiler(compiler)
    if missing_headers():
        problems.append(missing_headers())
    if "jittor" in sys.modules or "jittor_utils" in sys.modules:
        # Too late to arrange anything, and needless: it has been imported.
        imported = Path(sys.modules.get("jittor", sys.modules["jittor_utils"]).__file__).parent.parent
        return Setup((), OneDnn(None, "", "not looked at"), CudaChoice(False, "not looked at"), imported, compiler)
    try:
        cache_root().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache_root()):
            pass
        onednn = prepare_onednn()
        cuda = choose_cuda(compiler)
        source = _prepare_source()
        script = config_script()
        kernel_flags = " ".join(filter(None, [os.environ.get("kernel_flags"), subnormals.flags(compiler)]))
    except OSError as error:
        problem = (
            f"cannot write to Jittor's cache folder {chosen_home() / '.cache' / 'jittor'} ({error.strerror or error}): set "
            "JITTOR_HOME, in every run, to a folder that can be written to (its path may be remembered in "
            "~/.cache/jittor/config.json)"
        )
        none = CudaChoice(False, "not looked at")
        return Setup((*problems, problem), OneDnn(None, "", "not looked at"), none, None, compiler)
    if onednn.problem:
        problems.append(onednn.problem)
    defaults = {
        "python_config_path": str(script),
        "use_mkl": "1" if onednn.home else "0",
        "use_cutt": "0",  # these three would be downloaded at import, and nothing here uses them
        "use_cutlass": "0",
        "use_nccl": "0",
        "use_mpi": "1" if "OMPI_COMM_WORLD_SIZE" in os.environ else "0",  # compiled only where mpirun started us
        "FIX_TORCH_ERROR": "0",  # 1 imports torch when it is installed
        # 1, Jittor's default, has every array made on the CPU after it was given device memory: the unwritten memory is
        # fetched, waited for, and sent back. With 0 an array is copied into pinned memory and sent once, beside the work.
        "use_cuda_host_allocator": "0",
    }
    chosen = {name: os.environ.get(name, value) for name, value in defaults.items()}
    if kernel_flags:
        chosen["kernel_flags"] = kernel_flags
    chosen.update(cuda.environment)
    chosen.update(_card_of_this_rank(cuda.cards))
    # Jittor would take the name from `git branch` in the folder it lies in. This one names all that its compile commands
    # depend on and its cache path does not, so that two installations that differ in it do not overwrite each other.
    flags = chosen.get("cc_flags", os.environ.get("cc_flags", ""))
    parts = [source, chosen["python_config_path"], onednn.identity, flags, kernel_flags]
    parts += filter(None, [chosen.get("nvcc_path")])  # JRDP_PRECISE has one of its own, and may change from run to run
    chosen["cache_name"] = os.environ.get("cache_name", f"jrdp-{fingerprint(*parts)}")
    remember(chosen)
    return Setup(tuple(problems), onednn, cuda, source, compiler)


def _card_of_this_rank(cards: int) -> dict[str, str]:
    """Each rank that mpirun started on this machine takes the next of its cards; a user's own `device_id` stays.

    Jittor reads the variable when it is imported. Only its NCCL module would choose by itself; without, every rank
    would be on the first card.
    """
    rank = os.environ.get("OMPI_COMM_WORLD_LOCAL_RANK", "")
    if cards < 2 or not rank.isdecimal() or "device_id" in os.environ:
        return {}
    return {"device_id": str(int(rank) % cards)}


def _drop_empty() -> None:
    """Variables that are set to nothing count as unset, for Jittor too, which takes nothing for a path or a number."""
    for name in ("JITTOR_HOME", "cc_path", "cc_flags", "kernel_flags", "cache_name", "python_config_path", "nvcc_path", "use_mkl",
                 "use_mpi", "use_cutt", "use_cutlass", "use_nccl", "device_id", "FIX_TORCH_ERROR", "log_silent", "OMP_NUM_THREADS"):
        if os.environ.get(name) == "":
            del os.environ[name]


def remember(values: dict[str, str]) -> None:
    """Set environment variables, and note for child processes what they were before."""
    memory = json.loads(os.environ.get(MEMORY, "{}"))
    memory.update({name: [value, os.environ.get(name)] for name, value in values.items()})
    os.environ.update(values)
    os.environ[MEMORY] = json.dumps(memory)


def _forget() -> None:
    """Undo what a parent process prepared: this one may be another Python, or see other GPUs."""
    for name, (ours, before) in json.loads(os.environ.pop(MEMORY, "{}")).items():
        if os.environ.get(name) == ours:
            del os.environ[name]
            if before is not None:
                os.environ[name] = before


def _prepare_source() -> Optional[Path]:
    """Let `import jittor` find the stable copy; without a supported Jittor, what is installed or None."""
    site = installed_site()
    release = _version("jittor")
    if site is None or release is None or not _is_supported(release):
        return site
    copy = stable_copy(site, release)
    if str(copy) in sys.path:
        sys.path.remove(str(copy))
    sys.path.insert(0, str(copy))
    return copy


def _wrong_python() -> list[str]:
    if (3, 9) <= sys.version_info[:2] <= (3, 12):
        return []
    return [f"Python {platform.python_version()} is not supported: use Python 3.9 to 3.12"]


def _wrong_packages() -> list[str]:
    problems = []
    release = _version("jittor")
    if release is None or importlib.machinery.PathFinder.find_spec("jittor") is None:
        problems.append(f"Jittor is not installed: pip install jittor=={JITTOR_RELEASE}.0")
    elif not _is_supported(release):
        problems.append(f"Jittor {release} is installed, jrdp needs {JITTOR_RELEASE}: pip install jittor=={JITTOR_RELEASE}.0")
    numpy = _version("numpy")
    if numpy is None or numpy.split(".")[0] != "1":
        problems.append(f"numpy {numpy or 'is missing'}: Jittor {JITTOR_RELEASE} needs numpy 1: pip install 'numpy<2'")
    return problems


def _missing_compiler(compiler: str) -> list[str]:
    if not compiler:
        return ["no g++ was found and Jittor compiles with it: install it (Debian, Ubuntu: apt install g++)"]
    try:
        subprocess.run([compiler, "--version"], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return [f"the compiler {compiler} does not run: install g++ or set cc_path to one that does"]
    return []


def _is_supported(release: str) -> bool:
    return release.split(".")[:3] == JITTOR_RELEASE.split(".")


def _version(package: str) -> Optional[str]:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
