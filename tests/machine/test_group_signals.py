"""Ctrl-C, `timeout` and batch systems send a signal to a command's children as well, those that Jittor compiles with too."""

import os
import signal
import subprocess
import sys

import pytest

READY = """
import signal, sys, time
for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # nohup has it ignored
    signal.signal(getattr(signal, name), signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL)
from jrdp import endings
from jrdp.machine import runtime
runtime.start("cpu")
import jittor_utils
assert len(jittor_utils.p._pool) > 0  # Jittor has made its pool
def wait():
    print("ready", flush=True)
    for _ in range(6000):  # a signal that comes just before a call that waits is seen after it
        time.sleep(0.1)
"""
COMMAND = READY + "endings.leave(endings.run(wait))"
HOST = """
import jrdp
""" + READY + """
try:
    wait()
except KeyboardInterrupt:
    print("the host goes on", jittor_utils.p._pool[0].is_alive())
"""  # fmt: skip


def ended_by(number, code):
    """(exit code, what it printed after "ready") of a process whose whole group gets the signal."""
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    )
    try:
        assert process.stdout.readline() == "ready\n"
        os.killpg(process.pid, number)
        told, _ = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return process.returncode, told


@pytest.mark.parametrize("name, code", [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_command_ends_when_its_whole_group_gets_the_signal(name, code):
    for _ in range(3):
        assert ended_by(getattr(signal, name), COMMAND) == (code, "")


def test_a_host_goes_on_after_ctrl_c_and_ends_when_it_wants_to():
    for _ in range(3):
        assert ended_by(signal.SIGINT, HOST) == (0, "the host goes on True\n")


@pytest.mark.parametrize("start", [["-c", "from jrdp.__main__ import main; main()"], ["-m", "jrdp"], ["-m", "jrdp.cli"]])
@pytest.mark.parametrize("name, code", [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_while_the_command_is_still_imported_is_no_traceback(tmp_path, name, code, start):
    (tmp_path / "typer.py").write_text("import time\nprint('ready', flush=True)\ntime.sleep(60)\n")
    # As in a terminal: where this runs in the background or under nohup, a signal may be ignored.
    usual = f"import os, signal, sys; signal.signal(signal.{name}, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
    process = subprocess.Popen(
        [sys.executable, "-c", usual, sys.executable, *start],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])},
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    process.send_signal(getattr(signal, name))
    told = process.communicate(timeout=60)
    assert (process.returncode, *told) == (code, "", "")
