"""What has been found so far in the frames of a video, or the batches of a test set, so that hours of it survive a kill.

`NAME.partial.jsonl` gets a line a frame (or batch): first what the run was asked for, then the COCO results of 0, 1, ...
"""

from __future__ import annotations

from pathlib import Path

from jrdp.engine.growing_file import GrowingFile


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
