"""`jrdp predict` on a video file or a camera: an overlaid video and the instances of every frame."""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path
from typing import Iterator

import cv2
import numpy as np
from tqdm import tqdm

from jrdp import visualize
from jrdp.engine.predict import coco_results
from jrdp.engine.predictor import SalientInstanceModel
from jrdp.errors import UserError
from jrdp.files import refuse_inputs, refuse_special, temporary_prefix, write_json

CAMERA_FPS = 25.0  # of the written video, for a camera that does not tell its own


def predict_video(
    model: SalientInstanceModel,
    source: Path | int,
    out: Path,
    name: str,
    threshold: float,
    frames: int | None = None,
) -> int:
    """Predict every frame of a video (`source` a file) or a camera (`source` its index) and write to the folder `out`.

    `NAME.mp4` shows the instances above `threshold`; `NAME.json` holds `fps`, `size` and every detection of every frame
    as COCO results whose `image_id` is the frame's number from 0. A camera runs until `frames`, or until interrupted.

    Returns:
        the number of frames.

    Raises:
        UserError: if the source cannot be opened or has no frame, or the video cannot be written.
    """
    if not isinstance(source, int):
        refuse_special(source)
    capture = cv2.VideoCapture(source if isinstance(source, int) else str(source))
    what = f"camera {source}" if isinstance(source, int) else f"video {source}"
    target = out / f"{name}.mp4"
    for path in (target, out / f"{name}.json"):
        refuse_inputs(path)
    work = Path(tempfile.mkdtemp(prefix=temporary_prefix(name), dir=out))  # OpenCV would follow a link that waits there
    try:
        return _predict_video(model, capture, source, what, work / "video.mp4", target, name, threshold, frames)
    finally:
        capture.release()
        shutil.rmtree(work, ignore_errors=True)


def _predict_video(model, capture, source, what: str, unfinished: Path, target: Path, name: str, threshold, frames) -> int:
    """`predict_video` with the source opened; `unfinished` is where the video grows, `target` where it ends."""
    out = target.parent
    capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 0)  # turned here, so that no build of OpenCV does it twice or not at all
    turn = int(capture.get(cv2.CAP_PROP_ORIENTATION_META)) % 360 if model.upright else 0
    if turn:
        print(f"{what}: turned by {turn} degrees, as it says; results are in upright pixels (--set input.exif=ignore)")
    writer, results, count, size = None, [], 0, (0, 0)
    fps = capture.get(cv2.CAP_PROP_FPS) or CAMERA_FPS
    total = frames if isinstance(source, int) else _known_length(capture, frames)
    started = time.monotonic()
    try:
        for picture in tqdm(_read(capture, frames, turn), total=total, unit="frame", desc=what, disable=None):
            if writer is None:
                size = picture.shape[:2]
                writer = cv2.VideoWriter(str(unfinished), cv2.VideoWriter_fourcc(*"mp4v"), fps, (size[1], size[0]))
                if not writer.isOpened():
                    raise UserError(f"cannot write {target}: OpenCV has no encoder for it here")
            prediction = model.predict(np.ascontiguousarray(picture))
            results += coco_results(prediction, count, f"{name}#{count}")
            shown = prediction.above(threshold)
            drawn = visualize.overlay(prediction.photo, shown.masks, shown.boxes, shown.scores)
            writer.write(np.ascontiguousarray(drawn[:, :, ::-1]))
            count += 1
    except KeyboardInterrupt:
        if not isinstance(source, int):
            raise
    finally:
        capture.release()
        if writer is not None:
            writer.release()
    if count == 0:
        raise UserError(f"cannot read any frame of {what}: not a video, damaged, or in use by another program")
    written = _count_frames(unfinished)
    if written != count:  # OpenCV does not say so when the disk is full
        raise UserError(f"cannot write {target}: only {written} of its {count} frames could be stored (is the disk full?)")
    write_json(out / f"{name}.json", {"fps": fps, "size": list(size), "frames": count, "results": results})
    unfinished.replace(target)
    speed = count / (time.monotonic() - started)
    print(f"{what}: {count} frames at {speed:.1f} frames/s, {len(results)} detections: {target}")
    return count


def _read(capture: cv2.VideoCapture, frames: int | None, turn: int = 0) -> Iterator[np.ndarray]:
    """RGB uint8 `[height, width, 3]` frames, at most `frames`, turned clockwise by `turn` degrees (quarters)."""
    count = 0
    while frames is None or count < frames:
        more, picture = capture.read()
        if not more:
            return
        yield np.rot90(picture, -(turn // 90))[:, :, ::-1]
        count += 1


def _count_frames(path: Path) -> int:
    """How many frames of a video can be read; 0 for a file that is cut before its index."""
    capture = cv2.VideoCapture(str(path))
    count = 0
    while capture.grab():
        count += 1
    capture.release()
    return count


def _known_length(capture: cv2.VideoCapture, frames: int | None) -> int | None:
    length = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    if length <= 0:
        return frames
    return length if frames is None else min(length, frames)
