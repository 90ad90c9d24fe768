"""`jrdp data convert`: instance maps, as many datasets are published, to a COCO json.

For the picture NAME.jpg the masks folder holds one of
  NAME.png   an index mask: 0 is background, every other value (or palette index, or colour) is one instance;
  NAME.mat   a matrix like that, or masks as a matrix [H, W, K] or as K cells, as MATLAB saves them;
  NAME/      a folder of masks, one file an instance: white (more than half of the largest value) is the instance.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Optional, Sequence

import numpy as np
from tqdm import tqdm

from jrdp.dataset_tools.matfile import Value, read_mat
from jrdp.dataset_tools.outline import trace
from jrdp.data.rle import encode_mask
from jrdp.data.transforms import PICTURE_SUFFIXES, read_image
from jrdp.files import check_target, write_json
from jrdp.errors import UserError

_MASKS = {".png", ".bmp", ".tif", ".tiff", ".gif"}
_MOST_INSTANCES = 255


@dataclass
class Conversion:
    """What was converted.

    without_masks: pictures that no mask was found for; they are left out. without_instances: pictures whose mask is
    all background; they are in the json. filled_holes: instances whose holes the polygons do not show.
    """

    out: Path
    pictures: int = 0
    instances: int = 0
    without_masks: list[str] = field(default_factory=list)
    without_instances: list[str] = field(default_factory=list)
    filled_holes: int = 0

    def text(self) -> str:
        lines = [f"{self.out}: {self.pictures} pictures, {self.instances} instances"]
        if self.without_masks:
            lines.append(f"  left out, as they have no mask: {', '.join(self.without_masks)}")
        if self.without_instances:
            lines.append(f"  without instances: {', '.join(self.without_instances)}")
        if self.filled_holes:
            lines.append(f"  {self.filled_holes} instances have holes, which polygons fill: RLE keeps them")
        return "\n".join(lines)


def convert_instance_maps(
    masks: str | os.PathLike,
    images: str | os.PathLike,
    out: str | os.PathLike,
    segmentation: Literal["rle", "polygons"] = "rle",
    ignore: Sequence[int] = (),
    variable: Optional[str] = None,
) -> Conversion:
    """Write the COCO json `out` for the pictures in the folder `images` and their masks in the folder `masks`.

    Args:
        segmentation: "rle" keeps every pixel; "polygons" run along pixel edges and are exact except for holes.
        ignore: values of index masks that are no instance, such as 255 for a border.
        variable: the variable of .mat files to read, `a.b` for the field b of a; needed only where several fit.

    Raises:
        UserError: for missing folders, masks that do not fit their picture or are no instance maps, or when there is
            no picture with a mask.
    """
    masks, images = Path(masks), Path(images)
    for folder in (masks, images):
        if not folder.is_dir():
            raise UserError(f"there is no folder {folder}")
    check_target(out)
    pictures = _by_stem(images, PICTURE_SUFFIXES)
    result = Conversion(Path(out))
    entries, annotations = [], []
    for stem, path in tqdm(sorted(pictures.items()), desc="converting", unit="picture", disable=None):
        source = _mask_of(masks, stem)
        if source is None:
            result.without_masks.append(path.name)
            continue
        picture = read_image(path)
        shape = (picture.height, picture.width)
        instances = read_instances(source, shape, ignore, variable)
        if not instances:
            result.without_instances.append(path.name)
        image_id = len(entries) + 1
        entries.append({"id": image_id, "file_name": path.name, "width": picture.width, "height": picture.height})
        for mask in instances:
            annotation, filled = _annotation(len(annotations) + 1, image_id, mask, segmentation)
            annotations.append(annotation)
            result.filled_holes += filled
    if not entries:
        raise UserError(f"no picture in {images} has a mask (NAME.png, NAME.mat or a folder NAME) in {masks}")
    result.pictures, result.instances = len(entries), len(annotations)
    categories = [{"id": 1, "name": "salient"}]
    write_json(result.out, {"images": entries, "annotations": annotations, "categories": categories})
    return result


def read_instances(
    source: Path, shape: tuple[int, int], ignore: Sequence[int] = (), variable: Optional[str] = None
) -> list[np.ndarray]:
    """The masks bool `[height, width]` of one picture of `shape`, in the order of their values or file names.

    Raises:
        UserError: naming the file that does not fit.
    """
    if source.is_dir():
        files = sorted(path for path in source.iterdir() if path.suffix.lower() in _MASKS)
        if not files:
            raise UserError(f"there is no mask in the folder {source}")
        return [_binary(np.asarray(read_image(path, "L")), path, shape) for path in files]
    if source.suffix.lower() == ".mat":
        return _from_mat(source, shape, ignore, variable)
    image = read_image(source, None)
    if image.mode not in ("1", "L", "P", "I", "I;16", "I;16B", "I;16L"):
        red, green, blue = np.moveaxis(np.asarray(image.convert("RGB")).astype(np.int64), 2, 0)
        return _split(red * 65536 + green * 256 + blue, source, shape, ignore)
    return _split(np.asarray(image), source, shape, ignore)


def _by_stem(folder: Path, suffixes: set[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in suffixes and path.is_file():
            if path.stem in found:
                raise UserError(f"{found[path.stem]} and {path.name} have the same name: which one do masks belong to?")
            found[path.stem] = path
    if not found:
        raise UserError(f"no pictures ({', '.join(sorted(suffixes))}) in the folder {folder}")
    return found


def _mask_of(folder: Path, stem: str) -> Optional[Path]:
    for candidate in (folder / f"{stem}.png", folder / f"{stem}.mat", folder / stem):
        if candidate.exists():
            return candidate
    return None


def _fit(array: np.ndarray, source, shape: tuple[int, int]) -> None:
    if array.shape[:2] != shape:
        height, width = (*array.shape, 1, 1)[:2]
        raise UserError(f"{source} is {width}x{height}, but its picture is {shape[1]}x{shape[0]}")


def _split(labels: np.ndarray, source, shape: tuple[int, int], ignore: Sequence[int]) -> list[np.ndarray]:
    """One mask for each value other than 0 and those to be ignored."""
    _fit(labels, source, shape)
    values = [value for value in np.unique(labels).tolist() if value != 0 and value not in ignore]
    if len(values) > _MOST_INSTANCES:
        raise UserError(
            f"{source} has {len(values)} different values: that is no instance map (a photograph, or smoothed edges?)"
        )
    return [labels == value for value in values]


def _binary(mask: np.ndarray, source, shape: tuple[int, int]) -> np.ndarray:
    _fit(mask, source, shape)
    if not mask.any():
        raise UserError(f"{source} is empty: an instance needs at least one pixel")
    return mask > mask.max() / 2


def _from_mat(
    source: Path, shape: tuple[int, int], ignore: Sequence[int], variable: Optional[str]
) -> list[np.ndarray]:
    found = _candidates(read_mat(source), shape)
    if variable is not None:
        if variable not in found:
            raise UserError(f"{source} has no variable {variable!r} of its picture's size; there are: {_names(found)}")
        value = found[variable]
    elif len(found) == 1:
        (value,) = found.values()
    else:
        raise UserError(
            f"{source} has {len(found) or 'no'} variables of its picture's size {shape[1]}x{shape[0]}"
            + (f": {_names(found)}; say which one" if found else "")
        )
    if isinstance(value, list):
        return [_binary(mask, source, shape) for mask in value]
    if value.ndim == 3:
        return [_binary(mask, source, shape) for mask in np.moveaxis(value, 2, 0)]
    return _split(value, source, shape, ignore)


def _names(found: dict) -> str:
    return ", ".join(sorted(found)) or "none"


def _candidates(variables: dict[str, Value], shape: tuple[int, int], prefix: str = "") -> dict[str, Value]:
    """Variables (and fields, as `a.b`) that are a matrix of the picture's size, or a cell array of such."""
    found: dict[str, Value] = {}
    for name, value in variables.items():
        path = prefix + name
        if isinstance(value, dict):
            found.update(_candidates(value, shape, path + "."))
        elif isinstance(value, list):
            if value and all(isinstance(cell, np.ndarray) and cell.shape == shape for cell in value):
                found[path] = value
        elif value.ndim in (2, 3) and value.shape[:2] == shape:
            found[path] = value
    return found


def _annotation(annotation_id: int, image_id: int, mask: np.ndarray, form: str) -> tuple[dict, bool]:
    """A COCO annotation, and whether holes were lost."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    x, y = int(columns[0]), int(rows[0])
    polygons, holes = trace(mask) if form == "polygons" else ([], False)
    annotation = {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": 1,
        "iscrowd": 0,
        "area": int(mask.sum()),
        "bbox": [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y],
        "segmentation": polygons if form == "polygons" else encode_mask(mask),
    }
    return annotation, holes
