"""The stable copy of the operators' headers: named by contents, complete, repaired, the same for every copy."""

import subprocess
import sys
from pathlib import Path

import pytest

import jrdp
from jrdp.machine.headers import stable_headers


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A folder of two headers in a package `ops`, with a cache folder of its own."""
    monkeypatch.setenv("JITTOR_HOME", str(tmp_path / "home"))
    return make_headers(tmp_path / "here")


def make_headers(root: Path) -> Path:
    folder = root / "ops" / "kernels"
    folder.mkdir(parents=True)
    (folder / "a.h").write_text('#include "b.h"\n')
    (folder / "b.h").write_text("int b;\n")
    return folder


def contents(folder: Path) -> dict:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_every_copy_of_the_package_has_the_same(package, tmp_path):
    stable = stable_headers(package)
    assert contents(stable) == contents(package)
    assert stable_headers(make_headers(tmp_path / "there")) == stable
    assert tmp_path / "home" in stable.parents


def test_other_contents_have_another_path(package):
    first = stable_headers(package)
    (package / "b.h").write_text("long b;\n")
    second = stable_headers(package)
    (package / "b.h").rename(package / "c.h")
    assert len({first, second, stable_headers(package)}) == 3
    assert contents(first)["b.h"] == "int b;\n"
    assert contents(second)["b.h"] == "long b;\n"


def test_missing_and_altered_files_are_put_right(package):
    stable = stable_headers(package)
    (stable / "a.h").unlink()
    (stable / "b.h").write_text("broken")
    assert contents(stable) != contents(package)
    assert stable_headers(package) == stable
    assert contents(stable) == contents(package)


def test_several_processes_at_once(package):
    source = f"""
from pathlib import Path
from jrdp.machine.headers import stable_headers
print(stable_headers(Path({str(package)!r})))
"""
    root = Path(jrdp.__file__).parent.parent
    command = [sys.executable, "-c", source]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) for _ in range(4)]
    printed = {process.communicate()[0].strip() for process in running}
    assert [process.returncode for process in running] == [0] * 4
    (stable,) = map(Path, printed)
    assert contents(stable) == contents(package)
    assert not list(stable.parent.glob(".new-*"))
