"""Reading COCO annotations that anybody may have written: one set of rules for checking, training, testing, analysing
and comparing.

What is harmless is read: ids as numbers or strings (1.0 is 1), sides written as 240.0, `area` or `iscrowd` that are
null or missing, boxes that are missing where there is a shape, crowds without a shape. Everything else that cannot be
used is named with its value before anything is computed.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Any, Callable, Optional, Sequence

import numpy as np

from jrdp.boxes import overlap
from jrdp.data.shapes import area_of, bounds_of, far_number, finite_numbers, parse_segmentation
from jrdp.errors import UserError
from jrdp.files import read_json

ImageId = int | str
MOST_PIXELS = 1 << 28  # of one picture; masks take a byte for each
_FEW_BOXES = 8  # as many odd ones may be mistakes of somebody's; more than half of a set are another convention
_MOST_AREA = 1e10  # pycocotools leaves out larger instances without a word


@dataclass(frozen=True)
class ImageEntry:
    id: ImageId
    file_name: str
    width: int
    height: int


@dataclass(frozen=True)
class Instance:
    """One annotation as it stands in the file.

    xywh: (x, y, width, height) in photograph pixels, COCO's convention; of the shape where the file has no bbox.
    polygons: the parts with at least six numbers, each float64 `[2 * P]`; None for an RLE annotation.
    runs: the checked runs of an RLE annotation, int64 `[R]`; None for polygons.
    area: as the file gives it, in square pixels; None where it does not.
    """

    id: ImageId
    image_id: ImageId
    xywh: tuple[float, float, float, float]
    polygons: Optional[list[np.ndarray]]
    runs: Optional[np.ndarray]
    crowd: bool = False
    area: Optional[float] = None


class MalformedEntry(ValueError):
    """An entry of `images` or `annotations` that cannot be used: `entry` says which, `cause` what is wrong with it.

    `kind` is the same for all entries with the same fault, whatever the values.
    """

    def __init__(self, entry: str, cause: str, kind: str = ""):
        super().__init__(f"{entry} {cause}")
        self.entry, self.cause, self.kind = entry, cause, kind or cause


def crowd_hint(crowds: int, instances: int) -> str:
    """What may be meant where crowds, which neither training nor testing counts, are among the instances; in brackets."""
    return f" (iscrowd is 1 for {crowds} of {instances}: some programs set it for every RLE)" if crowds else ""


def load_json(path: str | os.PathLike) -> dict:
    """The contents of a COCO json: a mapping with the lists `images`, `annotations` and `categories`.

    Raises:
        UserError: when the file is missing, unreadable, not JSON or not of that form.
    """
    data = read_json(path, "annotations")
    check_form(data, str(path))
    return data


def check_form(data: Any, where: str) -> None:
    """Raises `UserError` unless `data` is a mapping with the lists of a COCO json."""
    other = _other_format(data)
    if other:
        raise UserError(f"{where} is not a COCO json: it looks like {other}")
    if not isinstance(data, dict):
        raise UserError(f"{where} is not a COCO json: it must be a mapping with images, annotations and categories")
    for key in ("images", "annotations", "categories"):
        if key not in data:
            raise UserError(f"{where} is not a COCO json: it has no {key!r}{_ONE_CATEGORY if key == 'categories' else ''}")
        if not isinstance(data[key], list):
            raise UserError(f"{where} is not a COCO json: its {key!r} is not a list")
    if not data["categories"]:
        raise UserError(f"{where} is not a COCO json: its list of categories is empty{_ONE_CATEGORY}")
    for number, category in enumerate(data["categories"]):
        if not isinstance(category, dict) or read_id(category.get("id")) is None:
            raise UserError(f"{where} is not a COCO json: entry {number} of categories has no id (an integer or a string)")


_ONE_CATEGORY = '; one is enough, whatever the objects are: [{"id": 1, "name": "object"}]'


def _other_format(data: Any) -> Optional[str]:
    """What people take for annotations in COCO's form, and what to do about it."""
    entry = data[0] if isinstance(data, list) and data and isinstance(data[0], dict) else {}
    if "image_id" in entry and "score" in entry:
        return "a list of results (detections), which `jrdp analyze --compare` takes"
    if "data" in entry and ("annotations" in entry or "completions" in entry):
        return "an export of Label Studio in its own form: export it as COCO"
    if not isinstance(data, dict):
        return None
    if "shapes" in data and "imagePath" in data:
        return "labelme's file of one picture: convert the folder of them to COCO (labelme2coco)"
    if "_via_img_metadata" in data or "_via_settings" in data:
        return "a project of the VGG Image Annotator: export its annotations as COCO"
    if data.get("type") == "FeatureCollection":
        return "GeoJSON"
    listed = data.get("annotations")
    if isinstance(listed, list) and listed and isinstance(listed[0], dict) and "segments_info" in listed[0]:
        return "COCO's panoptic form, whose masks are in pictures"
    return None


