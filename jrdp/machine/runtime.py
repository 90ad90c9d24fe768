"""Makes stock Jittor 1.3.11 importable on this machine, before anything imports it, and then imports it.

`prepare()` is called by `import jrdp`. It writes only below Jittor's cache folder (`~/.cache/jittor`, or
`$JITTOR_HOME/.cache/jittor`), sets environment variables of this process, and never raises: what it could not arrange is
listed in the result, `start()` raises it, and `jrdp doctor` explains it.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib.abc
import importlib.util
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Iterator, Optional

from jrdp.errors import UserError
from jrdp.machine.cache import cache_root, chosen_home, fingerprint, home_for_import, jittor_home
from jrdp.machine.cuda import CudaChoice, choose_cuda
from jrdp.machine.onednn import OneDnn, prepare_onednn
from jrdp.machine.python_headers import config_script, missing_headers
from jrdp.machine.source import installed_site, kernel_python, stable_copy

JITTOR_RELEASE = "1.3.11"

_COMPILERS = 4

# Shapes of each kind of convolution for which cuDNN's fastest algorithm is kept. Jittor's 100 are full after two or three
# sizes of pictures; from then on every call, of a known size or not, asks cuDNN's heuristics anew. A key takes a hundred
# bytes, and there are some sixty convolutions for each size of pictures and five for each number of RoIs.
_CUDNN_ALGORITHMS = 16384

_MEMORY = "JRDP_PREPARED"  # environment variable: what prepare() set in this process or its parent

# NVIDIA's own switch. Its libraries read it when they are loaded; 0 keeps cuBLAS, cuDNN and the others off TF32, and
# without it cuDNN uses TF32 for float32 convolutions on the cards that have it. (Jittor's flag use_tensorcore is no
# substitute: it lets cuDNN round float32 to float16.)
_TF32 = "NVIDIA_TF32_OVERRIDE"


@dataclass(frozen=True)
class Setup:
    """What `prepare()` found and arranged."""

    problems: tuple[str, ...]  # each one line with its fix; Jittor cannot be imported while there is one
    onednn: OneDnn
    cuda: CudaChoice
    source: Optional[Path]  # the folder that Jittor is imported from
    compiler: str  # path of g++, or an empty string


_setup: Optional[Setup] = None
_tf32_asked = False  # by start(), before it imports Jittor


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
    chosen.update(cuda.environment)
    # Jittor would take the name from `git branch` in the folder it lies in. This one names all that its compile commands
    # depend on and its cache path does not, so that two installations that differ in it do not overwrite each other.
    flags = chosen.get("cc_flags", os.environ.get("cc_flags", ""))
    parts = (source, chosen["python_config_path"], onednn.identity, flags)
    chosen["cache_name"] = os.environ.get("cache_name", f"jrdp-{fingerprint(*parts)}")
    _remember(chosen)
    return Setup(tuple(problems), onednn, cuda, source, compiler)


def _drop_empty() -> None:
    """Variables that are set to nothing count as unset, for Jittor too, which takes nothing for a path or a number."""
    for name in ("JITTOR_HOME", "cc_path", "cc_flags", "cache_name", "python_config_path", "nvcc_path", "use_mkl",
                 "use_mpi", "use_cutt", "use_cutlass", "use_nccl", "FIX_TORCH_ERROR", "log_silent", "OMP_NUM_THREADS"):
        if os.environ.get(name) == "":
            del os.environ[name]


def _remember(values: dict[str, str]) -> None:
    """Set environment variables, and note for child processes what they were before."""
    memory = json.loads(os.environ.get(_MEMORY, "{}"))
    memory.update({name: [value, os.environ.get(name)] for name, value in values.items()})
    os.environ.update(values)
    os.environ[_MEMORY] = json.dumps(memory)


def _forget() -> None:
    """Undo what a parent process prepared: this one may be another Python, or see other GPUs."""
    for name, (ours, before) in json.loads(os.environ.pop(_MEMORY, "{}")).items():
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
    sys.meta_path.insert(0, _JittorFinder(copy))
    return copy


class _JittorFinder(importlib.abc.MetaPathFinder):
    """Goes round the first import of Jittor, by whomever, to make kernels portable and to keep our signal handlers.

    While it lasts, child processes find the stable copy too: Jittor asks one for the GPUs' compute capabilities, and takes
    what another copy prints on its first run ("Create lock file ...") for a part of the answer.
    """

    def __init__(self, copy: Path):
        self._copy = copy

    def find_spec(self, name, path=None, target=None):
        if name != "jittor":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def execute_and_adjust(module) -> None:
            if not _tf32_asked:
                _forbid_tf32()
            path = os.pathsep.join(filter(None, [str(self._copy), os.environ.get("PYTHONPATH")]))
            # With the second, which Jupyter sets, Jittor leaves Ctrl-C to Python while it compiles itself.
            home = jittor_home()
            values = {"PYTHONPATH": path, "JPY_PARENT_PID": os.environ.get("JPY_PARENT_PID", "0")}
            values.update(JITTOR_HOME=str(home), HOME=str(home_for_import(home)))
            with _environment(**values), _interruptible():
                execute(module)
            module.flags.python_path = str(kernel_python(self._copy))
            # Threads that compile kernels at once. Where they replace convolutions they change, without a lock, what they
            # share: the more of them start together, the likelier one crashes. More than cores would gain nothing.
            module.flags.use_parallel_op_compiler = max(1, min(_COMPILERS, cores()))
            _die_of_crashes()

        spec.loader.exec_module = execute_and_adjust
        return spec


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Environment variables that are set for a while."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Let Ctrl-C be a `KeyboardInterrupt` while Jittor compiles itself.

    It stops the compilers too, and Jittor would end this process, without a word, on the first of them that dies.
    """

    def interrupt(_number, _frame) -> None:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        _take_signals_back()


