"""A limit on memory addresses (`ulimit -v`): one line instead of a segmentation fault."""

import resource
import subprocess
import sys

from jrdp.machine import runtime

CODE = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]), resource.RLIM_INFINITY))
from jrdp import endings
from jrdp.machine import runtime
runtime._process_is_ours = True
sys.exit(endings.run(runtime._check_address_space))
"""


def ended(limit):
    done = subprocess.run([sys.executable, "-c", CODE, str(limit)], capture_output=True, text=True, timeout=120)
    return done.returncode, done.stderr


def test_too_small_a_limit_is_refused_and_a_larger_one_named():
    code, text = ended(1 << 30)
    assert code == 2 and "1.0 GiB" in text and "ulimit -v" in text and len(text.splitlines()) == 1
    code, text = ended(64 << 30)
    assert code == 0 and "limited to 64.0 GiB" in text and len(text.splitlines()) == 1


def test_nothing_is_said_without_a_limit(monkeypatch, capsys):
    monkeypatch.setattr(resource, "getrlimit", lambda what: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    runtime._check_address_space()
    assert capsys.readouterr().err == ""
