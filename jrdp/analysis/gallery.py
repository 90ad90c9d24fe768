"""The best, median and worst pictures, and those that separate two systems, with every detection's verdict drawn."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from jrdp import visualize
from jrdp.data.exif import turn_hint, turns_unseen
from jrdp.data.naming import find_picture
from jrdp.data.rle import decode_mask
from jrdp.data.transforms import read_image
from jrdp.errors import UserError
from jrdp.analysis.errors import BACKGROUND, DUPLICATE, HIT, IGNORED, LOCALISATION
from jrdp.evaluation.ground_truth import GroundTruth
from jrdp.analysis.runs import RunAnalysis

# What a detection's colour says; the report's legend shows the same.
VERDICT_COLORS = {
    HIT: (57, 217, 128),
    LOCALISATION: (255, 205, 41),
    DUPLICATE: (46, 150, 255),
    BACKGROUND: (255, 77, 77),
    IGNORED: (190, 190, 200),
}
VERDICT_IOU = 0.5
# Pictures are drawn at about the size they are shown at, so that scores stay readable: the more side by side, the
# smaller.
_PANEL_HEIGHT, _SMALL_PANEL_HEIGHT = 320, 220
_GREY = 205


@dataclass(frozen=True)
class Panel:
    """title: what it shows. note: a short line under it. jpeg: the picture.

    turns_unseen: it is a photograph whose EXIF orientation was not followed, and would not change its size.
    """

    title: str
    note: str
    jpeg: bytes
    turns_unseen: bool = False


@dataclass(frozen=True)
class _Canvas:
    """A photograph at the size it is drawn at; scale: that size over the photograph's own."""

    photo: np.ndarray
    scale: float


@dataclass(frozen=True)
class Part:
    """title: which pictures these are. rows: per picture (file name, its panels)."""

    title: str
    rows: list[tuple[str, list[Panel]]]


def make_gallery(
    truth: GroundTruth, analyses: list[RunAnalysis], images_dir: str | Path | None, count: int, upright: bool = False
) -> list[Part]:
    """Best, median and worst pictures by the first run's AP; with several runs, those where they differ most too.

    Pictures of equal AP are ordered by how well their instances are covered (mean of the best IoU), then by id.
    Without `images_dir`, instances are drawn on grey. With `upright`, photographs are turned as their EXIF orientation says, for
    annotations that were drawn on them like that.
    Raises `UserError` where a photograph is missing, unreadable or of another size than the ground truth says.
    """
    first = analyses[0]
    with_instances = [i for i, picture in enumerate(first.pictures) if len(picture.instances)]
    ranked = sorted(with_instances, key=lambda i: (-first.picture_ap[i], -_coverage(first, i)))
    middle = max(0, (len(ranked) - count) // 2)
    chosen = [
        ("Best", ranked[:count]),
        ("Median", ranked[middle : middle + count]),
        ("Worst", ranked[::-1][:count]),
    ]
    if len(analyses) > 1:
        ap = np.stack([run.picture_ap for run in analyses])
        spread = ap.max(axis=0) - ap.min(axis=0)
        chosen.append(("Where the systems differ most", sorted(with_instances, key=lambda i: -spread[i])[:count]))
    return [Part(title, [_row(truth, analyses, i, images_dir, upright) for i in indices]) for title, indices in chosen]


def count_unseen_turns(gallery: list[Part]) -> int:
    """How many of the photographs shown have an EXIF orientation that was not followed and that their size does not tell of."""
    rows = [row for part in gallery for row in part.rows]
    return len({name for name, panels in rows if any(panel.turns_unseen for panel in panels)})


def _coverage(run: RunAnalysis, index: int) -> float:
    ious = run.pictures[index].ious
    return float(ious.max(axis=0).mean()) if len(ious) else 0.0


def _row(
    truth: GroundTruth, analyses: list[RunAnalysis], index: int, images_dir: str | Path | None, upright: bool
) -> tuple[str, list[Panel]]:
    picture = analyses[0].pictures[index]
    image = truth.images[picture.image_id]
    photograph = _photograph(image, images_dir, upright)
    photo = np.asarray(photograph)
    height = min(_PANEL_HEIGHT if len(analyses) < 2 else _SMALL_PANEL_HEIGHT, len(photo))
    canvas = _Canvas(visualize.resized(photo, height), height / len(photo))
    instances = [truth.annotations[i] for i in picture.instances]
    noun = "instance" if len(instances) == 1 else "instances"
    panels = []
    if images_dir is not None:
        unseen = turns_unseen(photograph)
        note = "its EXIF orientation is ignored" if unseen else ""
        panels.append(Panel("Photograph", note, visualize.encode_jpeg(canvas.photo), unseen))
    drawn = _draw(canvas, instances, truth.iou_type, visualize.colors(len(instances)))
    panels.append(Panel("Ground truth", f"{len(instances)} {noun}", visualize.encode_jpeg(drawn)))
    for run in analyses:
        panels.append(_run_panel(canvas, truth, run, index))
    return image["file_name"], panels


def _run_panel(canvas: _Canvas, truth: GroundTruth, run: RunAnalysis, index: int) -> Panel:
    picture = run.pictures[index]
    shown = np.flatnonzero(picture.scores >= run.shown_above)
    detections = [run.detections[i] for i in picture.detections[shown]]
    kinds = run.errors[VERDICT_IOU].pictures[index].kinds[shown]
    palette = np.array([VERDICT_COLORS[int(kind)] for kind in kinds], dtype=np.uint8).reshape(-1, 3)
    drawn = _draw(canvas, detections, truth.iou_type, palette, picture.scores[shown])
    hidden = len(picture.detections) - len(shown)
    note = f"AP {100 * run.picture_ap[index]:.1f}"
    if hidden:
        note += f" ({hidden} below {run.shown_above:.2f})"
    return Panel(run.name, note, visualize.encode_jpeg(drawn))


def _draw(
    canvas: _Canvas, entries: list[dict], iou_type: str, palette: np.ndarray, scores: np.ndarray | None = None
) -> np.ndarray:
    height, width = canvas.photo.shape[:2]
    if iou_type == "segm":
        masks = np.zeros((len(entries), height, width), dtype=bool)
        for mask, entry in zip(masks, entries):
            full = decode_mask(entry["segmentation"]).astype(np.float32)
            mask[:] = cv2.resize(full, (width, height), interpolation=cv2.INTER_AREA) > 0.5
        return visualize.overlay(canvas.photo, masks, scores=scores, palette=palette)
    boxes = np.array([entry["bbox"] for entry in entries], dtype=np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2] - 1
    boxes *= canvas.scale
    no_masks = np.zeros((len(boxes), height, width), dtype=bool)
    return visualize.overlay(canvas.photo, no_masks, boxes, scores, palette=palette)


def _photograph(image: dict, images_dir: str | Path | None, upright: bool) -> Image.Image:
    """RGB, decoded as the network's input is: an EXIF rotation is followed only where the annotations have it, too."""
    size = image["width"], image["height"]
    if images_dir is None:
        return Image.new("RGB", size, (_GREY, _GREY, _GREY))
    path = find_picture(images_dir, image["file_name"])
    photograph = read_image(path, upright=upright)
    if photograph.size != size:
        raise UserError(
            f"photograph {path} is {photograph.width} x {photograph.height}, but the ground truth says {size[0]} x {size[1]}"
            + turn_hint(photograph, size, "--exif apply")
        )
    return photograph
