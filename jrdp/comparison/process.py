"""A framework in a child process, asked by lines of JSON and answering by lines of JSON; arrays travel as files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
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

    def _last_words(self) -> str:
        code = self._process.returncode
        if code == -signal.SIGKILL:
            return "killed, as the system does when memory runs out: use smaller pictures or batches, or free memory"
        text = self.log.read_text(encoding="utf-8", errors="replace").strip()
        return text.splitlines()[-1].strip() if text else f"exit code {code}, nothing logged"