@dataclass(frozen=True)
class Annotations:
    """A checked COCO json: images by id, in the order of the file, and instances including crowds."""

    images: dict[ImageId, ImageEntry]
    instances: list[Instance]
    category_ids: list[ImageId]


def read_annotations(path: str | os.PathLike) -> Annotations:
    """The whole file, checked.

    Raises:
        UserError: with one line that names the file and the first entry that cannot be used.
    """
    return parse_annotations(load_json(path), str(path))


def parse_annotations(data: Any, where: str) -> Annotations:
    """The content of a COCO json, checked; `where` names it in the `UserError`."""
    check_form(data, where)

    def refuse(error: MalformedEntry) -> None:
        raise UserError(f"{where}: {error}; `jrdp data check` lists every such entry") from error

    return scan(data, refuse)


def scan(
    data: dict,
    complain: Callable[[MalformedEntry], None],
    look: Callable[[dict, Instance], None] = lambda entry, instance: None,
) -> Annotations:
    """What can be used of a COCO json of the right form; `complain` is told of everything else, once each.

    look: is shown each annotation that can be used, as it stands in the file and as it was read.
    """
    images: dict[ImageId, ImageEntry] = {}
    broken: set[ImageId] = set()  # their annotations are not at fault
    for position, entry in enumerate(data["images"]):
        try:
            image = parse_image(entry, position)
            if image.id in images:
                names = f"({images[image.id].file_name}, {image.file_name})"
                raise MalformedEntry(f"image {image.id}", f"occurs twice {names}", "occurs twice")
            images[image.id] = image
        except MalformedEntry as error:
            complain(error)
            broken.update(_forms(read_id(entry.get("id"))) if isinstance(entry, dict) else ())
    kinds = {type(image_id): image_id for image_id in images}
    if len(kinds) > 1:
        complain(MalformedEntry("images", f"have ids that are numbers ({kinds[int]}) and strings ({kinds[str]!r})"))
    instances = []
    for position, entry in enumerate(data["annotations"]):
        if isinstance(entry, dict) and read_id(entry.get("image_id")) in broken:
            if find_image(images, entry.get("image_id")) is None:
                continue
        try:
            instance = parse_annotation(entry, position, images)
        except MalformedEntry as error:
            complain(error)
            continue
        look(entry, instance)
        instances.append(instance)
    return Annotations(images, instances, [read_id(category["id"]) for category in data["categories"]])


def read_id(value: Any) -> Optional[ImageId]:
    """An id from a file: an integer of 63 bits, a float equal to one, or a string that is not empty; else None."""
    if isinstance(value, bool):
        return None
    if isinstance(value, (int, float)) and abs(value) < 1 << 63 and value == int(value):  # false for NaN
        return int(value)
    return value if isinstance(value, str) and value else None


def _forms(image_id: Optional[ImageId]) -> tuple[ImageId, ...]:
    """An id, and the same id as files mix them: 7 and "7"."""
    if isinstance(image_id, int):
        return image_id, str(image_id)
    if isinstance(image_id, str):
        if len(image_id) < 19 and image_id.isascii() and image_id.isdigit() and str(int(image_id)) == image_id:
            return image_id, int(image_id)
        return (image_id,)
    return ()


def find_image(images: dict, value: Any) -> Any:
    """What `images` holds under an id from a file, which may be written as a string there; None if nothing."""
    return next((images[form] for form in _forms(read_id(value)) if form in images), None)


def parse_image(entry: Any, position: int) -> ImageEntry:
    """An entry of `images`; `position` names it where it has no id. Raises `MalformedEntry`."""
    name = f"image number {position}"
    if not isinstance(entry, dict):
        raise MalformedEntry(name, "is not a mapping")
    image_id = read_id(entry.get("id"))
    if image_id is None:
        kind = "has no id (an integer or a string)"
        raise MalformedEntry(name, kind + _value(entry, "id"), kind)
    name = f"image {image_id}"
    if not isinstance(entry.get("file_name"), str) or not entry["file_name"]:
        raise MalformedEntry(name, "has no file_name" + _value(entry, "file_name"), "has no file_name")
    if "\0" in entry["file_name"]:
        raise MalformedEntry(name, f"has a file_name with a NUL: {entry['file_name']!r}", "has a file_name with a NUL")
    size = [entry.get("width"), entry.get("height")]
    if not finite_numbers(size) or any(side != int(side) or side < 1 for side in size):
        kind = "has no positive integer width and height"
        cause = f"({entry['file_name']}) {kind}{_value(entry, 'width')}{_value(entry, 'height')}"
        raise MalformedEntry(name, cause, kind)
    width, height = int(size[0]), int(size[1])
    if width * height > MOST_PIXELS:
        cause = f"({entry['file_name']}) is {size[0]:g}x{size[1]:g}: more than {MOST_PIXELS} pixels"
        raise MalformedEntry(name, cause, "is too large")
    return ImageEntry(image_id, entry["file_name"], width, height)


