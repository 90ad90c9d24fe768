"""Processes that work for this one, started without fork and without `multiprocessing`.

Forking a process that runs Jittor is dangerous (its OpenMP threads do not survive), and `multiprocessing`'s spawn runs
the main script again in every worker, which fails for scripts without an `if __name__ == "__main__"` guard and for
code that comes from standard input. So a worker is a plain `python -c` child that imports no more than its function
needs (those that prepare pictures never import Jittor), talks pickle over its standard input and output with the
process that started it, and ends when it is told to or that is gone.
"""

from __future__ import annotations

import os
import pickle
import queue
import signal
import struct
import subprocess
import sys
import threading
import time
import traceback
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import BinaryIO, Callable, Iterable, Iterator, Mapping, Optional

import cloudpickle

from jrdp import endings
from jrdp.errors import UserError

_START = "import sys; sys.path[:] = {path!r}; from jrdp.data.workers import serve; serve()"
_LENGTH = struct.Struct("<Q")
_SECONDS_TO_END = 20


def need_picklable(value: object, what: str, advice: str) -> None:
    """Raise `UserError` where `value` cannot be sent to the processes of a `WorkerPool`; nothing is kept of the try."""
    try:
        cloudpickle.dump(value, _Nowhere(), protocol=pickle.HIGHEST_PROTOCOL)
    except Exception as error:  # whatever the members' own methods raise
        raise UserError(f"{what} cannot be copied to other processes ({type(error).__name__}: {error}): {advice}") from error


class _Nowhere:
    def write(self, data) -> int:
        return len(data)


class WorkerDied(RuntimeError):
    """A worker ended before it answered."""


