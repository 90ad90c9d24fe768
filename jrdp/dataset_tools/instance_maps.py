"""`jrdp data convert`: instance maps, as many datasets are published, to a COCO json.

For the picture NAME.jpg the masks folder holds one of
  NAME.png   an index mask: 0 is background, every other value (or palette index, or colour) is one instance;
             .bmp, .tif and .gif are read as well, and the suffix may be in capitals;
  NAME.mat   a matrix like that, or masks as a matrix [H, W, K] or as K cells, as MATLAB saves them;
  NAME/      a folder of masks, one file an instance: white (more than half of the largest value) is the instance.
With `soft`, NAME.png is the mask of one instance with soft edges, like a file of a folder; JPEG is then read, too.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Optional, Sequence

import cv2
import numpy as np
from tqdm import tqdm

from jrdp.dataset_tools.matfile import Value, read_mat
from jrdp.dataset_tools.outline import trace
from jrdp.data.exif import turn_hint, turns_unseen, unseen_note
from jrdp.data.folders import is_litter, pictures_in
from jrdp.data.naming import same_name
from jrdp.data.rle import encode_mask
from jrdp.data.transforms import PICTURE_SUFFIXES, read_image
from jrdp.dataset_tools.masks import LOSSY, MASK_SUFFIXES, half_of_largest, index_map, refuse_no_numbers, refuse_smooth_edges, shape_of
from jrdp.files import check_target, protect, write_json
from jrdp.errors import UserError

_MOST_INSTANCES = 255


class _OtherSize(UserError):
    """A mask of another size than its picture. size: the mask's (width, height)."""

    def __init__(self, line: str, size: tuple[int, int]):
        super().__init__(line)
        self.size = size


@dataclass
class Conversion:
    """What was converted.

    without_masks: pictures that no mask was found for; they are left out. without_instances: pictures whose mask is
    all background; they are in the json. filled_holes: instances whose holes the polygons do not show. left_out: a line
    about what else lies among the pictures. several, bordered: masks with several instances, and those of them whose last
    instance runs along the others, as a border does. turned: pictures turned as their EXIF says. unseen: those with an
    orientation that was not followed and that their size does not tell of.
    """

    out: Path
    pictures: int = 0
    instances: int = 0
    without_masks: list[str] = field(default_factory=list)
    without_instances: list[str] = field(default_factory=list)
    filled_holes: int = 0
    left_out: Optional[str] = None
    several: int = 0
    bordered: int = 0
    turned: int = 0
    unseen: int = 0

    def text(self) -> str:
        lines = [f"{self.out}: {self.pictures} pictures, {self.instances} instances"]
        if self.left_out:
            lines.append(f"  {self.left_out}")
        if self.without_masks:
            lines.append(f"  left out, as they have no mask: {', '.join(self.without_masks)}")
        if self.without_instances:
            lines.append(f"  without instances: {', '.join(self.without_instances)}")
        if self.filled_holes:
            lines.append(f"  {self.filled_holes} instances have holes, which polygons fill: RLE keeps them")
        if self.bordered > 0.9 * self.several:
            lines.append(
                f"  in {self.bordered} of {self.several} masks with several instances the largest value runs along the others, as "
                "a border does: if it is no instance, leave it out (--ignore 255, as in Pascal VOC)"
            )
        if self.turned:
            lines.append(f"  {self.turned} pictures were turned upright, as their EXIF says: use this json with --set input.exif=apply")
        if self.unseen:
            lines.append(f"  {unseen_note(f'{self.unseen} pictures', 'masks')}")
        return "\n".join(lines)


