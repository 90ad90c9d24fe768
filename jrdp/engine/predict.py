"""`jrdp predict`: pictures to COCO results, overlays and index masks.

Imports no Jittor: with several jobs (`jrdp.engine.jobs`) this runs in a process that holds no network.
"""

from __future__ import annotations

import sys
from collections import deque
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Callable, Iterable, Iterator, List, NamedTuple, Optional, Tuple

import numpy as np
from tqdm import tqdm

from jrdp import visualize
from jrdp.data.loader import prefetch
from jrdp.data.workers import WorkerDied, WorkerPool
from jrdp.engine.pictures import output_names, told_names
from jrdp.engine.record import Record, Task
from jrdp.errors import UserError, one_line
from jrdp.evaluation.results import box_results, mask_results
from jrdp.files import protected_there
from jrdp.masks import PastedMasks

if TYPE_CHECKING:
    from jrdp.engine.predictor import Prediction, Ready, SalientInstanceModel


FINISHED_LATER = 3  # pictures that wait for their files while the network is at later ones
_GIVE_UP = 5  # pictures in a row whose files cannot be written: then no other can be, either
_FEW = 8  # pictures; for fewer a process that draws is not worth its start
_ADVICE = "if memory ran out, give it smaller pictures"


class Outcome(NamedTuple):
    """The COCO results of a picture, or why it was skipped."""

    results: list[dict]
    problem: Optional[str] = None
    unwritten: bool = False  # the picture is good, its files could not be written: another run may do it
    turned: bool = False  # its EXIF orientation was followed
    first_of: bool = False  # the file holds more frames or pages, which are left out


class Seen(NamedTuple):
    """A photograph and all that was detected in it, highest score first, in its pixels; boxes, scores as in `Prediction`."""

    photo: np.ndarray
    masks: PastedMasks
    boxes: np.ndarray
    scores: np.ndarray


# What comes of a picture: its outcome, and a function that waits for its files and gives its results, or raises why the files
# could not be written.
Pending = Tuple[Outcome, Callable[[], List[dict]]]
Finish = Callable[[Seen, Path, float, Task], Callable[[], List[dict]]]


def predict_files(
    model: SalientInstanceModel,
    pictures: list[Path],
    out: Path,
    threshold: float,
    record: Record | None = None,
    finish: Finish | None = None,
) -> list[str]:
    """Predict `pictures`, `test.batch_size` at a time, and write to the folder `out`, which exists.

    `predictions.json` holds every detection as COCO results with `file_name`; `NAME.png` (overlay) and
    `NAME_instances.png` (index mask) show those above `threshold`; `predictions.asked.json` tells a later `--resume` what was
    asked for. A picture that cannot be read, or whose files
    cannot be written, is reported on standard error and skipped. Pictures are read and resized ahead, and another process makes
    their files and run lengths while the network is at the next ones: that of `finish`, which `finishing_process` gives, so
    that it can start while the model is loaded; by default a new one.

    Returns:
        the messages of the pictures that failed.
    """
    if record is None:  # an empty one is false
        record = Record(out, {}, resume=False)
    tasks = record.remaining(tasks_of(pictures))
    with finishing_process(len(tasks)) if finish is None else nullcontext(finish) as finish:
        return collect(zip(tasks, _outcomes(model, tasks, out, threshold, finish)), len(pictures), out, record)


def tasks_of(pictures: list[Path]) -> list[Task]:
    return list(map(Task, count(1), pictures, output_names(pictures), told_names(pictures)))


def batches_of(tasks: list[Task], size: int) -> list[list[Task]]:
    """`tasks` in order, `size` at a time: those that share a run of the network."""
    return [tasks[start : start + size] for start in range(0, len(tasks), size)]


def _outcomes(
    model: SalientInstanceModel, tasks: list[Task], out: Path, threshold: float, finish: Finish
) -> Iterator[Outcome]:
    size = model.config.test.batch_size
    photos = prefetch(model.ready, [task.picture for task in tasks], depth=size + 1)
    waiting: deque[Pending] = deque()
    for batch in batches_of(tasks, size):
        reads = [photo.result for _, photo in islice(photos, len(batch))]
        waiting.extend(predict_batch(model, reads, batch, out, threshold, finish))
        while len(waiting) > FINISHED_LATER:
            yield _finished(*waiting.popleft())
    while waiting:
        yield _finished(*waiting.popleft())


def predict_now(
    model: SalientInstanceModel, reads: list[Callable[[], Ready]], tasks: list[Task], out: Path, threshold: float
) -> list[Outcome]:
    """Predict the pictures of one run of the network and write their files to `out` before returning."""
    return [_finished(*pending) for pending in predict_batch(model, reads, tasks, out, threshold, _finish_here)]


