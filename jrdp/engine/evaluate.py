"""`jrdp test`: detections of a dataset as COCO results, and their metrics.

Imports no Jittor by itself: with several jobs (`jrdp.engine.jobs`) this runs in a process that holds no network.
"""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Callable, Iterable, Iterator, NamedTuple, Sequence

from tqdm import tqdm

from jrdp.config import Config
from jrdp.data.coco import CocoDataset
from jrdp.data.loader import prefetch
from jrdp.data.transforms import PreparedImage, batch_images
from jrdp.files import make_folder, protect, refuse_others, write_json
from jrdp.engine.frame_record import FrameRecord
from jrdp.engine.inference import detect_batch
from jrdp.evaluation.coco_metrics import evaluate_with_curves, format_metrics
from jrdp.evaluation.curves import write_pr_curves
from jrdp.evaluation.results import box_results, mask_results

TestSets = Sequence[tuple[str, CocoDataset]]
PARTIAL = "test.partial.jsonl"
Batch = list[int]  # indices of pictures that share one run of the network


class Found(NamedTuple):
    """COCO results of some pictures, in their order."""

    boxes: list[dict]
    masks: list[dict]


# From the position of a test set and its batches to what was found in each batch, in order.
Find = Callable[[int, list[Batch]], Iterator[Found]]


class Asked(NamedTuple):
    """What a test has to share with the one that it continues, and whether it does (`resume`)."""

    values: dict
    resume: bool = False


def evaluate_datasets(network, config: Config, test_sets: TestSets, out: Path, asked: Asked | None = None) -> dict:
    """Test `network` on `[(name, CocoDataset)]`; a single set goes to `out`, several to `out/NAME`.

    asked: where it is given, `test.partial.jsonl` gets what is found in each batch at once, for a run that continues.

    Returns:
        per set name the contents of its `metrics.json`.
    """

    def find(number: int, batches: list[Batch]) -> Iterator[Found]:
        dataset = test_sets[number][1]
        size = config.test.batch_size
        photos = prefetch(dataset.image, (index for batch in batches for index in batch), depth=size + 1)
        for batch in batches:
            images = [photo.result() for _, photo in islice(photos, len(batch))]
            yield find_in_batch(network, config, dataset, images)

    return evaluate_found(find, config, test_sets, out, asked)


def evaluate_found(find: Find, config: Config, test_sets: TestSets, out: Path, asked: Asked | None = None) -> dict:
    """As `evaluate_datasets`, with the detections that `find` gives."""
    metrics = {}
    folders = folder_names([name for name, _ in test_sets])
    for number, (name, dataset) in enumerate(test_sets):
        protect(dataset.json_path)
        folder = out if len(test_sets) == 1 else out / folders[number]
        make_folder(folder)
        batches = batches_of(dataset, config)
        found = Found([], [])
        with _record(folder, name, dataset, asked) as record:
            kept = [Found(*record.results(batch)) for batch in range(record.done)] if record is not None else []
            new = find(number, batches[len(kept) :])
            bar = tqdm(new, total=len(batches), initial=len(kept), desc=f"testing on {name}", unit="batch", disable=None)
            for boxes, masks in chain(kept, _recorded(bar, record)):
                found.boxes.extend(boxes)
                found.masks.extend(masks)
        metrics[name] = _write_evaluation(name, dataset, found, folder)
    for number in range(len(test_sets) if asked is not None else 0):
        (out if len(test_sets) == 1 else out / folders[number]).joinpath(PARTIAL).unlink(missing_ok=True)
    return metrics


@contextmanager
def _record(folder: Path, name: str, dataset: CocoDataset, asked: Asked | None) -> Iterator[FrameRecord | None]:
    """The record of one test set, which stays until all sets are done."""
    if asked is None:
        yield None
        return
    status = os.stat(dataset.json_path)
    values = {**asked.values, "dataset": [str(dataset.images_dir), str(dataset.json_path), status.st_size, status.st_mtime_ns]}
    record = FrameRecord(folder / PARTIAL, values, asked.resume)
    try:
        yield record
    except BaseException:
        record.close(remove=record.done == 0)
        if record.done:
            text = f"{record.done} batches of {name} are kept in {folder}: the same command with --resume does the rest"
            print(f"jrdp: {text}", file=sys.stderr)
        raise
    record.close(remove=False)


def _recorded(new: Iterable[Found], record: FrameRecord | None) -> Iterator[Found]:
    for found in new:
        if record is not None:
            record.add(list(found))
        yield found


def records_of(datasets: list[str], out: Path) -> list[Path]:
    """Where a test of these sets keeps what it has found until it ends."""
    return [(out if len(datasets) == 1 else out / folder) / PARTIAL for folder in folder_names(datasets)]


def refuse_others_results(folder: Path) -> None:
    """Raise `UserError` where a test into `folder` would replace what no earlier test has written."""
    refuse_others(folder, "metrics.json", [b'"bbox"', b'"segm"', b'"AP50"'], "bbox.json", "segm.json", "pr_curves.png")


def batches_of(dataset: CocoDataset, config: Config) -> list[Batch]:
    """Pictures in the order of their ids, `test.batch_size` at a time."""
    order, size = dataset.sorted_indices(), config.test.batch_size
    return [order[start : start + size] for start in range(0, len(order), size)]


def find_in_batch(network, config: Config, dataset: CocoDataset, images: list[PreparedImage]) -> Found:
    """Every detection in pictures of `dataset`, whatever its score, as the released test script writes them."""
    from jrdp.ops import paste_mask_rle  # imports Jittor, which is there where the network is

    found = Found([], [])
    batch = batch_images(images)
    for image_id, instances in zip(batch.image_ids, detect_batch(network, batch)):
        height, width = instances.size
        masks = paste_mask_rle(
            instances.mask_probabilities, instances.boxes, height, width, threshold=config.test.mask_threshold
        )
        found.boxes.extend(box_results(image_id, instances.boxes, instances.scores, dataset.category_id))
        found.masks.extend(mask_results(image_id, masks, instances.scores, dataset.category_id))
    return found


def _write_evaluation(name: str, dataset: CocoDataset, found: Found, out: Path) -> dict:
    """Write `bbox.json`, `segm.json`, `metrics.json` and `pr_curves.png` of one dataset to `out`; print the table."""
    results = {"bbox": found.boxes, "segm": found.masks}
    for kind, entries in results.items():
        write_json(out / f"{kind}.json", entries)
    evaluations = {kind: evaluate_with_curves(dataset.json_path, entries, kind, ours=True) for kind, entries in results.items()}
    metrics = {kind: evaluation.metrics for kind, evaluation in evaluations.items()}
    write_json(out / "metrics.json", metrics)
    write_pr_curves(out / "pr_curves.png", {kind: evaluation.curves for kind, evaluation in evaluations.items()})
    print(f"{name}: {len(dataset)} pictures")
    print(format_metrics(metrics))
    print(f"results: {out}")
    return metrics


def folder_names(datasets: list[str]) -> list[str]:
    """A folder for each test set, `ecssd/imgs:ecssd/val.json` -> `ecssd_val`; numbered where two would be the same."""
    taken: set[str] = set()
    names = []
    for dataset in datasets:
        name = base = dataset.rpartition(":")[2].replace(".json", "").strip("/.").replace("/", "_")[-100:] or "test"
        number = 2
        while name.casefold() in taken:
            name, number = f"{base}_{number}", number + 1
        taken.add(name.casefold())
        names.append(name)
    return names
