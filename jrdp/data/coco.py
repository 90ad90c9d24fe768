"""A COCO json and its pictures as training and test examples.

Ground truth is treated by convention 24: category ids are mapped to 1, crowds are dropped, boxes become
(x, y, x + max(w - 1, 0), y + max(h - 1, 0)), are clipped to the picture, and instances whose box is then empty are
removed. Box and polygons are scaled by the resize ratios.

Where it deviates (convention 29): an instance whose polygons all have fewer than six numbers is removed together with its box; the
released code removes only the mask, so that all following masks of the picture belong to the wrong box. And a picture
of which no instance remains is left out of training; the released code looks only at empty lists and boxes of at most
one pixel, and fails at the others. RLE annotations, which the released code cannot train on, become bitmaps.
"""

from __future__ import annotations

import bisect
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Optional, Sequence

import numpy as np
from PIL import Image

from jrdp import boxes as box_math
from jrdp.config import InputConfig
from jrdp.data.annotations import ImageEntry, ImageId, Instance, crowd_hint, has_shape, mask_area, read_annotations, refuse_other_boxes
from jrdp.data.naming import find_picture, other_picture_hint, refuse_backslashes
from jrdp.data.rle import decode_runs
from jrdp.data.augmentation import Look
from jrdp.data.exif import turn_hint
from jrdp.data.transforms import PreparedImage, prepare_image, read_image, resize_shape, sizes_of
from jrdp.errors import UserError
from jrdp.structures import Targets


class Example(NamedTuple):
    """A prepared picture (with its image id) and its ground truth in network pixels."""

    image: PreparedImage
    targets: Targets


@dataclass(frozen=True)
class Record:
    """A picture with the instances that remain: boxes float32 `[G, 4]` (x1, y1, x2, y2) in photograph pixels."""

    image: ImageEntry
    instances: tuple[Instance, ...]
    boxes: np.ndarray


