"""YAML from outside: read without running away, whatever is in it."""

from __future__ import annotations

from typing import Any

import yaml

_NODES, _DEPTH = 20_000, 50  # far more than a configuration needs, aliases counted each time they are used


def parse_yaml(text: str) -> Any:
    """`yaml.safe_load` for text from outside.

    Raises `ValueError`, with a reason of one line, for all that is wrong with it: syntax, values that YAML's own
    types refuse (a date of month 13, a number of 5,000 digits), deep nesting, and aliases that stand for so many
    values that no memory would hold them.
    """
    try:
        _check_size(text)
        return yaml.safe_load(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except Exception as error:  # PyYAML's constructors let ValueError, TypeError, KeyError and others through
        raise ValueError(" ".join(str(error).split())[:300] or type(error).__name__) from error


def _check_size(text: str) -> None:
    """Walk over the events, which needs no recursion: depth, and nodes with every alias as large as its anchor."""
    depth, total = 0, 0
    open_anchors: list[tuple[str | None, int]] = []
    sizes: dict[str, int] = {}
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                raise ValueError(f"the alias *{event.anchor} stands inside of what it names, or names nothing")
            total += sizes[event.anchor]
        elif isinstance(event, yaml.ScalarEvent):
            total += 1
            if event.anchor:
                sizes[event.anchor] = 1
        elif isinstance(event, yaml.CollectionStartEvent):
            total, depth = total + 1, depth + 1
            open_anchors.append((event.anchor, total))
            if depth > _DEPTH:
                raise ValueError("it is nested too deeply")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
            anchor, before = open_anchors.pop()
            if anchor:
                sizes[anchor] = total - before + 1
        if total > _NODES:
            raise ValueError(f"it holds more than {_NODES} values (aliases counted as what they stand for)")
