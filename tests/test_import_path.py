"""Code that is named by an import path: where it is looked for, and what is said when it is not found."""

import sys

import pytest

from jrdp import import_path
from jrdp.errors import UserError
from jrdp.import_path import import_object, is_import_path, is_imported, reason_of

KEY = "model.backbone.name"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory, which is not on Python's path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])
    monkeypatch.setattr(import_path, "_homes", set())
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_the_working_directory_comes_after_python_s_path(folder):
    (folder / "own_part.py").write_text("class Part:\n    here = True\n")
    (folder / "json.py").write_text("raise RuntimeError('the wrong one')\n")
    assert not is_imported("own_part:Part")
    assert import_object("own_part:Part", KEY).here
    assert is_imported("own_part:Part")
    assert import_object("json:loads", KEY)("1") == 1
    assert sys.path[-1] == str(folder)


@pytest.mark.parametrize(
    "path, told",
    [
        ("no_such_part:Part", "there is no module no_such_part; it is looked for on Python's path and in {folder}"),
        ("broken:Part", "importing broken raised ValueError: in two lines"),
        ("silent:Part", "importing silent raised KeyboardInterruptLike"),
        ("script:Part", "importing script raised SystemExit: 3"),
        ("hungry:Part", "importing hungry raised ModuleNotFoundError: No module named 'no_such_food'"),
        ("own_part:Other", "own_part.py has no Other"),
    ],
)
def test_what_is_missing_is_said_in_one_line(folder, path, told):
    (folder / "own_part.py").write_text("Part = 1\n")
    (folder / "broken.py").write_text("raise ValueError('in two\\nlines')\n")
    (folder / "silent.py").write_text("class KeyboardInterruptLike(Exception): pass\nraise KeyboardInterruptLike\n")
    (folder / "script.py").write_text("import sys\nsys.exit(3)\n")
    (folder / "hungry.py").write_text("import no_such_food\n")
    with pytest.raises(UserError) as refused:
        import_object(path, KEY)
    message = str(refused.value)
    assert message.startswith(f"{KEY}: {path}: ") and message.endswith(told.format(folder=folder)) and "\n" not in message


def test_a_module_that_is_missing_twice_is_looked_for_in_one_folder(folder):
    for _ in range(2):
        with pytest.raises(UserError, match="no module no_such_part"):
            import_object("no_such_part:Part", KEY)
    assert sys.path.count(str(folder)) == 1


def test_a_module_on_python_s_path_finds_nothing_in_the_working_directory(folder, tmp_path_factory, monkeypatch):
    elsewhere = tmp_path_factory.mktemp("installed")
    (elsewhere / "installed_part.py").write_text("import no_such_food\n")
    (folder / "no_such_food.py").touch()
    monkeypatch.syspath_prepend(str(elsewhere))
    with pytest.raises(UserError, match="importing installed_part raised ModuleNotFoundError"):
        import_object("installed_part:Part", KEY)


OWN = """
import json
from jrdp import boxes

class Shy:
    def __array__(self, *_, **__):
        raise ValueError("do not look")

def fails(): raise KeyError("words\\n" + 300 * "x")
def fails_in_a_library(): json.loads("{")
def is_misunderstood(): boxes.area("a box")
def is_asked(): boxes.area(Shy())
"""


@pytest.mark.parametrize(
    "name, told",
    [
        ("fails", "your own code raised KeyError in own_part.py, line 9: 'words\\n" + 292 * "x"),  # 300 characters of it
        ("fails_in_a_library", "your own code raised JSONDecodeError in own_part.py, line 10: Expecting property name"),
        ("is_misunderstood", None),  # what this project raises is no fault of a module of one's own, as far as one knows
        ("is_asked", "your own code raised ValueError in own_part.py, line 7: do not look"),
    ],
)
def test_what_a_module_of_ones_own_raises_while_it_is_used_is_told_with_its_place(folder, name, told):
    (folder / "own_part.py").write_text(OWN)
    with pytest.raises(Exception) as raised:
        import_object(f"own_part:{name}", KEY)()
    reason = reason_of(raised.value)
    assert reason is None if told is None else reason.startswith(told)
    if name == "fails":
        assert reason == told


def test_what_others_raise_has_no_such_reason():
    with pytest.raises(ValueError) as raised:
        int("x")
    assert reason_of(raised.value) is None


@pytest.mark.parametrize("text, is_one", [("a:B", True), ("a.b:C_1", True), ("resnet18", False), ("a.b", False), ("a:b.c", False), ("1a:B", False)])
def test_what_an_import_path_looks_like(text, is_one):
    assert is_import_path(text) is is_one