def _take_signals_back() -> None:
    """Give Ctrl-C and the end of child processes back to Python: Jittor ends the process on either."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def start(device: str = "auto", seed: Optional[int] = None, tf32: bool = False) -> str:
    """Import Jittor, choose the device ("auto", "cpu", "cuda") and seed it; returns "cpu" or "cuda".

    tf32: let NVIDIA's libraries multiply float32 in TF32, which is chosen once in a process, when Jittor is imported.
    A user's own NVIDIA_TF32_OVERRIDE wins, whatever is asked for here.

    Jittor's messages are kept quiet unless JRDP_VERBOSE is set. Raises `UserError` when Jittor cannot run here,
    `device` or `tf32` cannot be had, or Jittor has been imported with the other choice.
    """
    global _tf32_asked
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"unknown device {device!r}: choose auto, cpu or cuda")
    setup = prepare()
    if setup.problems:
        raise UserError(setup.problems[0])
    import numpy

    if device == "cuda" and not setup.cuda.usable:
        raise UserError(f"--device cuda cannot be used: {_sentence(setup.cuda.reason, setup.cuda.fix)}")
    verbose = bool(os.environ.get("JRDP_VERBOSE"))
    if "jittor" not in sys.modules:
        _tf32_asked = tf32
        # NumPy works these out once; after Jittor's libraries have switched denormal numbers off, it would warn.
        for kind in (numpy.float16, numpy.float32, numpy.float64):
            numpy.finfo(kind).smallest_subnormal
        with contextlib.nullcontext() if verbose else _quiet_import():
            import jittor  # noqa: F401
    import jittor as jt

    _take_signals_back()
    if not verbose:
        jt.flags.log_silent = 1
    if device == "cuda" and not jt.has_cuda:
        raise UserError("--device cuda cannot be used: Jittor found no GPU; `jrdp doctor` says what it tried")
    chosen = "cuda" if jt.has_cuda and device != "cpu" else "cpu"
    _check_tf32(tf32, chosen)
    jt.flags.use_cuda = int(chosen == "cuda")
    if chosen == "cuda" and jt.cudnn is not None:
        jt.cudnn.set_algorithm_cache_size(_CUDNN_ALGORITHMS)
    if seed is not None:
        jt.set_global_seed(seed, different_seed_for_mpi=False)  # every rank starts from the same weights
    return chosen


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _die_of_crashes() -> None:
    """Let a crash in native code end the process, with the Python stack on standard error.

    Jittor's own handler ends it from the thread that crashed; where that is one that compiles, it waits for itself for
    ever, and holds Jittor's lock, on which every other process of the user then waits.
    """
    if threading.current_thread() is threading.main_thread() and sys.__stderr__ is not None:
        faulthandler.disable()
        for number in (signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL):
            signal.signal(number, signal.SIG_DFL)
        faulthandler.enable(sys.__stderr__, all_threads=False)


def _forbid_tf32() -> None:
    """Let float32 mean float32 on the GPU, unless the user has set NVIDIA's variable."""
    if prepare().cuda.usable and _TF32 not in os.environ:
        _remember({_TF32: "0"})


def _tf32_is_the_users() -> bool:
    return _TF32 in os.environ and _TF32 not in json.loads(os.environ.get(_MEMORY, "{}"))


def _check_tf32(wanted: bool, device: str) -> None:
    if device == "cpu":
        if wanted:
            raise UserError(
                "train.tf32 and test.tf32 need a GPU: this run is on the CPU; leave them out or set them to false"
            )
        return
    if not _tf32_is_the_users() and wanted != _tf32_allowed():
        raise UserError(
            f"TF32 cannot be switched {_on(wanted)} any more: Jittor has been imported with TF32 {_on(not wanted)} in "
            f"this process; start a new one, in which jrdp is imported before jittor, or set {_TF32} yourself"
        )


