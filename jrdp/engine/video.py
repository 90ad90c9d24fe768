"""`jrdp predict` on a video file or a camera: an overlaid video and the instances of every frame."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Callable, Iterator

import cv2
import numpy as np
from PIL import Image
from tqdm import tqdm

from jrdp import visualize
from jrdp.data.rle import decode_mask
from jrdp.engine.frame_record import FrameRecord, digest_of_video, video_asked
from jrdp.engine.predict import coco_results
from jrdp.engine.predictor import Prediction, SalientInstanceModel
from jrdp.errors import UserError
from jrdp.files import atomic_write, lock_folder, refuse_inputs, refuse_special, remove_leftover_folders, temporary_prefix, unlock

CAMERA_FPS = 25.0  # of the written video, for a camera that does not tell its own
_VIDEO = "video.mp4"  # what grows in the folder of unfinished work


def predict_video(
    model: SalientInstanceModel,
    source: Path | int,
    out: Path,
    name: str,
    threshold: float,
    frames: int | None = None,
    asked: dict | None = None,
    resume: bool = False,
    complain: Callable[[str], None] = lambda text: print(f"jrdp: {text}", file=sys.stderr),
) -> int:
    """Predict every frame of a video (`source` a file) or a camera (`source` its index) and write to the folder `out`.

    `NAME.mp4` shows the instances above `threshold`; `NAME.json` holds `fps`, `size` and every detection of every frame
    as COCO results whose `image_id` is the frame's number from 0; its `asked` stands for the request. A camera runs until `frames`, or until interrupted.
    What is found is in `NAME.partial.jsonl` at once: with `resume`, frames that an ended run `asked` the same has left
    there are drawn again, but not predicted again. `complain` is told of a video that ends before its time.

    Returns:
        the number of frames.

    Raises:
        UserError: if the source cannot be opened or has no frame, or the video cannot be written.
    """
    if not isinstance(source, int):
        refuse_special(source)
    for path in (out / f"{name}.mp4", out / f"{name}.json"):
        refuse_inputs(path)
    with _work_folder(out, name) as work, _opened(source, model.upright) as video:
        first = next(video.pictures(1), None)
        if first is None:
            raise UserError(f"cannot read any frame of {video.what}: not a video, damaged, or in use by another program")
        asked = video_asked(source, threshold, asked)
        with _record(out, name, asked, resume and not isinstance(source, int), video) as record:
            digest = digest_of_video(asked, frames)
            return _predict(model, video, first, work / _VIDEO, out, name, threshold, frames, record, digest, complain)


def _predict(
    model, video: _Video, first, unfinished: Path, out: Path, name: str, threshold, frames, record, digest: str, complain
) -> int:
    """`predict_video` with the source opened; `unfinished` is where the video grows, `digest` stands for the request."""
    target, count, kept = out / f"{name}.mp4", 0, record.done
    size = first.shape[:2]
    writer = cv2.VideoWriter(str(unfinished), cv2.VideoWriter_fourcc(*"mp4v"), video.fps, (size[1], size[0]))
    started = time.monotonic()
    try:
        if not writer.isOpened():
            raise UserError(f"cannot write {target}: OpenCV has no encoder for it here")
        total = min(filter(None, (video.length, frames)), default=None)
        pictures = video.pictures(frames, first)
        for picture in tqdm(pictures, total=total, unit="frame", desc=video.what, disable=None):
            if count >= record.done:
                prediction = _predict_frame(model, picture, f"{video.what}, frame {count}")
                record.add(coco_results(prediction, count, f"{name}#{count}"))
                shown = prediction.above(threshold)
                drawn = visualize.overlay(prediction.photo, shown.masks, shown.boxes, shown.scores)
            else:
                drawn = _drawn_again(np.ascontiguousarray(picture), record.results(count), threshold)
            writer.write(np.ascontiguousarray(drawn[:, :, ::-1]))
            count += 1
    except KeyboardInterrupt:
        if not video.is_camera:
            raise
    finally:
        writer.release()
    written = _count_frames(unfinished)
    if written != count:  # OpenCV does not say so when the disk is full
        raise UserError(f"cannot write {target}: only {written} of its {count} frames could be stored (is the disk full?)")
    head = {"fps": video.fps, "size": list(size), "frames": count, "asked": digest}
    detections = _write_results(out / f"{name}.json", head, record, count)
    unfinished.replace(target)
    speed = (count - min(kept, count)) / (time.monotonic() - started)
    print(f"{video.what}: {count} frames at {speed:.1f} frames/s, {detections} detections: {target}")
    if video.length and (frames is None or frames > count) and count < video.length - max(2, video.length // 100):
        complain(f"{video.what} ends after {count} of the {video.length} frames that it announces: damaged or cut off")
    return count


def _predict_frame(model: SalientInstanceModel, picture: np.ndarray, name: str) -> Prediction:
    photo = Image.fromarray(np.ascontiguousarray(picture))
    photo.filename = name  # for an error
    return model.predict(photo)


def _drawn_again(photo: np.ndarray, results: list[dict], threshold: float) -> np.ndarray:
    """The overlay of a frame from its COCO results."""
    shown = [entry for entry in results if entry["score"] > threshold]
    masks = np.array([decode_mask(entry["segmentation"]) for entry in shown]).reshape(-1, *photo.shape[:2])
    boxes = np.array([entry["bbox"] for entry in shown], np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2] - 1
    return visualize.overlay(photo, masks, boxes, np.array([entry["score"] for entry in shown], np.float32))


def _write_results(path: Path, head: dict, record: FrameRecord, count: int) -> int:
    """Write `NAME.json` without holding all of it in memory; returns how many detections it holds."""
    detections = 0
    with atomic_write(path) as stream:
        stream.write(json.dumps(head).encode()[:-1] + b', "results": [')
        for frame in range(count):
            for entry in record.results(frame):
                stream.write((b", " if detections else b"") + json.dumps(entry, allow_nan=False).encode())
                detections += 1
        stream.write(b"]}\n")
    return detections


class _Video:
    """An opened source. length: the frames that it announces, None where it does not or is a camera."""

    def __init__(self, capture: cv2.VideoCapture, what: str, is_camera: bool, upright: bool):
        self._capture, self.what, self.is_camera = capture, what, is_camera
        # Turned here, so that no build of OpenCV does it twice or not at all.
        capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 0)
        self._turn = int(capture.get(cv2.CAP_PROP_ORIENTATION_META)) % 360 if upright else 0
        if self._turn:
            print(
                f"{what}: turned by {self._turn} degrees, as it says; results are in upright pixels (--set input.exif=ignore)"
            )
        self.fps = _sound(capture.get(cv2.CAP_PROP_FPS)) or CAMERA_FPS
        self.length = None if is_camera else int(_sound(capture.get(cv2.CAP_PROP_FRAME_COUNT))) or None

    def pictures(self, most: int | None, first: np.ndarray | None = None) -> Iterator[np.ndarray]:
        """The next RGB uint8 `[height, width, 3]` frames, at most `most`, turned; `first`, already read, before them."""
        count = 0
        if first is not None:
            yield first
            count = 1
        while most is None or count < most:
            more, picture = self._capture.read()
            if not more:
                return
            yield np.rot90(picture, -(self._turn // 90))[:, :, ::-1]
            count += 1


def _sound(value: float) -> float:
    """A property of a source, or 0 where it is nonsense: damaged headers give negative and infinite ones."""
    return value if 0 < value < 1e9 else 0.0


@contextmanager
def _opened(source: Path | int, upright: bool) -> Iterator[_Video]:
    is_camera = isinstance(source, int)
    capture = cv2.VideoCapture(source if is_camera else str(source))
    try:
        yield _Video(capture, f"camera {source}" if is_camera else f"video {source}", is_camera, upright)
    finally:
        capture.release()


@contextmanager
def _record(out: Path, name: str, asked: dict, resume: bool, video: _Video) -> Iterator[FrameRecord]:
    """The record of a run; removed when it ends well, or holds nothing."""
    record = FrameRecord(out / f"{name}.partial.jsonl", asked, resume)
    try:
        yield record
    except BaseException:
        record.close(remove=record.done == 0 or video.is_camera)
        if record.done and not video.is_camera:
            text = f"{record.done} frames of {video.what} are kept in {out}: the same command with --resume does the rest"
            print(f"jrdp: {text}", file=sys.stderr)
        raise
    record.close(remove=True)


@contextmanager
def _work_folder(out: Path, name: str) -> Iterator[Path]:
    """A folder of our own in `out` for unfinished work, since OpenCV would follow a link that waits for it in `out`.

    What killed runs have left of such folders is removed first.
    """
    remove_leftover_folders(out, name, _VIDEO)
    work = Path(tempfile.mkdtemp(prefix=temporary_prefix(name), dir=out))
    handle = lock_folder(work)
    try:
        yield work
    finally:
        unlock(handle)
        os.close(handle)
        shutil.rmtree(work, ignore_errors=True)


def _count_frames(path: Path) -> int:
    """How many frames of a video can be read; 0 for a file that is cut before its index."""
    capture = cv2.VideoCapture(str(path))
    count = 0
    while capture.grab():
        count += 1
    capture.release()
    return count
