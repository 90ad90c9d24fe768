"""A dataset of one's own: any Python object with two methods.

    len(dataset)     how many pictures
    dataset[index]   (picture, instances)

The picture is a file, a PIL image or an RGB uint8 array `[height, width, 3]`; the instances are masks (bool or uint8
`[height, width]`, as a list or as one array `[G, height, width]`) or polygons (a list of parts `[x, y, x, y, ...]`), in
the pixels of the picture. Boxes are made from them. With a third method, `original_size(index)` -> (height, width),
pictures are not read once at the start to learn which of them are upright. A picture without instances is background.
"""

from __future__ import annotations

import operator
import os
import zlib
from typing import Any, ContextManager, Sequence

import numpy as np
from PIL import Image

from jrdp.config import InputConfig
from jrdp.data.annotations import ImageEntry, Instance
from jrdp.data.augmentation import Look
from jrdp.data.coco import Example, Record, record_of, targets_of
from jrdp.data.rle import encode_mask_as_list
from jrdp.data.shapes import bounds_of, parse_segmentation
from jrdp.data.transforms import decoded, prepare_image, read_image, resize_shape, sizes_of
from jrdp.errors import UserError
from jrdp.import_path import explained

GIVEN = "(a dataset given from Python)"  # what data.train says in the configuration of such a run


class OwnDataset:
    """What the loader needs of a dataset, over an object with two methods.

    Raises:
        UserError: naming the item and what is wrong with it, where it is not as described above. Items are looked at
            here up to the first with an instance, which there must be; the others when they are asked for.
    """

    def __init__(self, items: Any, input_config: InputConfig):
        self.items, self.input_config = items, input_config
        if isinstance(items, (str, type)):
            kind = "the text" if isinstance(items, str) else "the class"
            advice = "a COCO json goes into data.train" if isinstance(items, str) else f"give an object, {items.__name__}(...)"
            raise UserError(f"the dataset is {kind} {getattr(items, '__name__', items)}: {advice}")
        if not hasattr(items, "__len__") or not hasattr(items, "__getitem__"):
            raise UserError(f"a dataset needs the methods __len__ and __getitem__, which {type(items).__name__} has not")
        with self._explained("__len__"):
            count = len(items)
        if count == 0:
            raise UserError(f"the dataset {type(items).__name__} is empty: there is nothing to train on")
        self._tells = hasattr(items, "original_size")
        self._sizes = [self._told_size(k) for k in range(len(items))] if self._tells else []
        self._need_instances()
        self._sizes = self._sizes or [self._size(k) for k in range(len(items))]

    @property
    def fingerprint(self) -> int:
        """A number, 32 bits, which another order or other sizes change; instances are not looked at."""
        return zlib.crc32(np.int64(self._sizes).tobytes())

    def __len__(self) -> int:
        return len(self._sizes)

    def __getitem__(self, index: int) -> Example:
        return self.example(index)

    def example(self, index: int, flip: bool = False, look: Look | None = None) -> Example:
        photograph, record = self._record(index)
        image = prepare_image(photograph, self.input_config, flip, index, look)
        return Example(image, targets_of(record, image.size, flip))

    def image_id(self, index: int) -> int:
        return index

    def original_size(self, index: int) -> tuple[int, int]:
        return self._sizes[index]

    def size(self, index: int, look: Look | None = None) -> tuple[int, int]:
        height, width = self._sizes[index]
        return resize_shape(width, height, *sizes_of(self.input_config, look))

    def _explained(self, method: str, *arguments: int) -> ContextManager[None]:
        """For a call of a method of the object, which may raise anything."""
        code = getattr(getattr(type(self.items), method, None), "__code__", None)
        call = f"{method}({', '.join(map(str, arguments))}) of the dataset {type(self.items).__name__}"
        return explained(call, getattr(code, "co_filename", None))

    def _need_instances(self) -> None:
        """Boxes, coordinates of 0..1 and masks as lists pass for polygons, of which nothing remains in any picture."""
        if not any(self._record(index)[1].instances for index in range(len(self.items))):
            raise UserError(
                f"none of the {len(self.items)} items of the dataset has an instance that covers a pixel of its picture: "
                "masks are arrays [height, width], polygons at least three points [x, y, x, y, ...] in pixels"
            )

    def _record(self, index: int) -> tuple[Image.Image, Record]:
        photograph, instances = self._read(index)
        entry = ImageEntry(index, f"item {index}", photograph.width, photograph.height)
        if self._sizes and (entry.height, entry.width) != self._sizes[index]:
            told = "{1}x{0}".format(*self._sizes[index])
            who = f"as original_size({index}) says, (height, width)" if self._tells else "as before"
            raise UserError(f"item {index} of the dataset is {entry.width}x{entry.height}, not {told} {who}")
        return photograph, record_of(entry, [_instance(shape, k, entry) for k, shape in enumerate(instances)])

    def _told_size(self, index: int) -> tuple[int, int]:
        with self._explained("original_size", index):
            told = self.items.original_size(index)
        try:
            height, width = map(operator.index, told)
        except (TypeError, ValueError):
            raise UserError(f"original_size({index}) of the dataset gives {told!r}, not (height, width)") from None
        return height, width

    def _size(self, index: int) -> tuple[int, int]:
        photograph, _ = self._read(index)
        return photograph.height, photograph.width

    def _read(self, index: int) -> tuple[Image.Image, Sequence]:
        with self._explained("__getitem__", index):
            item = self.items[index]
        if not isinstance(item, (tuple, list)) or len(item) != 2:
            raise UserError(f"item {index} of the dataset is {_kind(item)}, not (picture, instances)")
        picture, instances = item
        if not isinstance(instances, (tuple, list, np.ndarray)):
            raise UserError(f"item {index} of the dataset: its instances are {_kind(instances)}, not a list of masks or polygons")
        if isinstance(instances, np.ndarray) and instances.ndim == 2 and instances.size:
            raise UserError(f"item {index} of the dataset: its instances are {_kind(instances)}, not masks [G, height, width]")
        return _photograph(picture, index, self.input_config.exif == "apply"), instances