class CocoDataset:
    """The pictures of one COCO json, in the order of their ids.

    Args:
        images_dir: folder of the pictures.
        json_path: annotations; every entry is checked here, once.
        input_config: how pictures become network input.
        training: leave out pictures without a usable instance, as training does; testing keeps every picture.

    Raises:
        UserError: for an unreadable json, or a malformed entry (naming the file and the entry's id), or a training set
            in which no picture has an instance. Pictures are read, and so complained about, only when asked for.
    """

    def __init__(
        self, images_dir: str | os.PathLike, json_path: str | os.PathLike, input_config: InputConfig, training: bool
    ):
        self.images_dir = Path(images_dir)
        self.json_path = Path(json_path)
        self.input_config = input_config
        self.training = training
        annotations = read_annotations(json_path)
        images = annotations.images
        refuse_backslashes(images_dir, images.values(), json_path)
        # The one category's id, for result files; as released, all categories are one.
        self.category_id: int | str = annotations.category_ids[0]
        grouped: dict[ImageId, list[Instance]] = {image_id: [] for image_id in images}
        for instance in annotations.instances:
            if not instance.crowd:
                grouped[instance.image_id].append(instance)
        records = [record_of(images[image_id], grouped[image_id]) for image_id in sorted(images)]
        self._records = [record for record in records if record.instances or not training]
        self.left_out = len(records) - len(self._records)  # pictures without a usable instance
        self._crowds = sum(instance.crowd for instance in annotations.instances)
        self._unusable = len(annotations.instances) - self._crowds - sum(len(record.instances) for record in records)
        if not self._records or not training and 0 < self._crowds == len(annotations.instances):
            what = "no picture has a usable instance" if records else "it has no images"
            what += crowd_hint(self._crowds, len(annotations.instances))
            raise UserError(f"{json_path}: {what}, so there is nothing to {'train' if training else 'test'} on")
        refuse_other_boxes(annotations, json_path)
        if not training and not _any_mask(images, annotations.instances):
            raise UserError(f"{json_path}: no instance has a mask inside its picture, so there is no mask AP to test for")

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Example:
        return self.example(index)

    def example(self, index: int, flip: bool = False, look: Optional[Look] = None) -> Example:
        """Picture `index`, mirrored when `flip` and varied as `look` says, with its targets."""
        record = self._records[index]
        image = self.image(index, flip, look)
        return Example(image, targets_of(record, image.size, flip))

    def image(self, index: int, flip: bool = False, look: Optional[Look] = None) -> PreparedImage:
        """Picture `index` ready for `batch_images`, without ground truth.

        Raises:
            UserError: when it cannot be read, or is not as large as the json says.
        """
        entry = self._records[index].image
        path = self.path(index)
        photograph = read_image(path, upright=self.input_config.exif == "apply")
        if photograph.size != (entry.width, entry.height):
            raise UserError(
                f"{path} is {photograph.width}x{photograph.height}, but image {entry.id} of {self.json_path} is "
                f"{entry.width}x{entry.height}: its annotations would not fit" + exif_hint(photograph, entry)
            )
        return prepare_image(photograph, self.input_config, flip, entry.id, look)

    @property
    def note(self) -> Optional[str]:
        """One line about what training, or testing, leaves out of the file; None where that is nothing."""
        counts = (
            (self.left_out if self.training else 0, "pictures without a usable instance"),
            (self._unusable if self.training else 0, "instances without shape or of at most one pixel"),
            (self._crowds, "crowds"),
        )
        parts = [f"{count} {what}" for count, what in counts if count]
        return f"{self.json_path}: left out: {', '.join(parts)}" if parts else None

    @property
    def fingerprint(self) -> int:
        """A number, 32 bits, which another order, other sizes, boxes or masks change; not where the pictures lie."""
        found = 0
        for record in self._records:
            shapes = [part for one in record.instances for part in (one.polygons if one.runs is None else [one.runs])]
            for part in (np.int64([record.image.height, record.image.width]), record.boxes, *shapes):
                found = zlib.crc32(part.tobytes(), found)
        return found

    def refuse_missing_pictures(self) -> None:
        """Raise `UserError` where a picture is not there: a run would find it after hours."""
        missing = [index for index in range(len(self)) if not os.path.exists(self.path(index))]
        if missing:
            hint = other_picture_hint(self.images_dir, self._records[missing[0]].image.file_name)
            raise UserError(
                f"{self.json_path}: {len(missing)} of {len(self)} pictures are not there, first {self.path(missing[0])}{hint}; `jrdp data "
                "check` lists them"
            )

    def path(self, index: int) -> Path:
        return find_picture(self.images_dir, self._records[index].image.file_name)

    def image_id(self, index: int) -> ImageId:
        return self._records[index].image.id

    def original_size(self, index: int) -> tuple[int, int]:
        """(height, width) of the photograph, from the json."""
        entry = self._records[index].image
        return entry.height, entry.width

    def size(self, index: int, look: Optional[Look] = None) -> tuple[int, int]:
        """(height, width) of the prepared picture, without reading it."""
        height, width = self.original_size(index)
        return resize_shape(width, height, *sizes_of(self.input_config, look))

    def sorted_indices(self) -> list[int]:
        """Indices in the order of the image ids, the order of testing."""
        return list(range(len(self)))


def exif_hint(picture: Image.Image, entry: ImageEntry) -> str:
    """What to do where a picture has the size that its annotations have once its EXIF orientation is followed."""
    return turn_hint(picture, (entry.width, entry.height), "--set input.exif=apply")


