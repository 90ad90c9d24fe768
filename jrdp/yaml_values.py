"""YAML from outside: read without running away, whatever is in it."""

from __future__ import annotations

import re
from typing import Any

import yaml

_NODES, _DEPTH = 20_000, 50  # far more than a configuration needs, aliases counted each time they are used


def parse_yaml(text: str) -> Any:
    """`yaml.safe_load` for text from outside, without what YAML 1.1 makes of it that nobody means.

    1e-4 is a number; 010 (8 there), 1:30 (90) and 2020-01-01 are text. A key given twice is refused.

    Raises `ValueError`, with a reason of one line, for all that is wrong with it: syntax, values that YAML's own
    types refuse (a date of month 13, a number of 5,000 digits), deep nesting, and aliases that stand for so many
    values that no memory would hold them.
    """
    try:
        _check_size(text)
        return yaml.load(text, Loader=_Loader)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except Exception as error:  # PyYAML's constructors let ValueError, TypeError, KeyError and others through
        hint = "it is indented with a tab, and YAML takes spaces only: " if r"'\t' that cannot start" in str(error) else ""
        raise ValueError(hint + " ".join(str(error).split())[:300] or type(error).__name__) from error


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] not in ("int", "float", "timestamp")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node, deep=False):
        if isinstance(node, yaml.MappingNode):
            seen = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                    if key.value in seen:
                        raise ValueError(f"the key {key.value[:80]!r} is given twice, again in line {key.start_mark.line + 1}")
                    seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F]+)$"), list("-+0123456789")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"(?:[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"),
    list("-+0123456789."),
)


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
