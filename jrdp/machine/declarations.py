"""Remembers what Jittor makes of its own declarations, which it would read anew at each import.

Jittor looks through its 150 headers, character by character, for what Python is to see of them and writes that down as
C++, every time, to find that nothing has changed: half of its import. The text it comes to depends on the header's
path and contents alone, and the parser lies in a folder that is named after its contents, so it is kept there beside.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
from pathlib import Path
from typing import Callable, Iterator, Optional

from jrdp.machine.cache import fingerprint, own_folder, replace_file

_Parse = Callable[[str, str, str], Optional[str]]  # contents, path and name of a header -> C++, or nothing to declare


@contextlib.contextmanager
def remembered(copy: Path) -> Iterator[None]:
    """While the Jittor in the folder `copy` is imported within the block, its parser works on headers that are new only."""
    try:
        parser = importlib.import_module("jittor.pyjt_compiler")
        parse: _Parse = parser.compile_src
    except (ImportError, AttributeError):  # a Jittor without such a parser
        yield
        return
    # What is generated lies in Jittor's cache, whose name is another one for each way of compiling.
    memory = _Memory(own_folder() / f"declarations-{fingerprint(copy.name, os.environ.get('cache_name', ''))}.json", parse)
    parser.compile_src = memory.parse
    try:
        yield
        memory.save()
    finally:
        parser.compile_src = parse


class _Memory:
    """Texts by a digest of what they were made of."""

    def __init__(self, path: Path, parse: _Parse):
        self._path, self._parse = path, parse
        self._before = _read(path)
        self._now: dict[str, Optional[str]] = {}

    def parse(self, contents: str, path: str, name: str) -> Optional[str]:
        key = hashlib.sha256("\0".join((name, path, contents)).encode("utf-8", "surrogateescape")).hexdigest()
        if key not in self._now:
            self._now[key] = self._before[key] if key in self._before else self._parse(contents, path, name)
        return self._now[key]

    def save(self) -> None:
        """Keep what was asked for since; an unwritable cache is no reason to fail."""
        if self._now.keys() != self._before.keys():
            with contextlib.suppress(OSError):
                replace_file(self._path, json.dumps(self._now))


def _read(path: Path) -> dict[str, Optional[str]]:
    """What was kept; nothing where the file is none of ours."""
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    texts = known.values() if isinstance(known, dict) else [0]
    return known if all(text is None or isinstance(text, str) for text in texts) else {}
