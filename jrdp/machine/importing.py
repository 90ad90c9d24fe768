"""Goes round the first import of Jittor, by whomever, and leaves the process as it found it.

`import jrdp` puts a finder in front of the others that answers for the name "jittor" alone. A look-up of the name does
nothing; an import prepares the machine first (`prepare.py`), and afterwards gives signals, handlers of crashes, the
recursion limit and the state of random numbers back to the host. An import that failed or was interrupted is gone round again.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.abc
import importlib.machinery
import importlib.util
import multiprocessing
import os
import random
import re
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Iterator, Optional

from jrdp.errors import UserError
from jrdp.files import lock, unlock
from jrdp.machine import declarations, tf32
from jrdp.machine.cache import cache_root, home_for_import, jittor_home, own_folder
from jrdp.machine.prepare import prepare
from jrdp.machine.source import kernel_python

_COMPILERS = 4

# Those that Jittor takes for itself: Ctrl-C, the end of child processes, and crashes.
_SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGCHLD", "SIGSEGV", "SIGBUS", "SIGFPE", "SIGILL", "SIGABRT", "SIGTERM", "SIGQUIT")
    if hasattr(signal, name)
)
_SIGACTION_BYTES = 512  # more than a `struct sigaction` of any system

_forked = False


def install() -> None:
    """Answer for "jittor" from now on; a second time changes nothing."""
    if not any(isinstance(finder, _JittorFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _JittorFinder())


class _JittorFinder(importlib.abc.MetaPathFinder):
    """Finds Jittor where Python would, with a loader that prepares the machine when it is really imported."""

    def find_spec(self, name, path=None, target=None):
        if name != "jittor":
            return None
        found = importlib.machinery.PathFinder.find_spec(name)
        if found is None or found.origin is None:
            return found
        return importlib.util.spec_from_file_location(
            name, found.origin, loader=_JittorLoader(), submodule_search_locations=found.submodule_search_locations
        )


class _JittorLoader(importlib.abc.Loader):
    """Imports the stable copy.

    While it lasts, child processes find the stable copy too: Jittor asks one for the GPUs' compute capabilities, and takes
    what another copy prints on its first run ("Create lock file ...") for a part of the answer.
    """

    def create_module(self, spec):
        prepare()
        found = importlib.machinery.PathFinder.find_spec(spec.name)  # prepare() has put the stable copy first
        self._loader = found.loader
        spec.origin, spec.cached = found.origin, found.cached
        spec.submodule_search_locations = found.submodule_search_locations
        return None

    def exec_module(self, module) -> None:
        copy = Path(module.__file__).parent.parent
        tf32.settle()
        path = os.pathsep.join(filter(None, [str(copy), os.environ.get("PYTHONPATH")]))
        # With the second, which Jupyter sets, Jittor leaves Ctrl-C to Python while it compiles itself.
        home = jittor_home()
        temporary = {"PYTHONPATH": path, "JPY_PARENT_PID": os.environ.get("JPY_PARENT_PID", "0")}
        temporary.update(JITTOR_HOME=str(home), HOME=str(home_for_import(home)))
        with _one_at_a_time(), _environment(**temporary), _recursion_limit(), host_random_numbers(), _signals():
            _let_compilers_outlive_ctrl_c()
            with declarations.remembered(copy):
                self._loader.exec_module(module)
        module.flags.python_path = str(kernel_python(copy))
        # Threads that compile kernels at once. Where they replace convolutions they change, without a lock, what they
        # share: the more of them start together, the likelier one crashes. More than cores would gain nothing.
        module.flags.use_parallel_op_compiler = max(1, min(_COMPILERS, cores()))
        _compute_on_one_thread_in_forked_children()


@contextlib.contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Let processes that start together import Jittor one after the other.

    Jittor has a lock for that, and takes it again in the middle: each of them would come to its end with the last one.
    Ranks of mpirun meet in the middle of the import, so they go without, and so does everybody where there are no locks.
    """
    if "OMPI_COMM_WORLD_SIZE" in os.environ:
        yield
        return
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # a cache that cannot be written to: the import says so
            own_folder().mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(open(own_folder() / "import.lock", "a"))
            lock(file.fileno(), wait=True)
            stack.callback(unlock, file.fileno())  # processes that Jittor forks meanwhile have the file too
        yield


def _compute_on_one_thread_in_forked_children() -> None:
    """Let a process that is forked from this one (a pool of `multiprocessing`, a server's workers) compute on one thread.

    It has no other of OpenMP's threads, and g++'s OpenMP, which does not know that, would wait for them for ever.
    """

    def forked() -> None:
        global _forked
        _forked = True
        openmp.omp_set_num_threads(1)

    with contextlib.suppress(OSError):  # another compiler's, which does know
        openmp = ctypes.CDLL("libgomp.so.1")
        os.register_at_fork(after_in_child=forked)


def is_forked() -> bool:
    """Whether this process was forked from one that had imported Jittor: the thread that it began with is to compute alone."""
    return _forked