def _photograph(picture: Any, index: int, upright: bool) -> Image.Image:
    if isinstance(picture, (str, os.PathLike)):
        return read_image(picture, upright=upright)
    if isinstance(picture, Image.Image):
        return decoded(picture, upright, name=f"item {index} of the dataset")
    if isinstance(picture, np.ndarray) and picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3 and picture.size:
        return Image.fromarray(picture)
    raise UserError(
        f"item {index} of the dataset: its picture is {_kind(picture)}, not a file, a PIL image or an RGB uint8 array "
        "[height, width, 3]"
    )


def _instance(shape: Any, number: int, image: ImageEntry) -> Instance:
    where = f"{image.file_name} of the dataset: its instance {number}"
    if isinstance(shape, np.ndarray) and shape.ndim == 2:
        if shape.shape != (image.height, image.width):
            raise UserError(f"{where} is a mask of {shape.shape[1]}x{shape.shape[0]}, the picture is {image.width}x{image.height}")
        if shape.dtype != bool and not np.isin(shape, (0, 1)).all():
            raise UserError(f"{where} is a mask with other values than 0 and 1")
        polygons, runs = None, np.array(encode_mask_as_list(shape)["counts"], np.int64)
    else:
        try:
            polygons, runs = parse_segmentation([np.asarray(part, float).ravel().tolist() for part in shape], image.height, image.width)
        except (TypeError, ValueError) as error:
            raise UserError(f"{where} is neither a mask nor a list of polygons [x, y, x, y, ...]: {error}") from error
    x1, y1, x2, y2 = bounds_of(polygons, runs, image.height) or (0, 0, 0, 0)
    return Instance(number, image.id, (x1, y1, x2 - x1, y2 - y1), polygons, runs)


def _kind(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"an array {value.dtype} {list(value.shape)}"
    return f"{type(value).__name__} of {len(value)}" if isinstance(value, (tuple, list)) else f"of type {type(value).__name__}"
