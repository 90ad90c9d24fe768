"""`jrdp data check`: every broken file and annotation of a dataset by name, and what training will leave out."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pycocotools import mask as coco_mask
from PIL import Image
from tqdm import tqdm

from jrdp.data.annotations import ImageEntry, Instance, MalformedEntry, load_json, parse_annotation, parse_image
from jrdp.data.catalog import Location, locate
from jrdp.data.coco import has_shape, usable
from jrdp.data.transforms import exif_orientation, read_image
from jrdp.errors import UserError


_FAR = 10000.0  # coordinates are cut here, because pycocotools walks along every edge, however long


@dataclass
class Report:
    """What was found in a dataset.

    problems: a line for each thing that is broken, naming the file, image or annotation.
    notes: lines about what is unusual but handled, such as crowds.
    """

    name: str
    pictures: int = 0
    instances: int = 0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.problems

    def text(self) -> str:
        """The report for people: a verdict, then every problem, then the notes."""
        verdict = "ok" if self.ok else f"{len(self.problems)} problem{'s' if len(self.problems) > 1 else ''}"
        lines = [f"{self.name}: {self.pictures} pictures, {self.instances} instances: {verdict}"]
        return "\n".join(lines + [f"  - {line}" for line in self.problems] + [f"  note: {line}" for line in self.notes])


def check_dataset(name: str, root: str | os.PathLike) -> Report:
    """Check the dataset `name` (see `catalog.locate`): its json, every annotation, and every picture, decoded in full.

    Raises:
        UserError: when the dataset is not there, or its json cannot be read as a COCO json at all.
    """
    place = locate(name, root)
    data = load_json(place.annotations)
    report = Report(name)
    images = _check_images(data["images"], report)
    instances = _check_annotations(data, images, report)
    report.pictures, report.instances = len(images), len(instances)
    _check_pictures(place, images, report)
    _note_what_training_leaves_out(images, instances, report)
    with_instances = len({instance.image_id for instance in instances})
    if place.expected_pictures is not None and with_instances != place.expected_pictures:
        report.problems.append(
            f"{place.annotations} has {with_instances} pictures with instances; {place.expected_pictures} are expected "
            "(docs/data.md)"
        )
    return report


def _check_images(entries: list, report: Report) -> dict[int, ImageEntry]:
    images: dict[int, ImageEntry] = {}
    files: dict[str, int] = {}
    for position, entry in enumerate(entries):
        try:
            image = parse_image(entry, position)
        except MalformedEntry as error:
            report.problems.append(str(error))
            continue
        if image.id in images:
            report.problems.append(f"image {image.id} occurs twice ({images[image.id].file_name}, {image.file_name})")
            continue
        if image.file_name in files:
            twin = files[image.file_name]
            report.problems.append(f"images {twin} and {image.id} are the same file {image.file_name}")
        images[image.id] = image
        files[image.file_name] = image.id
    return images


def _check_annotations(data: dict, images: dict[int, ImageEntry], report: Report) -> list[Instance]:
    """The instances that can be read, without crowds."""
    categories = {category["id"] for category in data["categories"]}
    instances, taken, crowds = [], set(), 0
    for position, entry in enumerate(data["annotations"]):
        try:
            instance = parse_annotation(entry, position, images)
        except MalformedEntry as error:
            report.problems.append(str(error))
            continue
        where = f"annotation {instance.id} ({images[instance.image_id].file_name})"
        if instance.id in taken:
            report.problems.append(f"{where}: its id occurs twice")
        taken.add(instance.id)
        if entry.get("category_id") not in categories:
            report.problems.append(f"{where}: its category {entry.get('category_id')!r} is not among the categories")
        if instance.crowd:
            crowds += 1
            continue
        instances.append(instance)
        report.problems += [f"{where}: {line}" for line in _instance_problems(instance, images[instance.image_id])]
    if crowds:
        report.notes.append(f"{crowds} crowd annotations are left out of training, and ignored in evaluation")
    return instances


def _instance_problems(instance: Instance, image: ImageEntry) -> list[str]:
    """What is wrong with the box and the shape of one instance."""
    x, y, width, height = instance.xywh
    shown = f"box x={x:g} y={y:g} width={width:g} height={height:g}"
    if width <= 0 or height <= 0:
        return [f"{shown} has no area"]
    problems = []
    if x >= image.width or y >= image.height or x + width <= 0 or y + height <= 0:
        problems.append(f"{shown} lies outside the picture of {image.width}x{image.height}")
    elif x < -1 or y < -1 or x + width > image.width + 1 or y + height > image.height + 1:
        problems.append(f"{shown} reaches beyond the picture of {image.width}x{image.height}")
    if not has_shape(instance):
        problems.append("its segmentation is empty (no polygon of at least three points, or no pixel)")
    elif mask_area(instance, image) == 0:
        problems.append("its segmentation covers no pixel")
    elif _overlap(instance.xywh, shape_bounds(instance, image)) < 0.5:
        bounds = ", ".join(f"{value:g}" for value in shape_bounds(instance, image))
        problems.append(f"{shown} does not fit its segmentation, which spans x1, y1, x2, y2 = {bounds}")
    return problems


def mask_area(instance: Instance, image: ImageEntry) -> int:
    """Pixels of the instance's mask as pycocotools draws it."""
    if instance.polygons is None:
        return int(instance.runs[1::2].sum())
    parts = [np.clip(part, -_FAR, _FAR).astype(np.float64) for part in instance.polygons]
    return int(coco_mask.area(coco_mask.merge(coco_mask.frPyObjects(parts, image.height, image.width))))


