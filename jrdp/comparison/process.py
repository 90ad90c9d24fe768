"""A framework in a child process, asked by lines of JSON and answering by lines of JSON; arrays travel as files."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import jrdp
from jrdp.errors import UserError

MODULES = {
    "jittor": "jrdp.comparison.worker_jittor",
    "torch": "jrdp.comparison.worker_torch",
    "jittor-bench": "jrdp.comparison.timing.worker_jittor",
    "torch-bench": "jrdp.comparison.timing.worker_torch",
}
PATIENCE = 20.0  # seconds without an answer after which one is told what goes on


class Worker:
    """One framework, alive until the `with` block ends; `ask` runs one of its commands.

    framework: a key of `MODULES`; python: the interpreter that has it; folder: where its log and exchanged files lie;
    threads: of its kernels (OpenMP), None for as many as there are cores.
    """

    def __init__(self, framework: str, python: str, folder: Path, threads: int | None = None):
        self.framework = framework
        self.folder = folder
        self.log = folder / f"{framework}.log"
        environment = dict(os.environ)
        package_root = str(Path(jrdp.__file__).resolve().parent.parent)
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [package_root, environment.get("PYTHONPATH")]))
        if threads is not None:
            environment["OMP_NUM_THREADS"] = environment["MKL_NUM_THREADS"] = str(threads)
        self._waited_for: set[str] = set()  # commands of which it was said that they take long
        self._said = ""  # the last line of the log that was passed on
        self._log_file = open(self.log, "wb")
        try:
            self._process = subprocess.Popen(
                [python, "-m", MODULES[framework]],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log_file,
                env=environment,
                text=True,
                encoding="utf-8",
            )
        except OSError as error:
            self._log_file.close()
            raise UserError(f"cannot start {python}: {error.strerror}; name another with --twin-python") from error

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.stdin.close()  # the worker ends at the end of its input
            try:
                self._process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._process.stdout.close()
        self._log_file.close()

    def ask(self, command: str, **values: Any) -> Any:
        """The answer to one command.

        Raises `UserError` with the worker's own message for bad input, and with the last line of its log when it
        failed in another way or died.
        """
        try:
            self._process.stdin.write(json.dumps({"command": command, **values}) + "\n")
            self._process.stdin.flush()
            self._wait(command)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self._process.wait()
            raise UserError(f"the {self.framework} process ended while asked for {command!r}: {self._last_words()}")
        answer = json.loads(line)
        if "error" in answer:
            raise UserError(f"{self.framework}: {answer['error']}")
        return answer["result"]

    def _wait(self, command: str) -> None:
        """Until there is an answer; says once what takes long, and passes on what the log says of it (Jittor's compiling)."""
        while not select.select([self._process.stdout], [], [], PATIENCE)[0]:
            if command not in self._waited_for:
                self._waited_for.add(command)
                once = "; what is new to this machine is compiled once" if self.framework.startswith("jittor") else ""
                print(f"jrdp: waiting for {self.framework} ({command}{once}) ...", file=sys.stderr, flush=True)
            line = self._last_line()
            if line and line != self._said:
                self._said = line
                print(f"jrdp: {self.framework}: {line}", file=sys.stderr, flush=True)

    def _last_line(self) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    def _last_words(self) -> str:
        code = self._process.returncode
        if code == -signal.SIGKILL:
            return "killed, as the system does when memory runs out: use smaller pictures or batches, or free memory"
        return self._last_line() or f"exit code {code}, nothing logged"
