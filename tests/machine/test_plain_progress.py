"""What others see of progress that is written over itself."""

import os
import pty
import subprocess
import sys

SCRIPT = """
import os, sys
from jrdp.machine import plain_progress
plain_progress.begin()
plain_progress.begin()
os.write(2, b"\\nCompiling Operators(1/3) used: 1s \\rCompiling Operators(3/3) used: 2s \\r")
os.write(2, b"\\nplain\\n")
print("jrdp: error: text", file=sys.stderr)
if len(sys.argv) > 1:
    os.abort()
plain_progress.end()
plain_progress.end()
print("after", file=sys.stderr)
"""


def test_only_the_last_state_of_a_line_reaches_a_pipe_or_a_file(tmp_path):
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, check=True)
    assert done.stderr == b"\nCompiling Operators(3/3) used: 2s\nplain\njrdp: error: text\nafter\n"
    with open(tmp_path / "log", "wb") as log:
        subprocess.run([sys.executable, "-c", SCRIPT], stderr=log, check=True)
    assert (tmp_path / "log").read_bytes() == done.stderr  # whole when the command has ended


def test_what_a_crash_says_comes_through():
    done = subprocess.run([sys.executable, "-c", SCRIPT, "abort"], capture_output=True)
    assert done.returncode < 0 and done.stderr.endswith(b"plain\njrdp: error: text\n")


def test_the_end_does_not_wait_for_others_that_hold_the_pipe():
    # Jittor's compile pool does: every command whose standard error was no terminal took two seconds longer.
    script = """
import os, sys, time
from jrdp.machine import plain_progress
plain_progress.begin()
child = os.fork()
if child == 0:
    time.sleep(60)
    os._exit(0)
os.write(2, b"one\\rtwo\\nhalf a line \\r")
began = time.monotonic()
plain_progress.end()
print(time.monotonic() - began)
os.kill(child, 9)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 1
    assert done.stderr == "two\nhalf a line\n"


def test_a_terminal_is_left_alone():
    ours, theirs = pty.openpty()
    subprocess.run([sys.executable, "-c", SCRIPT], stderr=theirs, check=True)
    os.close(theirs)
    seen = os.read(ours, 4096)
    os.close(ours)
    assert b"used: 1s \rCompiling" in seen and seen.rstrip().endswith(b"after")


def test_what_somebody_else_put_in_its_place_stays_and_gets_nothing(tmp_path):
    """As a test's capture does, or a notebook's: it begins while the process stands between, or before."""
    script = """
import os, sys
from jrdp.machine import plain_progress
plain_progress.begin()
os.write(2, b"one\\rtwo\\n")
file = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
os.dup2(file, 2)
plain_progress.end()
os.write(2, b"theirs\\n")
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "file")], capture_output=True, check=True)
    assert done.stderr == b"two\n" and (tmp_path / "file").read_bytes() == b"theirs\n"