def shape_bounds(instance: Instance, image: ImageEntry) -> tuple[float, float, float, float]:
    """(x1, y1, x2, y2) of the shape as COCO measures it, without any +1: x2 is the right end of the last pixel."""
    if instance.polygons is not None:
        points = np.concatenate(instance.polygons).reshape(-1, 2)
        (x1, y1), (x2, y2) = points.min(axis=0), points.max(axis=0)
        return float(x1), float(y1), float(x2), float(y2)
    ends = np.cumsum(instance.runs)
    starts, ends = ends[0:-1:2], ends[1::2]  # of the runs of ones, in column-major pixels
    used = ends > starts
    starts, last = starts[used], ends[used] - 1
    columns = starts // image.height, last // image.height
    whole = columns[0] != columns[1]  # a run over several columns touches the top or the bottom of the picture
    top = 0 if whole.any() else int((starts % image.height).min())
    bottom = image.height if whole.any() else int((last % image.height).max()) + 1
    return float(columns[0].min()), float(top), float(columns[1].max() + 1), float(bottom)


def _overlap(xywh: tuple[float, float, float, float], bounds: tuple[float, float, float, float]) -> float:
    """Intersection over union of a COCO box and bounds, as areas without +1; sides count as at least one pixel."""
    x, y, width, height = xywh
    x1, y1, x2, y2 = bounds
    x2, y2 = max(x2, x1 + 1), max(y2, y1 + 1)
    width, height = max(width, 1), max(height, 1)
    inner = max(min(x + width, x2) - max(x, x1), 0) * max(min(y + height, y2) - max(y, y1), 0)
    return inner / (width * height + (x2 - x1) * (y2 - y1) - inner)


def _check_pictures(place: Location, images: dict[int, ImageEntry], report: Report) -> None:
    with ThreadPoolExecutor(os.cpu_count() or 1) as threads:
        found = threads.map(lambda image: _picture_problem(place, image), images.values())
        for problem in tqdm(found, total=len(images), desc=f"checking {place.name}", unit="picture", disable=None):
            if problem is not None:
                report.problems.append(problem)
    turned = sum(_has_rotation(place.images / image.file_name) for image in images.values())
    if turned:
        report.notes.append(f"{turned} pictures have an EXIF orientation, which training and testing ignore")
    known = {Path(image.file_name) for image in images.values()}
    extra = [path for path in place.images.iterdir() if path.is_file() and Path(path.name) not in known]
    if extra:
        report.notes.append(f"{len(extra)} files in {place.images} are not in {place.annotations}")


def _has_rotation(path: Path) -> bool:
    """Whether viewers turn or mirror the picture; False where it cannot be opened, which is reported elsewhere."""
    try:
        with Image.open(path) as picture:
            return exif_orientation(picture) != 1
    except Exception:  # decoders of damaged files raise almost anything
        return False


def _picture_problem(place: Location, image: ImageEntry) -> str | None:
    path = place.images / image.file_name
    try:
        picture = read_image(path)
    except UserError as error:
        return str(error)
    if picture.size == (image.width, image.height):
        return None
    problem = f"{path} is {picture.width}x{picture.height}, but image {image.id} says {image.width}x{image.height}"
    turned = picture.size[::-1] == (image.width, image.height)
    return problem + " (turned by 90 degrees: EXIF rotation is ignored here)" * turned


def _note_what_training_leaves_out(images: dict[int, ImageEntry], instances: list[Instance], report: Report) -> None:
    grouped: dict[int, list[Instance]] = {image_id: [] for image_id in images}
    for instance in instances:
        grouped[instance.image_id].append(instance)
    kept = {image_id: int(usable(images[image_id], group)[0].sum()) for image_id, group in grouped.items()}
    dropped = len(instances) - sum(kept.values())
    if dropped:
        report.notes.append(f"{dropped} instances without shape, or of at most one pixel, are left out of training")
    empty = sum(count == 0 for count in kept.values())
    if empty:
        report.notes.append(f"{empty} pictures without a usable instance are left out of training")
