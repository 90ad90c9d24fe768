"""What the page shows of a prediction; needs no page."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from jrdp import visualize
from jrdp.engine.predict import coco_results
from jrdp.engine.predictor import Prediction
from jrdp.files import write_json

COLUMNS = ["instance", "score", "box (x1, y1, x2, y2)", "pixels of the mask"]


class Answer(NamedTuple):
    """overlay: RGB uint8 of the photograph's size; rows: one of `COLUMNS` for each instance; files: to download."""

    overlay: np.ndarray
    rows: list[list]
    files: list[str]


def answer(prediction: Prediction, threshold: float, folder: Path) -> Answer:
    """The instances scored above `threshold`, and their files in `folder`, which exists.

    overlay.png and index_mask.png show what is above the threshold; predictions.json has every detection, as
    `jrdp predict` writes it.
    """
    shown = prediction.above(threshold)
    overlay = visualize.overlay(shown.photo, shown.masks, shown.boxes, shown.scores)
    files = [folder / name for name in ("overlay.png", "index_mask.png", "predictions.json")]
    visualize.save_image(overlay, files[0])
    visualize.save_index_mask(shown.masks, files[1])
    write_json(files[2], coco_results(prediction, 1, "photograph"))
    rows = [
        [k, round(float(score), 3), ", ".join(f"{edge:.0f}" for edge in box), int(mask.sum())]
        for k, (score, box, mask) in enumerate(zip(shown.scores, shown.boxes, shown.masks), 1)
    ]
    return Answer(overlay, rows, [str(file) for file in files])