def convert_instance_maps(
    masks: str | os.PathLike,
    images: str | os.PathLike,
    out: str | os.PathLike,
    segmentation: Literal["rle", "polygons"] = "rle",
    ignore: Sequence[int] = (),
    variable: Optional[str] = None,
    soft: bool = False,
    upright: bool = False,
) -> Conversion:
    """Write the COCO json `out` for the pictures in the folder `images` and their masks in the folder `masks`.

    Args:
        segmentation: "rle" keeps every pixel; "polygons" run along pixel edges and are exact except for holes.
        ignore: values of index masks that are no instance, such as 255 for a border.
        variable: the variable of .mat files to read, `a.b` for the field b of a; needed only where several fit.
        soft: NAME.png is the mask of one instance with soft edges, no index mask: more than half of its largest value.
        upright: masks were drawn on pictures turned as their EXIF orientation says; the json is then for input.exif: apply.

    Raises:
        UserError: for missing folders, options that no mask needs, masks that do not fit their picture or are no instance maps, or when there is
            no picture with a mask.
    """
    masks, images = Path(masks), Path(images)
    for folder in (masks, images):
        if not folder.is_dir():
            raise UserError(f"there is no folder {folder}")
    inside = pictures_in(images)
    pictures = _by_stem(inside.pictures, images)
    found = _masks_by_stem(masks, soft)
    protect(*pictures.values(), *found.values())
    check_target(out)
    _refuse_unused(found, pictures, ignore, variable, soft)
    result = Conversion(Path(out), left_out=inside.note(images))
    entries, annotations = [], []
    for stem, path in tqdm(sorted(pictures.items()), desc="converting", unit="picture", disable=None):
        source = found.get(stem)
        if source is None:
            result.without_masks.append(path.name)
            continue
        picture = read_image(path, upright=upright)
        shape = (picture.height, picture.width)
        try:
            instances = read_instances(source, shape, ignore, variable, soft)
        except _OtherSize as error:
            raise UserError(f"{error}{turn_hint(picture, error.size, '--exif apply')}") from error
        result.turned += bool(picture.info.get("turned"))
        result.unseen += turns_unseen(picture)
        if not instances:
            result.without_instances.append(path.name)
        result.several += len(instances) > 1
        result.bordered += len(instances) > 1 and _borders(instances)
        image_id = len(entries) + 1
        entries.append({"id": image_id, "file_name": path.name, "width": picture.width, "height": picture.height})
        for mask in instances:
            annotation, filled = _annotation(len(annotations) + 1, image_id, mask, segmentation)
            annotations.append(annotation)
            result.filled_holes += filled
    if not entries:
        raise UserError(
            f"no picture in {images} has a mask (NAME.png, NAME.mat or a folder NAME) in {masks}; pictures are called "
            f"{_some(pictures)}, masks {_some(found) or 'nothing'}"
        )
    result.pictures, result.instances = len(entries), len(annotations)
    categories = [{"id": 1, "name": "salient"}]
    write_json(result.out, {"images": entries, "annotations": annotations, "categories": categories})
    return result


def read_instances(
    source: Path,
    shape: tuple[int, int],
    ignore: Sequence[int] = (),
    variable: Optional[str] = None,
    soft: bool = False,
) -> list[np.ndarray]:
    """The masks bool `[height, width]` of one picture of `shape`, in the order of their values or file names.

    Raises:
        UserError: naming the file that does not fit.
    """
    if source.is_dir():
        files = sorted(path for path in source.iterdir() if path.suffix.lower() in MASK_SUFFIXES and not is_litter(path))
        if not files:
            raise UserError(f"there is no mask in the folder {source}")
        return [_fitting(shape_of(path), path, shape) for path in files]
    if source.suffix.lower() == ".mat":
        return _from_mat(source, shape, ignore, variable)
    if soft:
        return [_fitting(shape_of(source, soft=True), source, shape)]
    labels = index_map(source)
    masks = _split(labels, source, shape, ignore)
    refuse_smooth_edges(np.where(np.isin(labels, ignore), 0, labels) if ignore else labels, source)
    return masks


