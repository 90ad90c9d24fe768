"""Limits that Jittor does not survive are one line: on memory addresses (`ulimit -v`), a working folder that is gone."""

import resource
import subprocess
import sys

import pytest

from jrdp.errors import UserError
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


def test_a_working_folder_that_is_gone(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    runtime._check_working_folder()
    (tmp_path / "gone").rmdir()
    with pytest.raises(UserError, match="not there any more"):
        runtime._check_working_folder()
