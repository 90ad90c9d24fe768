"""What Jittor makes of its headers is made once: the same text as its parser's, and anew for whatever has changed."""

from __future__ import annotations

from pathlib import Path

import jittor
import pytest
from jittor import pyjt_compiler

from jrdp.machine import declarations
from jrdp.machine.declarations import remembered

COPY = Path(jittor.__file__).parent.parent


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """The headers that a pretended parser was given; its memory is in an empty folder."""
    monkeypatch.setenv("JITTOR_HOME", str(tmp_path))
    monkeypatch.setenv("cache_name", "a")
    seen = []

    def parse(contents, path, name):
        seen.append(path)
        if contents == "wrong":
            raise ValueError(contents)
        return f"{contents} of {name}" if contents else None

    monkeypatch.setattr(pyjt_compiler, "compile_src", parse)
    return seen


def go_through(*headers):
    before = pyjt_compiler.compile_src
    with remembered(COPY):
        found = [pyjt_compiler.compile_src(contents, f"/src/{name}.h", name) for name, contents in headers]
    assert pyjt_compiler.compile_src is before
    return found


def the_file(tmp_path):
    (path,) = (tmp_path / ".cache/jittor/jrdp").glob("declarations-*.json")
    return path


def test_each_text_is_parsed_once(asked, tmp_path):
    expected = ["x of one", None, "é\udcff of three"]
    headers = ("one", "x"), ("two", ""), ("three", "é\udcff")
    assert go_through(*headers) == expected and len(asked) == 3
    written = the_file(tmp_path).stat().st_mtime_ns
    assert go_through(*headers) == expected and len(asked) == 3
    assert the_file(tmp_path).stat().st_mtime_ns == written


def test_what_has_changed_is_parsed_anew_and_what_is_gone_forgotten(asked, tmp_path, monkeypatch):
    go_through(("one", "x"), ("two", "y"))
    assert go_through(("one", "x"), ("two", "z"), ("three", "x")) == ["x of one", "z of two", "x of three"]
    assert asked == ["/src/one.h", "/src/two.h", "/src/two.h", "/src/three.h"]
    assert "y of two" not in the_file(tmp_path).read_text()
    monkeypatch.setenv("cache_name", "b")  # compiled another way: its files do not drive out those of the first
    go_through(("one", "w"))
    monkeypatch.setenv("cache_name", "a")
    go_through(("one", "x"), ("two", "z"), ("three", "x"))
    assert len(asked) == 5


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"0": 1}', "\0"])
def test_a_file_that_is_none_of_ours_is_made_anew(asked, tmp_path, text):
    go_through(("one", "x"))
    the_file(tmp_path).write_text(text)
    assert go_through(("one", "x")) == ["x of one"] and len(asked) == 2
    assert go_through(("one", "x")) == ["x of one"] and len(asked) == 2


def test_an_import_that_fails_keeps_nothing_and_puts_the_parser_back(asked, tmp_path):
    before = pyjt_compiler.compile_src
    with pytest.raises(ValueError, match="wrong"):
        go_through(("one", "x"), ("two", "wrong"))
    assert pyjt_compiler.compile_src is before
    assert not list(tmp_path.rglob("declarations-*.json"))


def test_a_cache_that_cannot_be_written_is_gone_without(asked, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(declarations, "replace_file", full)
    assert go_through(("one", "x")) == ["x of one"]


def test_a_jittor_without_such_a_parser(monkeypatch):
    monkeypatch.delattr(pyjt_compiler, "compile_src")
    with remembered(COPY):
        pass
    assert not hasattr(pyjt_compiler, "compile_src")


def test_jittors_own_headers(tmp_path, monkeypatch):
    """Parsed, remembered and read back, they are what Jittor's parser makes of them; some have declarations, some none."""
    monkeypatch.setenv("JITTOR_HOME", str(tmp_path))
    headers = [(path.stem, path.read_text(encoding="utf-8")) for path in sorted((COPY / "jittor/src/misc").rglob("*.h"))]
    headers += [("flags", (COPY / "jittor/src/utils/log.h").read_text(encoding="utf-8"))]
    expected = [pyjt_compiler.compile_src(contents, f"/src/{name}.h", name) for name, contents in headers]
    assert go_through(*headers) == go_through(*headers) == expected
    assert any(expected) and not all(expected)
