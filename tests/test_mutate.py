"""`scripts/mutate.py` plants the mistakes that it says, and knows modules and tests that exist."""

import ast
import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODULE = '''"""A module with 1 + 1 in its docstring."""
from typing import Optional

LIMIT: int = 3
FAR = 1e300  # one more is the same number

def size(values: list, least: Optional[int] = None, strict=True) -> int:
    total = 0
    for value in values:
        if value < 0 or not value:
            continue
        total += value * 2
    if total is None:
        raise ValueError(f"more than {3 + 4}")
    return max(total, least, key=abs) if strict else -total
'''


@pytest.fixture(scope="module")
def mutate():
    spec = importlib.util.spec_from_file_location("mutate", ROOT / "scripts" / "mutate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_mistake_is_one_change_of_a_module_that_still_compiles(mutate, tmp_path):
    path = tmp_path / "small.py"
    path.write_text(MODULE)
    mutants = mutate.mutants_of(path)
    changes = {mutant.change for mutant in mutants}
    assert changes >= {
        "3  ->  4", "True  ->  False", "0  ->  1", "2  ->  3", "value < 0  ->  value <= 0", "not value  ->  value",
        "value < 0 or not value  ->  value < 0 and (not value)", "continue  ->  break", "total += value * 2  ->  total -= value * 2",
        "value * 2  ->  value / 2", "total is None  ->  total is not None", "strict  ->  not strict", "-total  ->  total",
        "max(total, least, key=abs)  ->  max(total, least)",
    }  # fmt: skip
    assert not any("3 + 4" in change or "docstring" in change or "Optional" in change for change in changes)
    original = ast.unparse(ast.parse(MODULE))
    for mutant in mutants:
        compile(mutant.source, "small.py", "exec")
        differing = [a for a, b in zip(mutant.source.splitlines(), original.splitlines()) if a != b]
        assert len(differing) == 1, mutant.change
    assert {mutant.text for mutant in mutants if mutant.change.startswith("value < 0 ")} == {"if value < 0 or not value:"}
    assert len({mutant.source for mutant in mutants}) == len(mutants)
    assert [mutant.line for mutant in mutants] == sorted(mutant.line for mutant in mutants)


def test_sizes_and_colours_of_plots_are_left_alone(mutate, tmp_path):
    (tmp_path / "plot.py").write_text(
        "RUN_COLORS = (1, 2)\ncolor = 3\nfigure = new_figure(12, 4)\naxes.plot(5, color=6, label=7)\naxes.margins(x=8)\n"
    )
    assert [mutant.change for mutant in mutate.mutants_of(tmp_path / "plot.py")] == [
        "3  ->  4", "axes.plot(5, color=6, label=7)  ->  axes.plot(5, color=6)", "5  ->  6", "7  ->  8"
    ]  # fmt: skip


def test_modules_and_their_tests_exist(mutate):
    for module, tests in mutate.TARGETS.items():
        assert (ROOT / module).is_file(), module
        for test in tests:
            assert (ROOT / test).exists(), test


EXCUSES = """# What this file is for.

small.py
    LIMIT: int = 3
        3  ->  4
            Nobody asks.
    if value < 0 or not value:
        not value  ->  value
            A reason.
    if value <= 0:
        0  ->  1
            Another reason.
other.py
    a line
        1  ->  2
            A third.
"""


def test_excuses_are_told_and_stale_ones_are_an_error(mutate, tmp_path, monkeypatch, capsys):
    (tmp_path / "excused.txt").write_text(EXCUSES)
    excuses = mutate.read_excuses(tmp_path / "excused.txt")
    assert excuses["other.py"] == {("a line", "1  ->  2"): "A third."} and len(excuses["small.py"]) == 3
    path = tmp_path / "small.py"
    path.write_text(MODULE)
    missed = {"3  ->  4", "2  ->  3"}
    passing = {mutant.source for mutant in mutate.mutants_of(path) if mutant.change in missed} | {MODULE}
    monkeypatch.setattr(mutate, "ROOT", tmp_path)
    monkeypatch.setattr(mutate, "run_tests", lambda path, source, tests, limit: (source in passing, 0.1))
    planted = len(mutate.mutants_of(path))
    count = mutate.measure(path, [], 1, excuses["small.py"])
    assert count == mutate.Count(planted=planted, noticed=planted - 2, excused=1, stale=2)
    told = capsys.readouterr().out
    assert "3  ->  4  (excused: Nobody asks.)" in told and f"small.py: {planted - 2} of {planted} noticed, 1 excused" in told
    assert "no such mistake any more: if value <= 0:  [0  ->  1]" in told
    assert "the tests notice it: if value < 0 or not value:  [not value  ->  value]" in told
    assert mutate.measure(path, [], planted, excuses["small.py"]) == mutate.Count(1, 0, 1, 1)  # the first alone, which is 3 -> 4


def test_every_excuse_stands_for_a_mistake_and_gives_a_sentence(mutate):
    for module, excuses in mutate.read_excuses(mutate.EXCUSED).items():
        assert module in mutate.TARGETS
        assert mutate.without_place(excuses, mutate.mutants_of(ROOT / module)) == []
        assert all(why.endswith(".") and len(why) > 20 for why in excuses.values())