def _by_stem(paths: list[Path], folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in paths:
        stem = same_name(path.stem)
        if stem in found:
            raise UserError(f"{found[stem]} and {path.name} have the same name: which one do masks belong to?")
        found[stem] = path
    if not found:
        raise UserError(f"no pictures ({', '.join(sorted(PICTURE_SUFFIXES))}) in the folder {folder}")
    return found


def _masks_by_stem(folder: Path, soft: bool) -> dict[str, Path]:
    """What holds the masks of each NAME: a picture without loss, else a .mat file, a folder, a JPEG."""

    def rank(path: Path) -> int:
        suffix = path.suffix.lower()
        return 4 if suffix in LOSSY else 0 if suffix == ".png" else 1 if suffix in MASK_SUFFIXES else 2

    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if is_litter(path):
            continue
        if path.is_dir():
            name, place = same_name(path.name), 3
        elif path.suffix.lower() in MASK_SUFFIXES or path.suffix.lower() == ".mat":
            name, place = same_name(path.stem), rank(path)
        else:
            continue
        other = found.get(name)
        if other is None or place < (3 if other.is_dir() else rank(other)):
            found[name] = path
    return found


def _refuse_unused(found: dict[str, Path], pictures: dict, ignore: Sequence[int], variable: Optional[str], soft: bool) -> None:
    """Raise `UserError` for an option that none of the masks has a use for."""
    used = [path for stem, path in found.items() if stem in pictures]
    tables = [path for path in used if path.suffix.lower() == ".mat" and not path.is_dir()]
    plain = [path for path in used if path not in tables and not path.is_dir()]
    if used and variable is not None and not tables:
        raise UserError("--variable is for .mat files, and none of the masks is one")
    if used and soft and not plain:
        raise UserError("--soft is for NAME.png, and no picture has such a mask")
    if used and ignore and (soft or not (plain or tables)):
        raise UserError("--ignore is for index masks, and none of the masks is taken as one")


def _some(names) -> str:
    shown = sorted(names)[:3]
    return ", ".join(shown) + (", ..." if len(names) > 3 else "")


def _fitting(mask: np.ndarray, source, shape: tuple[int, int]) -> np.ndarray:
    _fit(mask, source, shape)
    return mask


def _borders(instances: list[np.ndarray]) -> bool:
    """Whether the last one takes most of the pixels around the others."""
    others = np.logical_or.reduce(instances[:-1])
    around = cv2.dilate(others.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool) & ~others
    return bool(around.any() and instances[-1][around].mean() > 0.8)


def _fit(array: np.ndarray, source, shape: tuple[int, int]) -> None:
    if array.shape[:2] != shape:
        height, width = (*array.shape, 1, 1)[:2]
        raise _OtherSize(f"{source} is {width}x{height}, but its picture is {shape[1]}x{shape[0]}", (width, height))


def _split(labels: np.ndarray, source, shape: tuple[int, int], ignore: Sequence[int]) -> list[np.ndarray]:
    """One mask for each value other than 0 and those to be ignored."""
    _fit(labels, source, shape)
    refuse_no_numbers(labels, source)
    values = [value for value in np.unique(labels).tolist() if value != 0 and value not in ignore]
    if len(values) > _MOST_INSTANCES:
        raise UserError(
            f"{source} has {len(values)} different values: that is no instance map (a photograph, or smoothed edges?); "
            "--soft takes it as the mask of one instance"
        )
    return [labels == value for value in values]


def _binary(mask: np.ndarray, source, shape: tuple[int, int]) -> np.ndarray:
    _fit(mask, source, shape)
    return half_of_largest(mask, source)


def _from_mat(
    source: Path, shape: tuple[int, int], ignore: Sequence[int], variable: Optional[str]
) -> list[np.ndarray]:
    variables = read_mat(source)
    found = _candidates(variables, shape)
    turned = _candidates(variables, shape[::-1])
    size_of_turned = shape  # (width, height): the picture's (height, width)
    if variable is not None:
        if variable not in found:
            line = f"{source} has no variable {variable!r} of its picture's size; there are: {_names(found)}"
            raise _OtherSize(line, size_of_turned) if variable in turned else UserError(line)
        value = found[variable]
    elif len(found) == 1:
        (value,) = found.values()
    else:
        line = f"{source} has {len(found) or 'no'} variables of its picture's size {shape[1]}x{shape[0]}"
        if turned and not found:
            raise _OtherSize(line, size_of_turned)
        raise UserError(line + (f": {_names(found)}; say which one" if found else ""))
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
