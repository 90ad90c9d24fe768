"""Processes that prepare pictures, started without fork and without `multiprocessing`.

Forking a process that runs Jittor is dangerous (its OpenMP threads do not survive), and `multiprocessing`'s spawn runs
the main script again in every worker, which fails for scripts without an `if __name__ == "__main__"` guard and for
code that comes from standard input. So a worker is a plain `python -c` child that imports `jrdp.data` (and never
Jittor), talks pickle over its standard input and output with the process that started it, and ends when that closes.
"""

from __future__ import annotations

import os
import pickle
import queue
import struct
import subprocess
import sys
import traceback
from concurrent.futures import Future, ThreadPoolExecutor
from typing import BinaryIO

from jrdp.errors import UserError

_START = "import sys; sys.path[:] = {path!r}; from jrdp.data.workers import serve; serve()"
_LENGTH = struct.Struct("<Q")


class WorkerPool:
    """`count` processes that call `source.example(index, flip)` of a pickled copy of `source`.

    `source` and what it returns must be picklable, and its class importable (not defined in the main script).
    """

    def __init__(self, source, count: int):
        payload = pickle.dumps(source, protocol=pickle.HIGHEST_PROTOCOL)
        self._workers = [_Worker(payload) for _ in range(count)]
        self._idle: queue.SimpleQueue = queue.SimpleQueue()
        for worker in self._workers:
            self._idle.put(worker)
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="jrdp-worker")

    def submit(self, index: int, flip: bool) -> Future:
        """A future of `source.example(index, flip)`.

        Its `result()` raises the `UserError` that the call raised; any other exception, or the death of the worker,
        gives a `RuntimeError` that says so.
        """
        return self._threads.submit(self._call, index, flip)

    def _call(self, index: int, flip: bool):
        worker = self._idle.get()
        try:
            return worker.call((index, flip))
        finally:
            self._idle.put(worker)

    def close(self) -> None:
        """End the processes; safe to call more than once."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for worker in self._workers:
            worker.ask_to_end()
        for worker in self._workers:
            worker.end()


class _Worker:
    def __init__(self, payload: bytes):
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START.format(path=sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C goes to the main process only, which then ends its workers
        )
        self._payload: bytes | None = payload

    def call(self, task):
        try:
            if self._payload is not None:
                _send(self._process.stdin, self._payload)
                self._payload = None
            _send(self._process.stdin, pickle.dumps(task))
            kind, value = pickle.loads(_receive(self._process.stdout))
        except (OSError, EOFError, ValueError) as error:
            raise RuntimeError(
                f"a data worker (process {self._process.pid}) {self._end()}; if memory ran out, use fewer: "
                "data.workers=0 prepares the pictures in the main process"
            ) from error
        if kind == "user error":
            raise UserError(value)
        if kind == "error":
            raise RuntimeError(f"a data worker failed:\n{value}")
        return value

    def _end(self) -> str:
        try:
            return f"ended with code {self._process.wait(timeout=5)}"
        except subprocess.TimeoutExpired:
            return "closed its pipe"

    def ask_to_end(self) -> None:
        """Close its input: a worker ends by itself, since Jittor ends the main process over a child that is killed."""
        _close(self._process.stdin)

    def end(self) -> None:
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        _close(self._process.stdout)


def _close(pipe: BinaryIO) -> None:
    try:
        pipe.close()
    except OSError:  # what was still buffered for a process that is gone
        pass


def _send(pipe: BinaryIO, payload: bytes) -> None:
    pipe.write(_LENGTH.pack(len(payload)))
    pipe.write(payload)
    pipe.flush()


def _receive(pipe: BinaryIO) -> bytes:
    """One message; raises EOFError when the other side has closed the pipe."""
    (length,) = _LENGTH.unpack(_read(pipe, _LENGTH.size))
    return _read(pipe, length)


def _read(pipe: BinaryIO, length: int) -> bytes:
    data = pipe.read(length)
    if len(data) < length:
        raise EOFError("the pipe was closed")
    return data


def serve() -> None:
    """The worker's side: the source first, then (index, flip) after (index, flip) until the pipe is closed."""
    tasks = os.fdopen(os.dup(0), "rb")
    results = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # anything that prints must not end up between the results
    try:
        source, failure = _load(_receive(tasks))
        while True:
            index, flip = pickle.loads(_receive(tasks))
            _send(results, failure or _answer(source, index, flip))
    except (EOFError, BrokenPipeError):
        pass


def _load(payload: bytes) -> tuple[object, bytes | None]:
    try:
        return pickle.loads(payload), None
    except Exception:
        return None, pickle.dumps(("error", traceback.format_exc()))


def _answer(source, index: int, flip: bool) -> bytes:
    try:
        return pickle.dumps(("value", source.example(index, flip)), protocol=pickle.HIGHEST_PROTOCOL)
    except UserError as error:
        return pickle.dumps(("user error", str(error)))
    except Exception:
        return pickle.dumps(("error", traceback.format_exc()))