def _value(entry: dict, key: str) -> str:
    """What the file has there, for a message."""
    return f": {key} is {_short(entry[key])}" if key in entry else ""


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def parse_annotation(entry: Any, position: int, images: dict[ImageId, ImageEntry]) -> Instance:
    """An entry of `annotations`. Raises `MalformedEntry`."""
    name = f"annotation number {position}"
    if not isinstance(entry, dict):
        raise MalformedEntry(name, "is not a mapping")
    # An annotation's id only names it, so its place in the file does where there is none.
    annotation_id = read_id(entry["id"]) if entry.get("id") is not None else f"number {position}"
    if annotation_id is None:
        kind = "has no id (an integer or a string)"
        raise MalformedEntry(name, kind + _value(entry, "id"), kind)
    name = f"annotation {annotation_id}"
    image = find_image(images, entry.get("image_id"))
    if image is None:
        cause = f"belongs to the image {_short(entry.get('image_id'))}, which is not in the file"
        raise MalformedEntry(name, cause, "belongs to an image that is not in the file")
    crowd = entry.get("iscrowd")
    if crowd not in (None, 0, 1):
        kind = "has an iscrowd that is neither 0 nor 1"
        raise MalformedEntry(name, kind + _value(entry, "iscrowd"), kind)
    polygons, runs = [], None
    if entry.get("segmentation") is not None:
        try:
            polygons, runs = parse_segmentation(entry["segmentation"], image.height, image.width)
        except ValueError as error:
            kind = re.split(r"[,:0-9]", f"has {error}")[0]  # it ends where values begin
            raise MalformedEntry(name, f"has {error}", kind) from error
    area = entry.get("area")
    if area is not None and (not finite_numbers([area]) or not 0 <= area <= _MOST_AREA):
        kind = "has an area that is no number of square pixels"
        raise MalformedEntry(name, kind + _value(entry, "area"), kind)
    xywh = _box(entry.get("bbox"), name, bounds_of(polygons, runs, image.height))
    return Instance(annotation_id, image.id, xywh, polygons, runs, bool(crowd), None if area is None else float(area))


def _box(
    box: Any, name: str, bounds: Optional[tuple[float, float, float, float]]
) -> tuple[float, float, float, float]:
    if box in (None, []) and bounds is not None:
        x1, y1, x2, y2 = bounds
        return x1, y1, x2 - x1, y2 - y1
    kind = "has no bbox [x, y, width, height]"
    if not finite_numbers(box) or len(box) != 4:
        raise MalformedEntry(name, kind if box is None else f"{kind}: bbox is {_short(box)}", kind)
    far = far_number(box)
    if far is not None:
        raise MalformedEntry(name, f"has a bbox with the number {far:g}: no picture is that large", "has a huge bbox")
    return float(box[0]), float(box[1]), float(box[2]), float(box[3])


def refuse_other_boxes(read: Annotations, where: str | os.PathLike) -> None:
    """Raise `UserError` where most boxes are not [x, y, width, height] in pixels: corners, say, or shares of the picture.

    That they are not, their shapes tell; without those, that they are smaller than a pixel.
    """
    told = [instance for instance in read.instances if not instance.crowd]
    odd = [instance for instance in told if _has_odd_box(instance, read.images[instance.image_id])]
    if len(odd) >= _FEW_BOXES and 2 * len(odd) > len(told):
        raise UserError(
            f"{where}: {len(odd)} of {len(told)} boxes do not fit their masks or pictures, first that of annotation "
            f"{odd[0].id}; bbox is [x, y, width, height] in pixels; `jrdp data check` lists them"
        )


def _has_odd_box(instance: Instance, image: ImageEntry) -> bool:
    if is_share(instance.xywh):
        return True
    return has_shape(instance) and overlap(instance.xywh, shape_bounds(instance, image)) < 0.5


def is_share(xywh: Sequence[float]) -> bool:
    """Whether a box lies within the one pixel at the corner, as those do that are shares of the picture's sides."""
    x, y, width, height = xywh
    return 0 <= x < 1 and 0 <= y < 1 and 0 < width <= 1 and 0 < height <= 1 and min(width, height) < 1


def has_shape(instance: Instance) -> bool:
    """Whether there is a polygon of at least three points, or a pixel in the RLE."""
    if instance.polygons is not None:
        return bool(instance.polygons)
    return instance.runs is not None and bool(instance.runs[1::2].any())


def mask_area(instance: Instance, image: ImageEntry) -> int:
    """Pixels of the instance's mask as pycocotools draws it."""
    return area_of(instance.polygons, instance.runs, image.height, image.width)


def shape_bounds(instance: Instance, image: ImageEntry) -> tuple[float, float, float, float]:
    """(x1, y1, x2, y2) of the instance's shape, which must have one; see `shapes.bounds_of`."""
    bounds = bounds_of(instance.polygons, instance.runs, image.height)
    if bounds is None:
        raise ValueError(f"annotation {instance.id} has no shape")
    return bounds
