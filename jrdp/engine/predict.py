"""`jrdp predict`: pictures and folders to COCO results, overlays and index masks."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Callable

from tqdm import tqdm

from jrdp import visualize
from jrdp.engine.files import make_folder, write_json
from jrdp.engine.predictor import Prediction, SalientInstanceModel
from jrdp.errors import UserError
from jrdp.evaluation.results import box_results, mask_results

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}


def predict_files(
    load_model: Callable[[], SalientInstanceModel], paths: list[Path], out: Path, threshold: float
) -> list[str]:
    """Predict every picture in `paths` (folders: the pictures directly in them, sorted) and write to `out`.

    `predictions.json` holds every detection as COCO results with `file_name`; the pictures show those above
    `threshold`. A picture that cannot be read is reported and skipped.

    Returns:
        the messages of the pictures that failed.

    Raises:
        UserError: for a path that does not exist, a folder without pictures, or an output folder that cannot be
            written; before anything else is done.
    """
    pictures = list_pictures(paths)
    make_folder(out)
    model = load_model()
    results, failed = [], []
    for image_id, (picture, name) in enumerate(tqdm(_with_names(pictures), unit="picture", disable=None), start=1):
        try:
            prediction = model.predict(picture)
        except UserError as error:
            failed.append(str(error))
            tqdm.write(f"jrdp: skipped: {error}", file=sys.stderr)
            continue
        results += coco_results(prediction, image_id, picture.name)
        shown = prediction.above(threshold)
        visualize.save_image(prediction.overlay(threshold), out / f"{name}.png")
        visualize.save_index_mask(shown.masks, out / f"{name}_instances.png")
    write_json(out / "predictions.json", results)
    print(f"{len(pictures) - len(failed)} of {len(pictures)} pictures, {len(results)} detections: {out}")
    return failed


def coco_results(prediction: Prediction, image_id: int, file_name: str) -> list[dict]:
    """All detections of one picture as COCO results with box, mask and file name."""
    boxes = box_results(image_id, prediction.boxes, prediction.scores, 1)
    masks = mask_results(image_id, prediction.mask_rle(), prediction.scores, 1)
    return [{**box, **mask, "file_name": file_name} for box, mask in zip(boxes, masks)]


def list_pictures(paths: list[Path]) -> list[Path]:
    """The pictures that `paths` name; a file is taken whatever its suffix, a folder gives its pictures."""
    pictures: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())
            if not inside:
                raise UserError(f"no pictures ({', '.join(sorted(SUFFIXES))}) in the folder {path}")
            pictures += inside
        elif path.exists():
            pictures.append(path)
        else:
            raise UserError(f"no such picture or folder: {path}")
    return pictures


def _with_names(pictures: list[Path]) -> list[tuple[Path, str]]:
    """Output names: the stem where it is unique, else the file name with its suffix, else numbered."""
    stems = Counter(picture.stem for picture in pictures)
    taken: set[str] = set()
    named = []
    for picture in pictures:
        name = picture.stem if stems[picture.stem] == 1 else picture.name
        base, number = name, 2
        while name in taken or f"{name}_instances" in taken:
            name, number = f"{base}_{number}", number + 1
        taken.update((name, f"{name}_instances"))
        named.append((picture, name))
    return named
