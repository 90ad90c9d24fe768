"""How the command line ends: the one place that turns what files, machines and users can cause into a line and a code.

0 all is done; 1 done, but something was skipped or found (the command said what), or a mistake of ours, with a
traceback that says so; 2 bad input or a machine that could not do it, one line on standard error; 130 interrupted by
Ctrl-C, 143 by SIGTERM (what batch systems and `docker stop` send), 129 by SIGHUP (the terminal was closed).
"""

from __future__ import annotations

import errno
import functools
import os
import re
import shutil
import signal
import sys
import threading
import traceback
from contextlib import contextmanager, suppress
from typing import Callable, Iterator, NoReturn, Optional, TextIO

from jrdp import files, import_path
from jrdp.errors import UserError, one_line
from jrdp.machine import gpu_failure
from jrdp.machine.cache import cache_root

DONE, MISTAKE, REFUSED, INTERRUPTED = 0, 1, 2, 130

_TAKEN = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
_SIGNALLED = [128 + number for number in _TAKEN]

# Errors of the system that no program can prevent; others without a file's name are mistakes of ours.
_SYSTEM = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EROFS, errno.EAGAIN}


# What the loader says when a library does not fit into memory; the error has no number then.
_NO_MEMORY = re.compile("failed to map segment|cannot allocate memory", re.IGNORECASE)

# Python's own words, and the system's as Jittor passes them on, where no further thread can be started.
_NO_THREADS = re.compile("can't start new thread|Resource temporarily unavailable")

_ROOM = 16 << 20  # bytes free on a disk, below which a compiler may have failed for that


def run(command: Callable[[], None]) -> int:
    """Call `command`, which may raise anything; print what there is to say and return the exit code."""
    open_standard_streams()
    code = DONE
    received: list[int] = []
    try:
        with _as_ctrl_c(received):
            command()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else DONE if end.code is None else MISTAKE
        if isinstance(end.code, str):
            _say(end.code)
        if code == INTERRUPTED:
            code = _interrupted(received)
    except KeyboardInterrupt:
        code = _interrupted(received)
    except BaseException as error:
        reason = reason_of(error)
        if received:  # what failed is a child that got the signal as well
            code = _interrupted(received)
        elif reason is None:
            _say(
                f"{traceback.format_exc()}jrdp: this is a mistake in jrdp, not in what you gave it: please report the "
                "lines above and the command"
            )
            code = MISTAKE
        else:
            _say(f"jrdp: error: {reason}")
            code = REFUSED
    if code != DONE:
        files.remove_empty_folders()
    lost = sys.stdout.finish() if isinstance(sys.stdout, _Unbreakable) else None
    if lost is not None:
        _say(f"jrdp: error: standard output could not be written ({lost}): what was printed is lost")
        code = code or REFUSED
    return code


def leave(code: int) -> NoReturn:
    """End this process with the code that `run` returned.

    After a signal without Python's own way of ending: batch systems, `timeout` and terminals send it to a command's children
    as well, and at its end Python waits for the lock of every `multiprocessing` pool, for ever where a worker of the pool
    was killed while it had the lock. Jittor compiles with such a pool. By then everything has been put down, and the
    pool's workers end with their parent.

    Nor does a rank that failed among several of `mpirun`: MPI would wait at its end for the others, which wait for what this
    one was to compute. Ended so, `mpirun` notices and ends them.
    """
    failed_rank = code != 0 and os.environ.get("OMPI_COMM_WORLD_SIZE", "1") != "1"
    if code == INTERRUPTED or code in _SIGNALLED or failed_rank:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)
    sys.exit(code)


@contextmanager
def _as_ctrl_c(received: list[int]) -> Iterator[None]:
    """Within, SIGTERM and SIGHUP unwind the command as Ctrl-C does, so that temporary files go and children end.

    Their numbers are added to `received`. A signal that is ignored (nohup) or handled already stays so; only the main
    thread can take signals. Children that are forked end at once, as if nothing were taken: a pool of `multiprocessing`
    (Jittor compiles with one) ends its workers by SIGTERM, and one that has just been woken from waiting for the pool's
    lock would wait again before Python saw the signal, and its parent for ever.
    """

    def interrupt(number: int, _frame) -> None:
        received.append(number)
        raise KeyboardInterrupt

    taken: list[int] = []
    if threading.current_thread() is threading.main_thread():
        taken = [number for number in _TAKEN if signal.getsignal(number) is signal.SIG_DFL]
    for number in taken:
        signal.signal(number, interrupt)
    _give_back_in_children()
    _of_this_process.update(taken)
    try:
        yield
    finally:
        _of_this_process.difference_update(taken)
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