class JoinedDataset:
    """Several datasets one after the other, for training. Image ids may occur more than once."""

    def __init__(self, parts: Sequence[CocoDataset]):
        self.parts = list(parts)
        self._ends = np.cumsum([len(part) for part in self.parts]).tolist()

    @property
    def note(self) -> Optional[str]:
        """A line for each part that training leaves something out of."""
        return "\n".join(filter(None, (part.note for part in self.parts))) or None

    @property
    def fingerprint(self) -> int:
        """As a part's, of all of them in their order."""
        return zlib.crc32(np.int64([part.fingerprint for part in self.parts]).tobytes())

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Example:
        return self.example(index)

    def _part(self, index: int) -> tuple[CocoDataset, int]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = bisect.bisect_right(self._ends, index)
        return self.parts[number], index - (self._ends[number - 1] if number else 0)

    def example(self, index: int, flip: bool = False, look: Optional[Look] = None) -> Example:
        part, inner = self._part(index)
        return part.example(inner, flip, look)

    def image_id(self, index: int) -> ImageId:
        part, inner = self._part(index)
        return part.image_id(inner)

    def path(self, index: int) -> Path:
        part, inner = self._part(index)
        return part.path(inner)

    def original_size(self, index: int) -> tuple[int, int]:
        part, inner = self._part(index)
        return part.original_size(inner)

    def size(self, index: int, look: Optional[Look] = None) -> tuple[int, int]:
        part, inner = self._part(index)
        return part.size(inner, look)


def usable(image: ImageEntry, instances: Sequence[Instance]) -> tuple[np.ndarray, np.ndarray]:
    """Which instances can be trained on: mask bool `[G]` and their clipped boxes float32 `[G, 4]`, before selection."""
    boxes = box_math.from_xywh([instance.xywh for instance in instances])
    boxes = box_math.clip(boxes, image.height, image.width)
    shaped = np.array([has_shape(instance) for instance in instances], dtype=bool)
    return box_math.nonempty(boxes) & shaped, boxes


def _any_mask(images: dict[ImageId, ImageEntry], instances: Sequence[Instance]) -> bool:
    """Whether an instance has a pixel inside its picture, or there is no instance at all."""
    counted = [instance for instance in instances if not instance.crowd]
    return not counted or any(mask_area(instance, images[instance.image_id]) for instance in counted)


def record_of(image: ImageEntry, instances: list[Instance]) -> Record:
    """A picture with those of its instances that can be trained on."""
    keep, boxes = usable(image, instances)
    return Record(image, tuple(instance for instance, kept in zip(instances, keep) if kept), boxes[keep])


def targets_of(record: Record, size: tuple[int, int], flip: bool) -> Targets:
    """Ground truth scaled to `size` (height, width) and mirrored when `flip`."""
    original = (record.image.height, record.image.width)
    boxes = box_math.resize(record.boxes, original, size)
    polygons: list[Optional[list[np.ndarray]]] = []
    bitmaps: list[Optional[np.ndarray]] = []
    for instance in record.instances:
        if instance.polygons is not None:
            polygons.append([_resize_polygon(part, original, size, flip) for part in instance.polygons])
            bitmaps.append(None)
        else:
            polygons.append(None)
            bitmaps.append(_resize_bitmap(decode_runs(instance.runs, *original), size, flip))
    return Targets(box_math.flip(boxes, size[1]) if flip else boxes, polygons, bitmaps, size)


def _resize_polygon(part: np.ndarray, original: tuple[int, int], size: tuple[int, int], flip: bool) -> np.ndarray:
    """As released: arithmetic in float32, and x becomes width - x - 1 in a mirrored picture, like a box's edge."""
    ratios = np.array([size[1] / original[1], size[0] / original[0]], dtype=np.float32)
    points = part.astype(np.float32).reshape(-1, 2) * ratios
    if flip:
        points[:, 0] = size[1] - points[:, 0] - 1
    return points.ravel().astype(np.float64)


def _resize_bitmap(mask: np.ndarray, size: tuple[int, int], flip: bool) -> np.ndarray:
    """Resized like the picture (antialiased bilinear) and cut at one half, which keeps outlines in place; uint8 0/1.

    Mirrored like the picture, pixel by pixel.
    """
    resized = Image.fromarray(mask * np.uint8(255)).resize((size[1], size[0]), Image.BILINEAR)
    bitmap = (np.asarray(resized) >= 128).astype(np.uint8)
    return np.ascontiguousarray(bitmap[:, ::-1]) if flip else bitmap