def _let_compilers_outlive_ctrl_c() -> None:
    """Change what the workers of the pool that Jittor compiles with do on Ctrl-C, which reaches them too: nothing.

    One that ended while it took the pool's lock would leave it locked, and at its end Python waits for that lock, for ever.
    They end with this process, as Jittor asks the system for; also those that it has not yet asked for then. A handler that
    does nothing, because a signal that is ignored would be so in the compiler that a worker runs, too.

    They are forked, also where the host starts its own processes otherwise, or was itself started so: others would each
    import the host's main module, and cannot be given a function that only this process has.
    """
    import jittor_utils

    begin = getattr(jittor_utils, "pool_initializer", None)
    if begin is None:  # a Jittor without such a pool
        return

    def begin_and_stay() -> None:
        begin()
        if os.getppid() != multiprocessing.parent_process().pid:
            os._exit(0)
        signal.signal(signal.SIGINT, lambda _number, _frame: None)

    jittor_utils.pool_initializer = begin_and_stay
    jittor_utils.Pool = multiprocessing.get_context("fork").Pool


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
def _recursion_limit() -> Iterator[None]:
    limit = sys.getrecursionlimit()
    try:
        yield
    finally:
        sys.setrecursionlimit(limit)


@contextlib.contextmanager
def host_random_numbers() -> Iterator[None]:
    """Leave Python's and NumPy's global generators as the host has seeded them: Jittor seeds both, by the clock or by a seed."""
    import numpy  # also where the host has not yet: its generator would begin seeded then

    states = random.getstate(), numpy.random.get_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        numpy.random.set_state(states[1])


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """Give every signal back to whom it belonged, and let Ctrl-C be a `KeyboardInterrupt` meanwhile.

    Jittor's own handlers end the process: on Ctrl-C, on a child that dies, and on a crash, there from the thread that
    crashed; where that is one that compiles, it waits for itself for ever, and holds Jittor's lock. They are replaced in
    C, of which Python's table knows nothing, so they are saved and restored there: the host's faulthandler too.
    """
    saved = {number: _sigaction(number) for number in _SIGNALS}
    handler = signal.getsignal(signal.SIGINT)

    def interrupt(_number, _frame) -> None:
        # It stops the compilers too, and Jittor would end this process, without a word, on the first that dies.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        raise KeyboardInterrupt

    ours = threading.current_thread() is threading.main_thread() and handler is signal.default_int_handler
    child_handler = signal.getsignal(signal.SIGCHLD)
    if ours:
        signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGINT, handler)
            if child_handler is not None:
                signal.signal(signal.SIGCHLD, child_handler)
        for number, action in saved.items():
            _sigaction(number, action)


def _sigaction(number: int, action: Optional[bytes] = None) -> bytes:
    """What the system does on a signal, an opaque `struct sigaction`; sets `action` where it is given."""
    before = ctypes.create_string_buffer(_SIGACTION_BYTES)
    wanted = None if action is None else ctypes.create_string_buffer(action, _SIGACTION_BYTES)
    if ctypes.CDLL(None, use_errno=True).sigaction(int(number), wanted, before) != 0:
        raise OSError(ctypes.get_errno(), f"sigaction({number})")
    return before.raw


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def quiet(mute: bool) -> Iterator[None]:
    """Keep Jittor's own log lines back while it is imported; a failed import becomes a `UserError` with its reason.

    mute: the process is ours alone: whatever appears on its descriptors goes to a file, and the progress of a first
        compile is reported in plain lines.
    """
    if mute:
        with _muted_descriptors():
            yield
        return
    with _errors_in_a_line(), _environment(log_silent="1"), _progress(None, 2):
        yield


@contextlib.contextmanager
def _errors_in_a_line(log_name: Optional[str] = None) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        plain = re.sub(r"\x1b\[[0-9;]*m", "", str(error))  # Jittor colours its messages
        lines = [line.strip() for line in plain.splitlines() if line.strip()] or [type(error).__name__]
        where = f" (what it printed is in {log_name})" if log_name else ""
        raise UserError(f"Jittor could not be imported: {lines[0][:300]}{where}") from error


@contextlib.contextmanager
def _muted_descriptors() -> Iterator[None]:
    """Keep what Jittor prints while it is imported in a file; report the progress of a first compile in plain lines.

    The file is removed when all went well. When the import fails, `UserError` gives the reason and the file's name.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    log_file, log_name = tempfile.mkstemp(prefix="jrdp-jittor-import-", suffix=".log")
    saved = os.dup(1), os.dup(2)
    os.dup2(log_file, 1)
    os.dup2(log_file, 2)
    failure: Optional[BaseException] = None
    try:
        with _progress(Path(log_name), saved[1]):
            yield
    except (Exception, KeyboardInterrupt) as error:
        failure = error
    finally:
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
        with _errors_in_a_line(log_name):
            raise failure


@contextlib.contextmanager
def _progress(log: Optional[Path], descriptor: int) -> Iterator[None]:
    done = threading.Event()
    watcher = threading.Thread(target=_report_progress, args=(log, descriptor, done), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def _report_progress(log: Optional[Path], descriptor: int, done: threading.Event) -> None:
    """Write to `descriptor` how far the compile has come whose output goes to `log`; silent for a fast import.

    Jittor says "Compiling ..." also when it only looks whether its files are up to date and is slow at it. What tells a
    compile is a new cache folder or a new object file; without that word the file is of another process, which this one
    may have to wait for.
    """
    started, since = time.monotonic(), time.time() - 1.0
    compiling, waiting = False, False
    shown = None
    while not done.wait(2.0):
        elapsed = int(time.monotonic() - started)
        text = "" if log is None else log.read_text(errors="replace").replace("\r", "\n")
        ours = log is None or "Compiling" in text
        if not compiling and ("Create cache dir" in text or (ours and _object_file_since(since))):
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
