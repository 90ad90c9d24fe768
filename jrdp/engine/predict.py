"""`jrdp predict`: pictures to COCO results, overlays and index masks."""

from __future__ import annotations

import sys
from pathlib import Path

from tqdm import tqdm

from jrdp import visualize
from jrdp.data.loader import prefetch
from jrdp.data.transforms import read_image
from jrdp.engine.pictures import output_names
from jrdp.engine.predictor import Prediction, SalientInstanceModel
from jrdp.errors import UserError
from jrdp.evaluation.results import box_results, mask_results
from jrdp.files import write_json


def predict_files(model: SalientInstanceModel, pictures: list[Path], out: Path, threshold: float) -> list[str]:
    """Predict `pictures` and write to the folder `out`, which exists.

    `predictions.json` holds every detection as COCO results with `file_name`; `NAME.png` (overlay) and
    `NAME_instances.png` (index mask) show those above `threshold`. A picture that cannot be read is reported on
    standard error and skipped.

    Returns:
        the messages of the pictures that failed.
    """
    results, failed = [], []
    jobs = prefetch(read_image, pictures)
    names = output_names(pictures)
    bar = tqdm(zip(jobs, names), total=len(pictures), unit="picture", disable=None)
    for image_id, ((picture, photo), name) in enumerate(bar, start=1):
        try:
            prediction = model.predict(photo.result())
        except UserError as error:
            failed.append(str(error))
            tqdm.write(f"jrdp: skipped: {error}", file=sys.stderr)
            continue
        results += coco_results(prediction, image_id, picture.name)
        shown = prediction.above(threshold)
        drawn = visualize.overlay(shown.photo, shown.masks, shown.boxes, shown.scores)
        visualize.save_image(drawn, out / f"{name}.png")
        visualize.save_index_mask(shown.masks, out / f"{name}_instances.png")
    write_json(out / "predictions.json", results)
    print(f"{len(pictures) - len(failed)} of {len(pictures)} pictures, {len(results)} detections: {out}")
    return failed


def coco_results(prediction: Prediction, image_id: int, file_name: str) -> list[dict]:
    """All detections of one picture as COCO results with box, mask and file name."""
    boxes = box_results(image_id, prediction.boxes, prediction.scores, 1)
    masks = mask_results(image_id, prediction.mask_rle(), prediction.scores, 1)
    return [{**box, **mask, "file_name": file_name} for box, mask in zip(boxes, masks)]
