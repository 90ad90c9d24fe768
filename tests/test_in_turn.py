"""scripts/in_turn.py: what it prints is the time that each command was running, and nothing is left when it ends."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "scripts" / "in_turn.py"
BUSY = "import time\nwhile time.process_time() < {}: pass"


def python(code: str) -> str:
    return f"{sys.executable} -c '{code}'"


def in_turn(*commands: str) -> subprocess.CompletedProcess:
    arguments = [sys.executable, str(SCRIPT), *commands, "--rounds", "1", "--begin", "0.2", "--slice", "0.1"]
    return subprocess.run(arguments, capture_output=True, text=True, timeout=60)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux")
def test_the_ratio_is_that_of_the_running_times_with_all_children():
    child = f'import subprocess, sys\nsubprocess.run([sys.executable, "-c", """{BUSY.format(3)}"""])'
    started = time.monotonic()
    done = in_turn(python(BUSY.format(1)), python(child))
    assert done.returncode == 0, done.stderr
    ratio = float(done.stdout.splitlines()[-1].split()[2])
    assert 1.8 < ratio < 4.5  # of three seconds to one; with both at once, or the child going on, about two or less
    assert time.monotonic() - started > 3.5


def test_a_command_that_fails_is_named_and_ends_the_others():
    started = time.monotonic()
    done = in_turn(python(BUSY.format(40)), python("raise SystemExit(3)"))
    assert done.returncode == 1 and "it failed with code 3" in done.stderr
    assert time.monotonic() - started < 20