def predict_batch(
    model: SalientInstanceModel,
    reads: list[Callable[[], Ready]],
    tasks: list[Task],
    out: Path,
    threshold: float,
    finish: Finish,
) -> list[Pending]:
    """Predict pictures in one run of the network and have `finish` do the rest; a `UserError` is the outcome."""
    ready: dict[int, Ready] = {}
    pending: dict[int, Pending] = {}
    for position, read in enumerate(reads):
        try:
            ready[position] = read()
        except UserError as error:
            pending[position] = Outcome([], str(error)), list
    predictions = zip(ready.items(), model.predict_ready(list(ready.values()))) if ready else ()
    for (position, picture), prediction in predictions:
        seen = Seen(prediction.photo, prediction.pasted(), prediction.boxes, prediction.scores)
        told = picture.photo.info
        outcome = Outcome([], turned=bool(told.get("turned")), first_of=bool(told.get("first_of")))
        pending[position] = outcome, finish(seen, out, threshold, tasks[position])
    return [pending[position] for position in range(len(tasks))]


def finish_picture(seen: Seen, out: Path, threshold: float, task: Task) -> list[dict]:
    """Write the overlay `NAME.png` and the index mask `NAME_instances.png` of what is scored above `threshold`.

    Returns:
        all detections as COCO results with `file_name`.

    Raises:
        UserError: where a file cannot be written.
    """
    shown = np.flatnonzero(seen.scores > threshold)
    masks = seen.masks.arrays(shown)
    picture = visualize.overlay(seen.photo, masks, seen.boxes[shown], seen.scores[shown])
    visualize.save_image(picture, out / f"{task.name}.png")
    visualize.save_index_mask(masks, out / f"{task.name}_instances.png")
    return _results(seen.boxes, seen.masks.run_lengths(), seen.scores, task.image_id, task.file_name)


def _finished(outcome: Outcome, results: Callable[[], list[dict]]) -> Outcome:
    try:
        return outcome._replace(results=results())
    except UserError as error:
        return Outcome([], str(error), unwritten=True)


def _finish_here(seen: Seen, out: Path, threshold: float, task: Task) -> Callable[[], list[dict]]:
    return partial(finish_picture, seen, out, threshold, task)


@contextmanager
def finishing_process(pictures: int) -> Iterator[Finish]:
    """What draws, writes files and makes run lengths: for more than a few pictures a process, since Jittor holds Python's
    lock while it computes."""
    if pictures <= _FEW:
        yield _finish_here
        return
    with WorkerPool(finish_picture, 1, "process that draws", _ADVICE, {"OMP_NUM_THREADS": "1"}, protected_there()) as pool:
        try:
            pool.start()
            yield lambda *picture: pool.submit(*picture).result
        except WorkerDied as error:
            raise UserError(str(error)) from error


def collect(outcomes: Iterable[tuple[Task, Outcome]], total: int, out: Path, record: Record) -> list[str]:
    """Put the outcomes into `record` as they come, reporting those skipped, and `predictions.json` together at the end.

    Returns:
        the messages of the pictures that failed.

    Raises:
        UserError: where nothing can be written any more, as on a full disk; what is done is kept.
    """
    failed, unwritten, turned, first_of = [], False, 0, 0
    in_a_row = 0
    with record:
        bar = tqdm(outcomes, total=total, initial=len(record), unit="picture", disable=None)
        for task, (results, problem, again, upright, more) in bar:
            turned += upright
            first_of += more
            if problem is not None:
                failed.append(problem)
                unwritten = unwritten or again
                tqdm.write(f"jrdp: skipped: {one_line(problem)}", file=sys.stderr)
                in_a_row += again
                if in_a_row == _GIVE_UP:
                    raise UserError(f"the files of {in_a_row} pictures in a row could not be written: {problem}")
            else:
                in_a_row = 0
                record.add(task, results)
    detections = record.finish(keep=unwritten)
    print(f"{total - len(failed)} of {total} pictures, {detections} detections: {out}")
    if turned:
        print(f"{turned} turned upright, as their EXIF says; results are in upright pixels (--set input.exif=ignore)")
    if first_of:
        print(f"{first_of} with several frames or pages (GIF, WebP, PNG, TIFF): only the first is predicted")
    return failed


def coco_results(prediction: Prediction, image_id: int, file_name: str) -> list[dict]:
    """All detections of one picture as COCO results with box, mask and file name."""
    return _results(prediction.boxes, prediction.mask_rle(), prediction.scores, image_id, file_name)


def _results(boxes: np.ndarray, rles: list[dict], scores: np.ndarray, image_id: int, file_name: str) -> list[dict]:
    both = zip(box_results(image_id, boxes, scores, 1), mask_results(image_id, rles, scores, 1))
    return [{**box, **mask, "file_name": file_name} for box, mask in both]
