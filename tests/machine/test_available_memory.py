"""How much memory is available, as Linux tells it, in a container and outside."""

import pytest

from jrdp.machine.memory import available_memory

MEMINFO = "MemTotal:       24700000 kB\nMemFree:         100000 kB\nMemAvailable:    2097152 kB\n"


@pytest.fixture
def system(tmp_path):
    (tmp_path / "meminfo").write_text(MEMINFO)
    return lambda: available_memory(tmp_path / "meminfo", tmp_path)


def test_what_the_system_has(system):
    assert system() == 2 << 30


@pytest.mark.parametrize("text", ["", "MemTotal: 5 kB\n", "MemAvailable:\n", "MemAvailable: many kB\n", "nonsense"])
def test_nothing_is_promised_where_the_system_does_not_say(system, tmp_path, text):
    (tmp_path / "meminfo").write_text(text)
    assert system() == 0
    (tmp_path / "meminfo").unlink()
    assert system() == 0


@pytest.mark.parametrize("names", [("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")])
def test_a_containers_limit_counts(system, tmp_path, names):
    limit, used = (tmp_path / name for name in names)
    limit.parent.mkdir(exist_ok=True)
    used.write_text(f"{1 << 30}\n")
    for text, expected in (("max\n", 2 << 30), (f"{2**63 - 4096}\n", 2 << 30), (f"{5 << 29}\n", 3 << 29), ("5\n", 0)):
        limit.write_text(text)
        assert system() == expected
    used.unlink()
    assert system() == 2 << 30


def test_this_machine():
    assert 0 <= available_memory() < 1 << 50
