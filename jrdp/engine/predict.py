"""`jrdp predict`: pictures to COCO results, overlays and index masks.

Imports no Jittor: with several jobs (`jrdp.engine.jobs`) this runs in a process that holds no network.
"""

from __future__ import annotations

import sys
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Callable, Iterable, NamedTuple, Optional

from PIL import Image
from tqdm import tqdm

from jrdp import visualize
from jrdp.data.loader import prefetch
from jrdp.data.transforms import read_image
from jrdp.engine.pictures import output_names
from jrdp.engine.record import Record, Task
from jrdp.errors import UserError
from jrdp.evaluation.results import box_results, mask_results

if TYPE_CHECKING:
    from jrdp.engine.predictor import Prediction, SalientInstanceModel


class Outcome(NamedTuple):
    """The COCO results of a picture, or why it was skipped."""

    results: list[dict]
    problem: Optional[str] = None
    unwritten: bool = False  # the picture is good, its files could not be written: another run may do it
    turned: bool = False  # its EXIF orientation was followed


def predict_files(
    model: SalientInstanceModel, pictures: list[Path], out: Path, threshold: float, record: Record | None = None
) -> list[str]:
    """Predict `pictures` and write to the folder `out`, which exists.

    `predictions.json` holds every detection as COCO results with `file_name`; `NAME.png` (overlay) and
    `NAME_instances.png` (index mask) show those above `threshold`. A picture that cannot be read, or whose files
    cannot be written, is reported on standard error and skipped.

    Returns:
        the messages of the pictures that failed.
    """
    record = record or Record(out, {}, resume=False)
    tasks = record.remaining(tasks_of(pictures))
    photos = prefetch(partial(read_image, upright=model.upright), [task.picture for task in tasks])
    outcomes = (predict_picture(model, photo.result, task, out, threshold) for task, (_, photo) in zip(tasks, photos))
    return collect(zip(tasks, outcomes), len(pictures), out, record)


def tasks_of(pictures: list[Path]) -> list[Task]:
    return list(map(Task, count(1), pictures, output_names(pictures)))


def predict_picture(
    model: SalientInstanceModel, read: Callable[[], Image.Image], task: Task, out: Path, threshold: float
) -> Outcome:
    """Predict one picture and write its overlay and its index mask to `out`; a `UserError` on the way is the outcome."""
    try:
        photo = read()
        prediction = model.predict(photo)
    except UserError as error:
        return Outcome([], str(error))
    try:
        shown = prediction.above(threshold)
        drawn = visualize.overlay(shown.photo, shown.masks, shown.boxes, shown.scores)
        visualize.save_image(drawn, out / f"{task.name}.png")
        visualize.save_index_mask(shown.masks, out / f"{task.name}_instances.png")
    except UserError as error:
        return Outcome([], str(error), unwritten=True)
    return Outcome(coco_results(prediction, task.image_id, task.picture.name), turned=bool(photo.info.get("turned")))


def collect(outcomes: Iterable[tuple[Task, Outcome]], total: int, out: Path, record: Record) -> list[str]:
    """Put the outcomes into `record` as they come, reporting those skipped, and `predictions.json` together at the end.

    Returns:
        the messages of the pictures that failed.
    """
    failed, unwritten, turned = [], False, 0
    with record:
        bar = tqdm(outcomes, total=total, initial=len(record), unit="picture", disable=None)
        for task, (results, problem, again, upright) in bar:
            turned += upright
            if problem is not None:
                failed.append(problem)
                unwritten = unwritten or again
                tqdm.write(f"jrdp: skipped: {problem}", file=sys.stderr)
            else:
                record.add(task, results)
    detections = record.finish(keep=unwritten)
    print(f"{total - len(failed)} of {total} pictures, {detections} detections: {out}")
    if turned:
        print(f"{turned} turned upright, as their EXIF says; results are in upright pixels (--set input.exif=ignore)")
    return failed


def coco_results(prediction: Prediction, image_id: int, file_name: str) -> list[dict]:
    """All detections of one picture as COCO results with box, mask and file name."""
    boxes = box_results(image_id, prediction.boxes, prediction.scores, 1)
    masks = mask_results(image_id, prediction.mask_rle(), prediction.scores, 1)
    return [{**box, **mask, "file_name": file_name} for box, mask in zip(boxes, masks)]
