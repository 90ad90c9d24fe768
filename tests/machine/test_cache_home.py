"""Where Jittor's cache lies, whatever the path looks like, and that one run's choice is not the next one's."""

import json
import os
import subprocess
import sys

import pytest

from jrdp.machine import cache


def test_an_empty_variable_counts_as_unset(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("JITTOR_HOME", "")
    assert cache.jittor_home() == tmp_path


@pytest.mark.parametrize("name", ["a b", "a'b", "$HOME", "a;b", "my-dc1"])
def test_a_path_that_a_shell_would_split_gets_a_link_that_stays(monkeypatch, tmp_path, name):
    monkeypatch.setenv("JITTOR_HOME", str(tmp_path / name))
    link = cache.jittor_home()
    assert not cache._UNQUOTED.search(str(link)) and link == cache.jittor_home()
    try:
        assert link.resolve() == (tmp_path / name).resolve() and os.lstat(link.parent).st_mode & 0o022 == 0
    finally:
        link.unlink()


def test_no_name_has_what_jittor_takes_for_an_option_of_nvcc():
    names = {cache.fingerprint(number) for number in range(20000)}
    assert len(names) == 20000 and {len(name) for name in names} == {8}
    assert not any(name.startswith("dc") for name in names) and any(name.startswith("xc") for name in names)
    assert cache.short("dc0123456789") == "xc012345" and cache.short("d00123456789") == "d0012345"


def test_letters_beyond_ascii_need_no_link(monkeypatch, tmp_path):
    monkeypatch.setenv("JITTOR_HOME", str(tmp_path / "ü"))
    assert cache.jittor_home() == tmp_path / "ü"


def test_jittor_has_nothing_to_remember(monkeypatch, tmp_path):
    """Its own function, in a process of its own, with the home that our import hook gives it."""
    monkeypatch.setenv("JITTOR_HOME", str(tmp_path / "other"))
    home = cache.jittor_home()
    stub = cache.home_for_import(home)
    found = subprocess.run(
        [sys.executable, "-c", "import jittor_utils; print(jittor_utils.home())"],
        env={**os.environ, "HOME": str(stub), "JITTOR_HOME": str(home)}, capture_output=True, text=True, timeout=120,
    )
    assert found.stdout.splitlines()[-1] == str(home), found.stderr
    config = stub / ".cache" / "jittor" / "config.json"
    assert json.loads(config.read_text()) == {"JITTOR_HOME": str(home)}
