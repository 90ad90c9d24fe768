"""What `jrdp predict` has done so far, on disk, so that a run that ends early loses nothing.

`predictions.partial.jsonl` gets one line as soon as the files of a picture are written: first what the run was asked
for, then `{"picture", "name", "stamp", "results"}`. At the end the lines become `predictions.json`, and
`predictions.asked.json` keeps digests of what was asked for and of the pictures, by which a `--resume` of a finished run
knows whether it is the same.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import NamedTuple

from jrdp.engine.growing_file import GrowingFile, digest_of, other_request, stamp_of, unknown_request
from jrdp.errors import UserError
from jrdp.files import atomic_write, read_json, refuse_inputs, write_json

NAME = "predictions.partial.jsonl"
ASKED = "predictions.asked.json"
SIGNS_OF_ASKED = (b'"asked"', b'"pictures"', b'"bytes"')
_OF_RUN = "weights, settings or threshold"
_RESULTS = b'"results": ['  # begins the last member of a line; within a string these quotes would have a backslash


class Task(NamedTuple):
    """A picture, its COCO image id, what its output files are called, and how results name it."""

    image_id: int
    picture: Path
    name: str
    file_name: str


class _Place(NamedTuple):
    """Of a picture that is done: its COCO image id, where its line begins, how results name it.

    detections: how many the line holds, as they go into `predictions.json`; None for a line of an earlier run, whose image id
        and name may be others.
    """

    image_id: int
    offset: int
    file_name: str
    detections: int | None = None


class Record:
    """The pictures of a run that are done. Memory holds a few numbers a picture, never the detections.

    Args:
        asked: plain values that a run has to share with the one it continues (weights, settings, threshold).
        resume: keep what an earlier run in `out` has recorded. Raises `UserError` when that was asked something else.
    """

    def __init__(self, out: Path, asked: dict, resume: bool):
        self._out, self._lines = out, GrowingFile(out / NAME, asked)
        refuse_inputs(out / ASKED)
        self._done: dict[str, tuple[int, str, list]] = {}  # picture -> place of its line, name, stamp
        self._places: list[_Place] = []
        if resume:
            for place, entry in self._lines.kept({"picture", "name", "stamp", "results"}, _OF_RUN):
                self._done[str(entry["picture"])] = place, entry["name"], entry["stamp"]

    def __len__(self) -> int:
        return len(self._places)

    @property
    def kept(self) -> int:
        """Pictures that an earlier run has recorded, whether or not they are asked for again and still the same."""
        return len(self._done)

    def remaining(self, tasks: list[Task]) -> list[Task]:
        """Those of `tasks` that are not done; the others count as done under their new image ids."""
        left = []
        for task in tasks:
            offset, name, stamp = self._done.get(str(task.picture), (0, "", []))
            files = [self._out / f"{task.name}{suffix}" for suffix in (".png", "_instances.png")]
            if name == task.name and stamp == _stamp(task.picture) and all(map(os.path.isfile, files)):
                self._places.append(_Place(task.image_id, offset, task.file_name))
            else:
                left.append(task)
        return left

    def __enter__(self) -> Record:
        self._lines.open()
        (self._out / ASKED).unlink(missing_ok=True)  # from now on the files here are no longer that run's
        return self

    def __exit__(self, kind, *_) -> None:
        self._lines.close()
        if kind is not None and self._places:
            text = f"jrdp: {len(self._places)} pictures are kept in {self._out}: the same command with --resume does the rest"
            print(text, file=sys.stderr)

    def add(self, task: Task, results: list[dict]) -> None:
        """Record a picture whose files are written. Raises `UserError` when the disk is full."""
        place = self._lines.append(_line(task, results))
        self._places.append(_Place(task.image_id, place, task.file_name, len(results)))

    def finish(self, keep: bool = False) -> int:
        """Write `predictions.json` in the order of the image ids, and what was asked; returns how many detections it holds.

        The record is removed unless it is to be kept, for a `--resume` that does what could not be written.
        """
        detections, pictures = 0, hashlib.sha256()
        with open(self._lines.path, "rb") as lines, atomic_write(self._out / "predictions.json") as stream:
            stream.write(b"[")
            for place in sorted(self._places):
                lines.seek(place.offset)
                line = lines.readline()
                text, count = _entries(line, place)
                pictures.update(_told(place.image_id, place.file_name, line))
                stream.write(b", " + text if detections and count else text)
                detections += count
            stream.write(b"]\n")
        if not keep:
            size = (self._out / "predictions.json").stat().st_size
            write_json(self._out / ASKED, {"asked": self._lines.digest, "pictures": pictures.hexdigest(), "bytes": size})
            self._lines.path.unlink(missing_ok=True)
        return detections


def _entries(line: bytes, place: _Place) -> tuple[bytes, int]:
    """The results of a line as JSON without the brackets around them, and how many."""
    if place.detections is not None:
        return line[line.index(_RESULTS) + len(_RESULTS) : -len(b"]}\n")], place.detections
    named = {"image_id": place.image_id, "file_name": place.file_name}
    entries = [{**entry, **named} for entry in json.loads(line)["results"]]
    return json.dumps(entries)[1:-1].encode(), len(entries)


def is_finished(out: Path, asked: dict, tasks: list[Task]) -> bool:
    """Whether an earlier run in `out` was `asked` the same, did the same pictures, and left the files of every task.

    A run that did others, or whose files are gone, is none to go on with: it is done anew.

    Raises:
        UserError: where an earlier run was asked something else, or left all files without a word of what it was asked.
    """
    written = out / "predictions.json"
    if not written.is_file() or (out / NAME).exists():
        return False
    there = all((out / f"{task.name}{suffix}").is_file() for task in tasks for suffix in (".png", "_instances.png"))
    try:
        known = read_json(out / ASKED, "record")
        known = known["asked"], known["pictures"], known["bytes"]
    except (UserError, KeyError, TypeError):
        if there:
            raise unknown_request(written) from None
        return False
    if known[0] != digest_of(asked):
        raise other_request(_OF_RUN, written)
    if not there or known[2] != written.stat().st_size:
        return False
    pictures = hashlib.sha256()
    for task in tasks:
        pictures.update(_told(task.image_id, task.file_name, json.dumps(_line(task, [])).encode()))
    return known[1] == pictures.hexdigest()


def _line(task: Task, results: list[dict]) -> dict:
    return {"picture": str(task.picture), "name": task.name, "stamp": _stamp(task.picture), "results": results}


def _told(image_id: int, file_name: str, line: bytes) -> bytes:
    """What a digest of the pictures takes of one: how results name it, and its line up to the results."""
    return json.dumps([image_id, file_name]).encode() + line.partition(_RESULTS)[0]


def _stamp(picture: Path) -> list[int]:
    """What changes when the picture does; nothing for one that cannot be looked at."""
    return stamp_of(picture)[1:]  # a line names the picture itself
