"""`jrdp predict`: pictures to COCO results, overlays and index masks.

Imports no Jittor: with several jobs (`jrdp.engine.jobs`) this runs in a process that holds no network.
"""

from __future__ import annotations

import json
import sys
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Callable, Iterable, Iterator, NamedTuple, Optional

from PIL import Image
from tqdm import tqdm

from jrdp import visualize
from jrdp.data.loader import prefetch
from jrdp.data.transforms import read_image
from jrdp.engine.pictures import output_names
from jrdp.errors import UserError
from jrdp.evaluation.results import box_results, mask_results
from jrdp.files import atomic_write

if TYPE_CHECKING:
    from jrdp.engine.predictor import Prediction, SalientInstanceModel


class Task(NamedTuple):
    """A picture, its COCO image id, and what its output files are called."""

    image_id: int
    picture: Path
    name: str


class Outcome(NamedTuple):
    """The COCO results of a picture, or why it was skipped."""

    results: list[dict]
    problem: Optional[str] = None


def predict_files(model: SalientInstanceModel, pictures: list[Path], out: Path, threshold: float) -> list[str]:
    """Predict `pictures` and write to the folder `out`, which exists.

    `predictions.json` holds every detection as COCO results with `file_name`; `NAME.png` (overlay) and
    `NAME_instances.png` (index mask) show those above `threshold`. A picture that cannot be read is reported on
    standard error and skipped.

    Returns:
        the messages of the pictures that failed.
    """
    photos = prefetch(read_image, pictures)
    outcomes = (
        predict_picture(model, photo.result, task, out, threshold)
        for task, (_, photo) in zip(tasks_of(pictures), photos)
    )
    return collect(outcomes, len(pictures), out)


def tasks_of(pictures: list[Path]) -> Iterator[Task]:
    return map(Task, count(1), pictures, output_names(pictures))


def predict_picture(
    model: SalientInstanceModel, read: Callable[[], Image.Image], task: Task, out: Path, threshold: float
) -> Outcome:
    """Predict one picture and write its overlay and its index mask to `out`; nothing when `read` raises `UserError`."""
    try:
        prediction = model.predict(read())
    except UserError as error:
        return Outcome([], str(error))
    shown = prediction.above(threshold)
    drawn = visualize.overlay(shown.photo, shown.masks, shown.boxes, shown.scores)
    visualize.save_image(drawn, out / f"{task.name}.png")
    visualize.save_index_mask(shown.masks, out / f"{task.name}_instances.png")
    return Outcome(coco_results(prediction, task.image_id, task.picture.name))


def collect(outcomes: Iterable[Outcome], total: int, out: Path) -> list[str]:
    """Write `predictions.json` from the outcomes of `total` pictures as they come, reporting those skipped.

    Returns:
        the messages of the pictures that failed.
    """
    failed, detections = [], 0
    with atomic_write(out / "predictions.json") as stream:  # as they come: memory would not hold a large folder's
        stream.write(b"[")
        for results, problem in tqdm(outcomes, total=total, unit="picture", disable=None):
            if problem is not None:
                failed.append(problem)
                tqdm.write(f"jrdp: skipped: {problem}", file=sys.stderr)
            for entry in results:
                separator = ", " if detections else ""
                stream.write(f"{separator}{json.dumps(entry, allow_nan=False)}".encode())
                detections += 1
        stream.write(b"]\n")
    print(f"{total - len(failed)} of {total} pictures, {detections} detections: {out}")
    return failed


def coco_results(prediction: Prediction, image_id: int, file_name: str) -> list[dict]:
    """All detections of one picture as COCO results with box, mask and file name."""
    boxes = box_results(image_id, prediction.boxes, prediction.scores, 1)
    masks = mask_results(image_id, prediction.mask_rle(), prediction.scores, 1)
    return [{**box, **mask, "file_name": file_name} for box, mask in zip(boxes, masks)]
