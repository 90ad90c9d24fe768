"""The ground truth of an evaluation: a COCO annotation file, read class-agnostically."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Union

from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from jrdp.data.annotations import ImageEntry, Instance, parse_annotations, read_annotations, refuse_other_boxes
from jrdp.data.shapes import rle_of
from jrdp.errors import UserError

IouType = Literal["bbox", "segm"]


@dataclass(frozen=True)
class GroundTruth:
    """Pictures and their salient instances, every category taken as one.

    images: image id -> {"id", "file_name", "width", "height"}, sorted by id.
    annotations: COCO annotations with category id 1 and ids 1, 2, ... (pycocotools takes the id 0 for "unmatched");
        for "segm" each `segmentation` is a compressed RLE with bytes counts.
    iou_type: what it was checked for.
    without_mask: for "segm", how many instances have no pixel inside their picture: nothing can find them.
    """

    images: dict
    annotations: list[dict]
    iou_type: IouType
    without_mask: int = 0

    def coco(self) -> COCO:
        """A pycocotools index of copies, which an evaluation may write to."""
        return coco_index(list(self.images.values()), [dict(annotation) for annotation in self.annotations])


GroundTruthSource = Union[str, Path, dict, COCO, GroundTruth]


def load_ground_truth(source: GroundTruthSource, iou_type: IouType) -> GroundTruth:
    """Read and check a COCO annotation file, its parsed content or a `pycocotools.coco.COCO`.

    The rules are those of `jrdp.data.annotations`, for every command. For "segm", crowds without a shape are left
    out. Raises `UserError` for what cannot be used, and for "segm" where there are instances and none has a mask.
    """
    if iou_type not in ("bbox", "segm"):
        raise UserError(f"iou_type must be bbox or segm, not {iou_type!r}")
    if isinstance(source, GroundTruth):
        if source.iou_type != iou_type:
            raise UserError(f"the ground truth was read for {source.iou_type}; read it again for {iou_type}")
        return source
    content = source.dataset if isinstance(source, COCO) else source
    if isinstance(content, dict):
        # Classes make no difference here, so content that was made in Python may leave them out; a file may not.
        read, where = parse_annotations({"categories": [{"id": 1}], **content}, "ground truth"), "ground truth"
    else:
        read, where = read_annotations(content), str(content)
    refuse_other_boxes(read, where)
    images = {
        image_id: {"id": image_id, "file_name": image.file_name, "width": image.width, "height": image.height}
        for image_id, image in sorted(read.images.items())
    }
    annotations, without_mask = [], 0
    for instance in read.instances:
        annotation = _annotation(len(annotations) + 1, instance, read.images[instance.image_id], iou_type)
        if iou_type == "segm" and coco_mask.area(annotation["segmentation"]) == 0:
            if instance.crowd:
                continue
            without_mask += 1
        annotations.append(annotation)
    count = sum(not annotation["iscrowd"] for annotation in annotations)
    if without_mask and without_mask == count:
        raise UserError(
            f"{where}: none of its {count} instances has a mask (their segmentations are empty or lie outside the "
            "pictures), so masks cannot be evaluated; boxes can (--iou-type bbox)"
        )
    return GroundTruth(images, annotations, iou_type, without_mask)


def coco_index(images: list[dict], annotations: list[dict]) -> COCO:
    """A `pycocotools.coco.COCO` over the one class 1, made without its printing."""
    coco = COCO()
    coco.dataset = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "salient"}]}
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def _annotation(number: int, instance: Instance, image: ImageEntry, iou_type: IouType) -> dict:
    annotation = {
        "id": number,
        "image_id": instance.image_id,
        "category_id": 1,
        "iscrowd": int(instance.crowd),
    }
    if iou_type == "bbox":
        annotation["bbox"] = list(instance.xywh)
        area = instance.xywh[2] * instance.xywh[3]
    else:
        annotation["segmentation"] = rle_of(instance.polygons, instance.runs, image.height, image.width)
        area = float(coco_mask.area(annotation["segmentation"]))
    annotation["area"] = area if instance.area is None else instance.area
    return annotation
