"""What has been found so far in the frames of a video, or the batches of a test set, so that hours of it survive a kill.

`NAME.partial.jsonl` gets a line a frame (or batch): first what the run was asked for, then the COCO results of 0, 1, ...
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from jrdp.engine.growing_file import GrowingFile, digest_of, other_request, stamp_of, unknown_request
from jrdp.files import parse_json


class FrameRecord:
    """The results of the first `done` frames. Memory holds a number a frame.

    Args:
        path: the file; made or emptied unless it is continued.
        asked: plain values that a run has to share with the one it continues (video or test set, weights, settings).
        resume: keep what is there. Raises `UserError` when that was asked something else.
    """

    def __init__(self, path: Path, asked: dict, resume: bool):
        self._lines = GrowingFile(path, asked)
        kept = self._lines.kept({"results"}, "inputs, weights, settings or threshold") if resume else ()
        self._places = [place for place, _ in kept]
        self._lines.open()

    @property
    def done(self) -> int:
        return len(self._places)

    def results(self, frame: int) -> list:
        """The COCO results of a frame that is done."""
        return self._lines.read(self._places[frame])["results"]

    def add(self, results: list) -> None:
        """Record the next frame. Raises `UserError` when the disk is full."""
        self._places.append(self._lines.append({"results": results}))

    def close(self, remove: bool) -> None:
        """End it."""
        self._lines.close()
        if remove:
            self._lines.path.unlink(missing_ok=True)


def video_asked(source: Path | int, threshold: float, asked: dict | None) -> dict:
    """What a prediction of a video (a file, or a camera's index) has to share with the one that it continues."""
    video = [source] if isinstance(source, int) else stamp_of(source)
    return {**(asked or {}), "video": video, "threshold": threshold}


def digest_of_video(asked: dict, frames: int | None) -> str:
    """What `NAME.json` keeps of the request. A run may go on with other `frames`; a finished one is of other frames then."""
    return digest_of({**asked, "frames": frames})


def video_is_finished(out: Path, name: str, asked: dict, frames: int | None) -> bool:
    """Whether an earlier run made `NAME.mp4` and `NAME.json` of the same request.

    Raises:
        UserError: where it was asked something else, or does not say what.
    """
    written = out / f"{name}.json"
    if not (written.is_file() and (out / f"{name}.mp4").is_file()) or (out / f"{name}.partial.jsonl").exists():
        return False
    known = None
    with suppress(OSError, ValueError, AttributeError), open(written, "rb") as stream:
        head = stream.read(4096).partition(b', "results": [')[0]
        known = parse_json(head + b"}").get("asked")
    if known is None:
        raise unknown_request(written)
    if known != digest_of_video(asked, frames):
        raise other_request("inputs, weights, settings, threshold or --frames", written)
    return True
