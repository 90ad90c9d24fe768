"""Reading COCO annotation files that anybody may have written: every field that is used is checked first."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import numpy as np

from jrdp.data.rle import parse_rle
from jrdp.errors import UserError
from jrdp.files import parse_json


@dataclass(frozen=True)
class ImageEntry:
    id: int
    file_name: str
    width: int
    height: int


@dataclass(frozen=True)
class Instance:
    """One annotation as it stands in the file.

    xywh: (x, y, width, height) in photograph pixels, COCO's convention.
    polygons: the parts with at least six numbers, each float32 `[2 * P]`; None for an RLE annotation.
    runs: the checked runs of an RLE annotation, int64 `[R]`; None for polygons.
    """

    id: int
    image_id: int
    xywh: tuple[float, float, float, float]
    polygons: Optional[list[np.ndarray]]
    runs: Optional[np.ndarray]
    crowd: bool


class MalformedEntry(ValueError):
    """An entry of `images` or `annotations` that cannot be used; one line that begins with which one it is."""


def load_json(path: str | os.PathLike) -> dict:
    """The contents of a COCO json: a mapping with the lists `images`, `annotations` and `categories`.

    Raises:
        UserError: when the file is missing, unreadable, not JSON or not of that form.
    """
    try:
        data = parse_json(Path(path).read_bytes())
    except OSError as error:
        raise UserError(f"cannot read the annotations {path}: {error.strerror}") from error
    except ValueError as error:  # not JSON, nested too deeply, or not UTF-8
        raise UserError(f"{path} is not valid JSON: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise UserError(f"{path} is not a COCO json: it must be a mapping with images, annotations and categories")
    for key in ("images", "annotations", "categories"):
        if key not in data:
            raise UserError(f"{path} is not a COCO json: it has no {key!r}")
        if not isinstance(data[key], list):
            raise UserError(f"{path} is not a COCO json: its {key!r} is not a list")
    if not data["categories"]:
        raise UserError(f"{path} is not a COCO json: its list of categories is empty")
    for number, category in enumerate(data["categories"]):
        if not isinstance(category, dict) or type(category.get("id")) is not int:
            raise UserError(f"{path} is not a COCO json: entry {number} of categories has no integer id")
    return data


@dataclass(frozen=True)
class Annotations:
    """A checked COCO json: images by id, in the order of the file, and instances including crowds."""

    images: dict[int, ImageEntry]
    instances: list[Instance]
    category_ids: list[int]


def read_annotations(path: str | os.PathLike) -> Annotations:
    """The whole file, checked.

    Raises:
        UserError: with one line that names the file and the first entry that cannot be used.
    """
    data = load_json(path)
    images: dict[int, ImageEntry] = {}
    try:
        for position, entry in enumerate(data["images"]):
            image = parse_image(entry, position)
            if image.id in images:
                raise MalformedEntry(f"image {image.id} occurs twice")
            images[image.id] = image
        instances = [parse_annotation(entry, i, images) for i, entry in enumerate(data["annotations"])]
    except MalformedEntry as error:
        raise UserError(f"{path}: {error}; `jrdp data check` lists every such entry") from error
    return Annotations(images, instances, [category["id"] for category in data["categories"]])


def parse_image(entry, position: int) -> ImageEntry:
    """An entry of `images`; `position` names it where it has no id. Raises `MalformedEntry`."""
    name = f"image number {position}"
    if not isinstance(entry, dict) or type(entry.get("id")) is not int:
        raise MalformedEntry(f"{name} has no integer id")
    name = f"image {entry['id']}"
    if not isinstance(entry.get("file_name"), str) or not entry["file_name"]:
        raise MalformedEntry(f"{name} has no file_name")
    size = [entry.get("width"), entry.get("height")]
    if not _numbers(size) or any(side != int(side) or side < 1 for side in size):
        raise MalformedEntry(f"{name} ({entry['file_name']}) has no positive integer width and height")
    return ImageEntry(entry["id"], entry["file_name"], int(size[0]), int(size[1]))


def parse_annotation(entry, position: int, images: dict[int, ImageEntry]) -> Instance:
    """An entry of `annotations`; the shape of a crowd is not looked at, as it is not used. Raises `MalformedEntry`."""
    name = f"annotation number {position}"
    if not isinstance(entry, dict):
        raise MalformedEntry(f"{name} is not a mapping")
    if type(entry.get("id")) is int:
        name = f"annotation {entry['id']}"
    else:
        raise MalformedEntry(f"{name} has no integer id")
    image = images.get(entry["image_id"]) if type(entry.get("image_id")) is int else None
    if image is None:
        raise MalformedEntry(f"{name} belongs to the image {entry.get('image_id')!r}, which is not in the file")
    box = entry.get("bbox")
    if not _numbers(box) or len(box) != 4:
        raise MalformedEntry(f"{name} has no bbox [x, y, width, height]")
    xywh = (float(box[0]), float(box[1]), float(box[2]), float(box[3]))
    if entry.get("iscrowd", 0) not in (0, 1):
        raise MalformedEntry(f"{name} has an iscrowd that is neither 0 nor 1")
    if entry.get("iscrowd", 0):
        return Instance(entry["id"], image.id, xywh, None, None, crowd=True)
    segmentation = entry.get("segmentation")
    if segmentation is None:
        raise MalformedEntry(f"{name} has no segmentation")
    if isinstance(segmentation, dict):
        try:
            runs = parse_rle(segmentation, image.height, image.width)
        except ValueError as error:
            raise MalformedEntry(f"{name}: {error}") from error
        return Instance(entry["id"], image.id, xywh, None, runs, crowd=False)
    if not isinstance(segmentation, list):
        raise MalformedEntry(f"{name} has a segmentation that is neither a list of polygons nor RLE")
    polygons = []
    for part in segmentation:
        if not _numbers(part) or len(part) % 2:
            raise MalformedEntry(f"{name} has a malformed polygon: a list of numbers x, y, x, y, ... is needed")
        if len(part) >= 6:
            polygons.append(np.array(part, dtype=np.float32))
    return Instance(entry["id"], image.id, xywh, polygons, None, crowd=False)


def _numbers(values) -> bool:
    """Whether this is a list of finite numbers that a float32 can hold."""
    return isinstance(values, list) and all(
        type(value) in (int, float) and abs(value) < 1e30 for value in values  # false for NaN too
    )
