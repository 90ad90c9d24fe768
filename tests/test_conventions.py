"""docs/conventions.md and the code that cites it by number hold together."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def entries():
    """Number -> the file that the convention is kept in."""
    text = (ROOT / "docs" / "conventions.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \|.*\| `([^`]+)` \|$", text, flags=re.M)
    points = re.findall(r"^(\d+)\. (?:.+\n)(?:   .+\n)*", text, flags=re.M)
    places = [re.search(rf"^{number}\. [\s\S]*?\(`(jrdp/[^`]+)`\)\n", text, flags=re.M)[1] for number in points]
    return {int(number): place for number, place in [*rows, *zip(points, places)]}


def cited(text):
    found = re.findall(r"[Cc]onventions? (\d+)((?:(?:, | and )\d+)*)", text)
    return {int(number) for first, rest in found for number in [first, *re.findall(r"\d+", rest)]}


def test_they_are_numbered_without_a_gap():
    assert list(entries()) == list(range(1, len(entries()) + 1)) and len(entries()) > 30


def test_each_is_cited_where_it_is_kept():
    for number, place in entries().items():
        assert number in cited((ROOT / place).read_text(encoding="utf-8")), f"{place} does not cite convention {number}"


def test_no_other_number_is_cited():
    assert cited("conventions 4 and 19, convention 7. Conventions 1, 2 and 3") == {1, 2, 3, 4, 7, 19}
    for path in (ROOT / "jrdp").rglob("*.py"):
        unknown = cited(path.read_text(encoding="utf-8")) - set(entries())
        assert not unknown, f"{path} cites {unknown}"
