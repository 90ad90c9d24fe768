"""The stable copy of Jittor's source, with a small pretend Jittor."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from jrdp.machine import cache
from jrdp.machine.cache import build_folder, replace_file
from jrdp.machine.source import installed_site, stable_copy


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("JITTOR_HOME", str(tmp_path / "home"))


@pytest.fixture
def site(tmp_path):
    def make(name: str, header: str = "int x;"):
        folder = tmp_path / name
        for path, text in (("jittor/__init__.py", ""), ("jittor/src/op.h", header), ("jittor_utils/__init__.py", "")):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text)
        (folder / "jittor" / "__pycache__").mkdir(exist_ok=True)
        (folder / "jittor" / "__pycache__" / f"{name}.pyc").write_text(name)
        return folder

    return make


def test_two_environments_share_one_copy(site):
    first, second = stable_copy(site("a"), "1.3.11.0"), stable_copy(site("b"), "1.3.11.0")
    assert first == second and (first / "jittor" / "src" / "op.h").read_text() == "int x;"
    kept = [path.name for path in (first / "jittor" / "__pycache__").iterdir()]
    assert kept == [f"__init__.{sys.implementation.cache_tag}.pyc"], "bytecode of this Python alone, and none of a site's own"


def test_the_copy_starts_from_bytecode(site):
    folder = site("a")
    (folder / "jittor" / "__init__.py").write_text("value = 3\n")
    (folder / "jittor" / "broken.py").write_text("print 'of Python 2'\n")
    copy = stable_copy(folder, "1.3.11.0")
    told = subprocess.run(
        [sys.executable, "-v", "-c", "import jittor; print(jittor.value)"],
        env={**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    source = copy / "jittor" / "__init__.py"
    assert told.stdout == "3\n" and f"__init__.{sys.implementation.cache_tag}.pyc matches {source}" in told.stderr
    assert f"code object from {source}" not in told.stderr


def test_a_changed_header_is_another_copy(site):
    folder = site("a")
    first = stable_copy(folder, "1.3.11.0")
    (folder / "jittor" / "src" / "op.h").write_text("int y;")
    os.utime(folder / "jittor" / "src" / "op.h", ns=(1, 1))
    second = stable_copy(folder, "1.3.11.0")
    assert first != second and (second / "jittor" / "src" / "op.h").read_text() == "int y;"


def test_a_copy_is_not_copied_again(site):
    copy = stable_copy(site("a"), "1.3.11.0")
    assert stable_copy(copy, "1.3.11.0") == copy


def test_damaged_notes_about_digests_are_ignored(site):
    folder = site("a")
    copy = stable_copy(folder, "1.3.11.0")
    for memo in (cache.own_folder() / "digests").iterdir():
        memo.write_text("{")
    assert stable_copy(folder, "1.3.11.0") == copy


def test_the_installed_jittor_is_found():
    site = installed_site()
    assert (site / "jittor" / "__init__.py").is_file() and (site / "jittor_utils" / "__init__.py").is_file()


def test_a_folder_appears_complete_or_not_at_all(tmp_path):
    def fail(folder):
        (folder / "half").write_text("")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        build_folder(tmp_path / "x" / "target", fail)
    assert list((tmp_path / "x").iterdir()) == []


def test_the_first_of_two_builders_wins(tmp_path):
    target = tmp_path / "target"

    def slow(folder):
        (folder / "who").write_text("slow")
        build_folder(target, lambda quick: (quick / "who").write_text("quick"))

    assert (build_folder(target, slow) / "who").read_text() == "quick"
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_replace_file_makes_it_executable(tmp_path):
    for _ in range(2):
        replace_file(tmp_path / "f", "text", executable=True)
    assert os.access(tmp_path / "f", os.X_OK) and (tmp_path / "f").read_text() == "text"


def test_the_remembered_home_is_read_as_jittor_reads_it(tmp_path, monkeypatch):
    monkeypatch.delenv("JITTOR_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.jittor_home() == tmp_path
    config = tmp_path / ".cache" / "jittor" / "config.json"
    config.parent.mkdir(parents=True)
    config.write_text('{"JITTOR_HOME": "/elsewhere"}')
    assert str(cache.jittor_home()) == "/elsewhere"
    config.write_text("broken")
    assert cache.jittor_home() == tmp_path