class WorkerPool:
    """`count` processes that call `function(*arguments)`.

    Args:
        function: picklable, as are its arguments and results; what the main script or a notebook defines is sent along.
            With the bound method of an object, every process has a pickled copy of that object.
        name, advice: what an error calls a process, and what to do when one has died.
        environment: variables of the processes, over those of this one.
        setup: called once in every process before its first task. It is pickled together with `function`, so both may
            be methods of one object.
    """

    def __init__(
        self,
        function: Callable,
        count: int,
        name: str,
        advice: str,
        environment: Optional[Mapping[str, str]] = None,
        setup: Optional[Callable[[], object]] = None,
    ):
        payload = cloudpickle.dumps((function, setup), protocol=pickle.HIGHEST_PROTOCOL)
        self._workers = [_Worker(payload, name, advice, environment or {}) for _ in range(count)]
        self._idle: queue.SimpleQueue = queue.SimpleQueue()
        for worker in self._workers:
            self._idle.put(worker)
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="jrdp-worker")

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def start(self) -> None:
        """Let every process set itself up, all at once, without waiting; to be called before `submit`, or not at all."""
        for worker in self._workers:
            worker.send_payload()

    def wait_for_first(self) -> None:
        """`start`, and wait until one process is ready; from then on tasks go to those that are.

        Raises what its `setup` raised; what another's raises, the task does that is given to it, as `submit` says.
        """
        self.start()
        self._idle = queue.SimpleQueue()
        outcomes: queue.SimpleQueue = queue.SimpleQueue()
        for worker in self._workers:
            threading.Thread(target=self._let_in, args=(worker, outcomes), daemon=True).start()
        failure = outcomes.get()
        if failure is not None:
            raise failure

    def _let_in(self, worker: _Worker, outcomes: queue.SimpleQueue) -> None:
        failure = None
        try:
            worker.wait_until_ready()
        except Exception as error:  # a UserError, or what is wrong with it, which it answers to every task from now on
            failure = error
        outcomes.put(failure)
        self._idle.put(worker)

    def submit(self, *arguments) -> Future:
        """A future of `function(*arguments)`.

        Its `result()` raises the `UserError` that the call (or `setup`) raised; any other exception gives a
        `RuntimeError` with its traceback, and the death of the worker gives `WorkerDied`, a `RuntimeError` too.
        """
        return self._threads.submit(self._call, arguments)

    def in_order(self, tasks: Iterable[tuple], ahead: int) -> Iterator:
        """`function(*task)` of each task, in their order; at most `ahead` are under way or wait to be taken."""
        futures: deque[Future] = deque()
        for task in tasks:
            futures.append(self.submit(*task))
            if len(futures) >= ahead:
                yield futures.popleft().result()
        while futures:
            yield futures.popleft().result()

    def _call(self, arguments: tuple):
        worker = self._idle.get()
        try:
            return worker.call(arguments)
        finally:
            self._idle.put(worker)

    def close(self) -> None:
        """End the processes; safe to call more than once."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for worker in self._workers:
            worker.ask_to_end()
        deadline = time.monotonic() + _SECONDS_TO_END
        for worker in self._workers:
            worker.end(deadline)


class _Worker:
    def __init__(self, payload: bytes, name: str, advice: str, environment: Mapping[str, str]):
        self._name = name
        self._advice = advice
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START.format(path=sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **environment},
            start_new_session=True,  # Ctrl-C goes to the main process only, which then ends its workers
        )
        self._payload: bytes | None = payload
        self._ready = False

    def call(self, arguments: tuple):
        self.send_payload()
        self.wait_until_ready()
        self._send(pickle.dumps(arguments, protocol=pickle.HIGHEST_PROTOCOL))
        return self._answer()

    def send_payload(self) -> None:
        if self._payload is not None:
            self._send(self._payload)
            self._payload = None

    def wait_until_ready(self) -> None:
        if not self._ready:
            self._ready = True
            self._answer()

    def _send(self, message: bytes) -> None:
        try:
            _send(self._process.stdin, message)
        except (OSError, ValueError) as error:
            raise self._death() from error

    def _answer(self):
        try:
            kind, value = pickle.loads(_receive(self._process.stdout))
        except (OSError, EOFError, ValueError) as error:
            raise self._death() from error
        if kind == "user error":
            raise UserError(value)
        if kind == "error":
            raise RuntimeError(f"a {self._name} failed:\n{value}")
        return value

    def _death(self) -> WorkerDied:
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            how = "closed its pipe"
        else:
            how = f"ended with code {code}" if code >= 0 else f"was killed by {signal.Signals(-code).name}"
        return WorkerDied(f"a {self._name} (process {self._process.pid}) {how}; {self._advice}")

    def ask_to_end(self) -> None:
        """Send it an empty message: a worker ends by itself, since Jittor ends the main process over a child that is killed.

        Closing its input would do, had not every process that was forked since it began (Jittor compiles with such) the
        pipe's end too.
        """
        with suppress(OSError, ValueError):  # it is gone, or has been asked before
            _send(self._process.stdin, b"")
        _close(self._process.stdin)

    def end(self, deadline: float) -> None:
        """Wait for its end until `deadline` (of `time.monotonic`), then kill it."""
        try:
            self._process.wait(timeout=max(0.0, deadline - time.monotonic()))
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
    """One message; raises EOFError for an empty one, and when the other side has closed the pipe."""
    (length,) = _LENGTH.unpack(_read(pipe, _LENGTH.size))
    if length == 0:
        raise EOFError("no more messages")
    return _read(pipe, length)


def _read(pipe: BinaryIO, length: int) -> bytes:
    data = pipe.read(length)
    if len(data) < length:
        raise EOFError("the pipe was closed")
    return data


def serve() -> None:
    """The worker's side: the function first, then arguments after arguments until the pipe is closed.

    The first answer says how unpickling and setting up went; when they failed, it is the answer to every task.
    """
    tasks = os.fdopen(os.dup(0), "rb")
    results = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # anything that prints must not end up between the results
    try:
        function, failure = _load(_receive(tasks))
        _send(results, failure or pickle.dumps(("value", None)))
        while True:
            arguments = pickle.loads(_receive(tasks))
            _send(results, failure or _result(function, arguments))
    except (EOFError, BrokenPipeError):
        pass


def _load(payload: bytes) -> tuple[Callable | None, bytes | None]:
    try:
        function, setup = pickle.loads(payload)
        if setup is not None:
            setup()
        return function, None
    except Exception as error:
        return None, _failure(error)


def _result(function: Callable, arguments: tuple) -> bytes:
    try:
        return pickle.dumps(("value", function(*arguments)), protocol=pickle.HIGHEST_PROTOCOL)
    except Exception as error:
        return _failure(error)


def _failure(error: Exception) -> bytes:
    """An answer; to be called while the error is being handled."""
    reason = endings.reason_of(error)  # what files and the machine cause is no mistake of ours here either
    if reason is not None:
        return pickle.dumps(("user error", reason))
    return pickle.dumps(("error", traceback.format_exc()))