def describe_tf32() -> str:
    """What holds for float32 products on the GPU in this process, and who said so."""
    state = f"float32 convolutions with TF32 {_on(_tf32_allowed())}"
    if _tf32_is_the_users():
        return f"{state}: the environment has {_TF32}={os.environ[_TF32]}"
    return state if _tf32_allowed() else f"{state}; train.tf32 and test.tf32 switch it on"


def _tf32_allowed() -> bool:
    """Nothing here changes the variable after Jittor's import, so it also tells what Jittor was imported with."""
    return os.environ.get(_TF32) != "0"


def _on(value: bool) -> str:
    return "on" if value else "off"


@contextlib.contextmanager
def _quiet_import() -> Iterator[None]:
    """Keep what Jittor prints while it is imported in a file; report the progress of a first compile in plain lines.

    The file is removed when all went well. When the import fails, `UserError` gives the reason and the file's name.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    log_file, log_name = tempfile.mkstemp(prefix="jrdp-jittor-import-", suffix=".log")
    saved = os.dup(1), os.dup(2)
    os.dup2(log_file, 1)
    os.dup2(log_file, 2)
    done = threading.Event()
    watcher = threading.Thread(target=_report_progress, args=(Path(log_name), saved[1], done), daemon=True)
    watcher.start()
    failure: Optional[BaseException] = None
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        failure = error
    finally:
        done.set()
        watcher.join()
        sys.stdout.flush()
        sys.stderr.flush()
        for descriptor, target in zip(saved, (1, 2)):
            os.dup2(descriptor, target)
            os.close(descriptor)
        os.close(log_file)
        if failure is None or isinstance(failure, KeyboardInterrupt):
            os.unlink(log_name)
    if isinstance(failure, KeyboardInterrupt):
        print("jrdp: stopped while Jittor was imported; a compile of it will go on where it was", file=sys.stderr)
        raise failure
    if failure is not None:
        lines = [line.strip() for line in str(failure).splitlines() if line.strip()] or [type(failure).__name__]
        raise UserError(f"Jittor could not be imported: {lines[0][:300]} (what it printed is in {log_name})") from failure


def _report_progress(log: Path, descriptor: int, done: threading.Event) -> None:
    """Write to `descriptor` how far the compile has come whose output goes to `log`; silent for a fast import.

    Jittor says "Compiling ..." also when it only looks whether its files are up to date and is slow at it. What tells a
    compile is a new cache folder or a new object file.
    """
    started, since = time.monotonic(), time.time() - 1.0
    compiling, waiting = False, False
    shown = None
    while not done.wait(2.0):
        elapsed = int(time.monotonic() - started)
        text = log.read_text(errors="replace").replace("\r", "\n")
        if not compiling and ("Create cache dir" in text or _object_file_since(since)):
            compiling = True
            message = "Jittor compiles itself for this machine, once: 3 to 6 minutes on two cores ..."
            os.write(descriptor, f"{message}\n".encode())
        if not compiling:
            if not waiting and elapsed >= 20:
                waiting = True
                os.write(descriptor, b"waiting for Jittor (the machine is busy, or another process compiles it) ...\n")
            continue
        latest = text.strip().splitlines()[-1:]
        step = re.match(r"Compiling (\w+)\((\d+)/(\d+)\)", latest[0]) if latest else None
        if step is None:
            continue
        part = "core" if "core" in step.group(1) else "library"
        tenth = f"{part} {10 * int(step.group(2)) // int(step.group(3))}"
        if tenth != shown:
            shown = tenth
            line = f"  Jittor's {part}: {step.group(2)} of {step.group(3)} files after {elapsed} s"
            os.write(descriptor, f"{line}\n".encode())


def _object_file_since(moment: float) -> bool:
    """Whether an object file of Jittor's core was written since `moment` (seconds since the epoch)."""
    try:
        files = cache_root().glob("jt*/**/obj_files/*.o")
        return any(path.stat().st_mtime >= moment for path in files)
    except OSError:  # a file that went away in between
        return False


def _wrong_python() -> list[str]:
    if (3, 9) <= sys.version_info[:2] <= (3, 12):
        return []
    return [f"Python {platform.python_version()} is not supported: use Python 3.9 to 3.12"]


def _wrong_packages() -> list[str]:
    problems = []
    release = _version("jittor")
    if release is None or importlib.util.find_spec("jittor") is None:
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


def _sentence(reason: str, fix: str) -> str:
    return f"{reason}; {fix}" if fix else reason
