"""The ground truth of an evaluation: a COCO annotation file, read class-agnostically."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Union

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from jrdp.errors import UserError
from jrdp.files import read_json
from jrdp.evaluation.rle import checked_rle

IouType = Literal["bbox", "segm"]


@dataclass(frozen=True)
class GroundTruth:
    """Pictures and their salient instances, every category taken as one.

    images: image id -> {"id", "file_name", "width", "height"} (what the file gives of these), sorted by id.
    annotations: COCO annotations with category id 1 and ids 1, 2, ... (pycocotools takes the id 0 for "unmatched");
        for "segm" each `segmentation` is a compressed RLE with bytes counts.
    iou_type: what it was checked for.
    """

    images: dict
    annotations: list[dict]
    iou_type: IouType

    def coco(self) -> COCO:
        """A pycocotools index of copies, which an evaluation may write to."""
        return coco_index(list(self.images.values()), [dict(annotation) for annotation in self.annotations])


GroundTruthSource = Union[str, Path, dict, COCO, GroundTruth]


def load_ground_truth(source: GroundTruthSource, iou_type: IouType) -> GroundTruth:
    """Read and check a COCO annotation file, its parsed content or a `pycocotools.coco.COCO`.

    Raises `UserError` for an unreadable file, an annotation of an unknown picture, and an annotation without what
    `iou_type` needs: a `bbox` (x, y, width, height), or a `segmentation` and its picture's height and width.
    """
    if iou_type not in ("bbox", "segm"):
        raise UserError(f"iou_type must be bbox or segm, not {iou_type!r}")
    if isinstance(source, GroundTruth):
        if source.iou_type != iou_type:
            raise UserError(f"the ground truth was read for {source.iou_type}; read it again for {iou_type}")
        return source
    if isinstance(source, COCO):
        content, where = source.dataset, "ground truth"
    elif isinstance(source, dict):
        content, where = source, "ground truth"
    else:
        content, where = read_json(source, "ground truth"), f"ground truth {source}"
    if not isinstance(content, dict) or not all(isinstance(content.get(k), list) for k in ("images", "annotations")):
        raise UserError(f"{where} is not a COCO annotation file: it needs the lists images and annotations")
    images = _read_images(content["images"], where)
    annotations = [
        _read_annotation(position, annotation, images, iou_type, where)
        for position, annotation in enumerate(content["annotations"])
    ]
    return GroundTruth(images, annotations, iou_type)


def coco_index(images: list[dict], annotations: list[dict]) -> COCO:
    """A `pycocotools.coco.COCO` over the one class 1, made without its printing."""
    coco = COCO()
    coco.dataset = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "salient"}]}
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def is_box(value: object) -> bool:
    """Whether `value` is four finite numbers."""
    if not isinstance(value, (list, tuple)) or len(value) != 4:
        return False
    return all(isinstance(number, (int, float)) and np.isfinite(number) for number in value)


def _read_images(entries: list, where: str) -> dict:
    images = {}
    for position, entry in enumerate(entries):
        if not isinstance(entry, dict) or not isinstance(entry.get("id"), (int, str)):
            raise UserError(f"{where}: images[{position}] has no id")
        if entry["id"] in images:
            raise UserError(f"{where}: two images have the id {entry['id']!r}")
        images[entry["id"]] = {key: entry[key] for key in ("id", "file_name", "width", "height") if key in entry}
    try:
        return {image_id: images[image_id] for image_id in sorted(images)}
    except TypeError:
        raise UserError(f"{where}: image ids must be all numbers or all strings") from None


def _read_annotation(position: int, entry: object, images: dict, iou_type: IouType, where: str) -> dict:
    place = f"{where}: annotations[{position}]"
    if not isinstance(entry, dict) or not isinstance(entry.get("image_id"), (int, str)):
        raise UserError(f"{place} has no image_id")
    image = images.get(entry["image_id"])
    if image is None:
        raise UserError(f"{place} is of the unknown image id {entry['image_id']!r}")
    annotation = {
        "id": position + 1,
        "image_id": entry["image_id"],
        "category_id": 1,
        "iscrowd": int(bool(entry.get("iscrowd", 0))),
    }
    if iou_type == "bbox":
        if not is_box(entry.get("bbox")):
            raise UserError(f"{place} has no bbox of four finite numbers")
        annotation["bbox"] = [float(number) for number in entry["bbox"]]
        area = annotation["bbox"][2] * annotation["bbox"][3]
    else:
        if "segmentation" not in entry:
            raise UserError(f"{place} has no segmentation")
        height, width = image_size(image, where)
        try:
            annotation["segmentation"] = checked_rle(entry["segmentation"], height, width)
        except ValueError as error:
            raise UserError(f"{place}: bad segmentation: {error}") from error
        area = float(coco_mask.area(annotation["segmentation"]))
    given = entry.get("area", area)
    if not isinstance(given, (int, float)) or not np.isfinite(given):
        raise UserError(f"{place}: the area is not a finite number")
    annotation["area"] = float(given)
    return annotation


def image_size(image: dict, where: str) -> tuple[int, int]:
    """(height, width) of a COCO image entry; raises `UserError` where it has none."""
    height, width = image.get("height"), image.get("width")
    if not isinstance(height, int) or not isinstance(width, int) or height <= 0 or width <= 0:
        raise UserError(f"{where}: image {image['id']!r} needs a positive width and height for mask evaluation")
    return height, width