_of_this_process: set[int] = set()  # the signals that are taken, and not in a forked child


@functools.lru_cache(maxsize=None)  # once: what is registered stays, and does nothing while no signal is taken
def _give_back_in_children() -> None:
    def give_back() -> None:
        for number in _of_this_process:
            signal.signal(number, signal.SIG_DFL)
        _of_this_process.clear()

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=give_back)


def _interrupted(received: list[int]) -> int:
    if not received:
        _say("jrdp: interrupted")
        return INTERRUPTED
    _say(f"jrdp: stopped by {signal.Signals(received[0]).name}")
    return 128 + received[0]


def reason_of(error: BaseException) -> Optional[str]:
    """One line for what a user, a file or the machine caused; None for a mistake of ours."""
    if isinstance(error, UserError):
        return one_line(str(error))
    if type(error).__name__ == "WorkerDied":  # of jrdp.data.workers, which a command that starts none does not import
        return one_line(str(error))
    if isinstance(error, MemoryError) or isinstance(error, (ImportError, OSError)) and _NO_MEMORY.search(str(error)):
        detail = one_line(str(error))
        return f"not enough memory{f' ({detail})' if detail else ''}: use smaller pictures or batches, or fewer jobs"
    if isinstance(error, RuntimeError) and _NO_THREADS.search(str(error)):
        return "the system starts no further thread for this process (ulimit -u, ulimit -v or a container's limit on processes)"
    if isinstance(error, RuntimeError) and "during compilation" in str(error):
        with suppress(OSError):
            if shutil.disk_usage(cache_root()).free < _ROOM:
                return f"no space is left for the operators that Jittor compiles into {cache_root()}: JITTOR_HOME names another place"
    if isinstance(error, FileNotFoundError) and "temporary directory" in str(error):  # of Python's tempfile
        return "no folder for temporary files can be written to (is the disk full?); TMPDIR names another one"
    if isinstance(error, OSError) and error.strerror:
        if isinstance(error.filename, (str, bytes)) and error.filename:
            return one_line(f"{os.fsdecode(error.filename)}: {error.strerror}")
        if error.errno in _SYSTEM:
            return error.strerror
    return gpu_failure.reason_of(error) or import_path.reason_of(error)


def open_standard_streams() -> None:
    """Make the three standard streams usable: closed ones lead nowhere, no text is refused, no failure raises.

    The descriptors themselves are opened too: else the next file that is opened would get their number, and what
    libraries print would be written into it.
    """
    for descriptor, name, mode in ((0, "stdin", os.O_RDONLY), (1, "stdout", os.O_WRONLY), (2, "stderr", os.O_WRONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, mode)
            if opened != descriptor:
                os.dup2(opened, descriptor)
                os.close(opened)
        if getattr(sys, name) is None:
            setattr(sys, name, open(descriptor, "r" if descriptor == 0 else "w", closefd=False, errors="replace"))
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    if hasattr(sys.stdout, "fileno") and not isinstance(sys.stdout, _Unbreakable):
        sys.stdout = _Unbreakable(sys.stdout)


class _Unbreakable:
    """A text stream whose failures end no work: the rest is dropped, and `finish` tells why."""

    def __init__(self, stream: TextIO):
        self._stream = stream
        self._lost: Optional[str] = None
        self._dropping = False

    def __getattr__(self, name: str):
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        if not self._dropping:
            try:
                self._stream.write(text)
            except OSError as error:
                self._drop(error)
        return len(text)

    def flush(self) -> None:
        if not self._dropping:
            try:
                self._stream.flush()
            except OSError as error:
                self._drop(error)

    def finish(self) -> Optional[str]:
        """Flush; the reason why text was lost, or None. A reader that closed its pipe has had enough: not a loss."""
        self.flush()
        return self._lost

    def _drop(self, error: OSError) -> None:
        self._dropping = True
        if error.errno != errno.EPIPE:
            self._lost = error.strerror or str(error)
        try:  # Python flushes once more when it ends, and complains
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
        except (OSError, ValueError):
            pass


def _say(text: str) -> None:
    try:
        print(text, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        pass  # nobody listens
