"""`scripts/mutate.py` plants the mistakes that it says, and knows modules and tests that exist."""

import ast
import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODULE = '''"""A module with 1 + 1 in its docstring."""
from typing import Optional

LIMIT: int = 3

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
    assert len({mutant.source for mutant in mutants}) == len(mutants)
    assert [mutant.line for mutant in mutants] == sorted(mutant.line for mutant in mutants)


def test_modules_and_their_tests_exist(mutate):
    for module, tests in mutate.TARGETS.items():
        assert (ROOT / module).is_file(), module
        for test in tests:
            assert (ROOT / test).exists(), test
