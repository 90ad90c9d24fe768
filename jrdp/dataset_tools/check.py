"""`jrdp data check`: every broken file and annotation of a dataset by name, and what training will leave out."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from jrdp.boxes import overlap
from jrdp.data.annotations import (
    Annotations,
    ImageEntry,
    ImageId,
    Instance,
    MalformedEntry,
    crowd_hint,
    has_shape,
    is_share,
    load_json,
    mask_area,
    read_id,
    scan,
    shape_bounds,
)
from jrdp.data.catalog import Location, locate
from jrdp.data.coco import exif_hint, usable
from jrdp.data.folders import is_litter
from jrdp.data.naming import backslash_hint, find_picture, has_lost_backslashes, other_picture_hint, same_name
from jrdp.data.transforms import exif_orientation, read_image
from jrdp.errors import UserError


_NAMED = 10  # entries with the same fault that are named


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


def check_dataset(name: str, root: str | os.PathLike, upright: bool = False) -> Report:
    """Check the dataset `name` (see `catalog.locate`): its json, every annotation, and every picture, decoded in full.

    upright: the annotations are those of pictures turned as their EXIF orientation says (input.exif: apply).

    Raises:
        UserError: when the dataset is not there, or its json cannot be read as a COCO json at all.
    """
    place = locate(name, root)
    data = load_json(place.annotations)
    report = Report(name)
    read = _read(data, report)
    images, instances = read.images, read.instances
    report.pictures, report.instances = len(images), len(instances)
    _check_pictures(place, images, report, upright)
    _note_what_training_leaves_out(images, instances, report)
    with_instances = len({instance.image_id for instance in instances})
    if place.expected_pictures is not None and with_instances != place.expected_pictures:
        report.problems.append(
            f"{place.annotations} has {with_instances} pictures with instances; {place.expected_pictures} are expected "
            "(docs/data.md)"
        )
    return report


class _Faults:
    """Faults by kind: a kind is one line with its first entry in full, and how many others have it."""

    def __init__(self) -> None:
        self._found: dict[str, list[tuple[str, str]]] = {}  # kind -> (entry, cause)

    def add(self, error: MalformedEntry) -> None:
        self._found.setdefault(error.kind, []).append((error.entry, error.cause))

    def has(self, kind: str) -> bool:
        return kind in self._found

    def lines(self) -> list[str]:
        lines = []
        for faults in self._found.values():
            (entry, cause), others = faults[0], [entry for entry, _ in faults[1:]]
            shown = ", ".join(others[:_NAMED]) + (", ..." if len(others) > _NAMED else "")
            lines.append(f"{entry}{'' if cause.startswith(':') else ' '}{cause}" + (f" (and {len(others)} more: {shown})" if others else ""))
        return lines


def _read(data: dict, report: Report) -> Annotations:
    """What can be read; instances are without crowds."""
    faults = _Faults()
    categories = {str(read_id(category["id"])) for category in data["categories"]}  # 1 and "1" are the same
    taken: set[ImageId] = set()
    shapes: list[Instance] = []

    def look(entry: dict, instance: Instance) -> None:
        name = f"annotation {instance.id}"
        if instance.id in taken:
            faults.add(MalformedEntry(name, "has an id that occurs twice"))
        taken.add(instance.id)
        if str(read_id(entry.get("category_id"))) not in categories:
            cause = f"has the category {entry.get('category_id')!r:.60}, which is not among the categories"
            faults.add(MalformedEntry(name, cause, "category"))
        if not instance.crowd:
            shapes.append(instance)

    read = scan(data, faults.add, look)
    files: dict[str, ImageId] = {}
    for image in read.images.values():
        if image.file_name in files:
            cause = f"are the same file {image.file_name}"
            faults.add(MalformedEntry(f"images {files[image.file_name]} and {image.id}", cause, "same file"))
        files[image.file_name] = image.id
    for instance in shapes:
        image = read.images[instance.image_id]
        for kind, line in _instance_problems(instance, image):
            faults.add(MalformedEntry(f"annotation {instance.id} ({image.file_name})", f": {line}", kind))
    report.problems += faults.lines()
    crowds = len(read.instances) - len(shapes)
    if crowds and not shapes:
        report.problems.append(f"there is no instance to train on or to test for{crowd_hint(crowds, crowds)}")
    elif crowds:
        report.notes.append(f"{crowds} crowd annotations are left out of training, and ignored in evaluation")
    return Annotations(read.images, shapes, read.category_ids)


def _instance_problems(instance: Instance, image: ImageEntry) -> list[tuple[str, str]]:
    """What is wrong with the box and the shape of one instance: pairs of a kind and a line."""
    x, y, width, height = instance.xywh
    shown = f"box x={x:g} y={y:g} width={width:g} height={height:g}"
    if width <= 0 or height <= 0:
        return [("no area", f"{shown} has no area")]
    problems = []
    if is_share(instance.xywh):
        problems.append(("share", f"{shown} is smaller than a pixel: shares of the picture's sides?"))
    if x >= image.width or y >= image.height or x + width <= 0 or y + height <= 0:
        problems.append(("outside", f"{shown} lies outside the picture of {image.width}x{image.height}"))
    elif x < -1 or y < -1 or x + width > image.width + 1 or y + height > image.height + 1:
        problems.append(("beyond", f"{shown} reaches beyond the picture of {image.width}x{image.height}"))
    if not has_shape(instance):
        line = "its segmentation is empty or missing (no polygon of at least three points, or no pixel)"
        problems.append(("no shape", line))
    elif mask_area(instance, image) == 0:
        problems.append(("no pixel", "its segmentation covers no pixel"))
    elif overlap(instance.xywh, shape_bounds(instance, image)) < 0.5:
        bounds = ", ".join(f"{value:g}" for value in shape_bounds(instance, image))
        problems.append(("no fit", f"{shown} does not fit its segmentation, which spans x1, y1, x2, y2 = {bounds}"))
    return problems


def _check_pictures(place: Location, images: dict[ImageId, ImageEntry], report: Report, upright: bool) -> None:
    lost = [image for image in images.values() if has_lost_backslashes(place.images, image)]
    if lost:
        more = f" (and {len(lost) - 1} more)" if len(lost) > 1 else ""
        report.problems.append(f"image {lost[0].id}{more} {backslash_hint(lost[0])}")
    looked_at = [image for image in images.values() if image not in lost]
    turned = 0
    faults = _Faults()
    with ThreadPoolExecutor(os.cpu_count() or 1) as threads:
        found = threads.map(lambda image: _look_at_picture(place, image, upright), looked_at)
        bar = tqdm(found, total=len(looked_at), desc=f"checking {place.name}", unit="picture", disable=None)
        for image, (problem, has_rotation) in zip(looked_at, bar):
            turned += has_rotation
            if problem is not None:
                faults.add(problem if faults.has(problem.kind) else _with_hint(problem, place, image))
    report.problems += faults.lines()
    if turned:
        report.notes.append(
            f"{turned} pictures have an EXIF orientation, which training and testing ignore: right for annotations in the "
            "file's own pixels; --set input.exif=apply is for those of the turned picture"
        )
    known = {Path(same_name(image.file_name)) for image in images.values()}
    extra = [
        path
        for path in place.images.iterdir()
        if path.is_file() and not is_litter(path) and Path(same_name(path.name)) not in known
    ]
    if extra:
        report.notes.append(f"{len(extra)} files in {place.images} are not in {place.annotations}")


def _look_at_picture(place: Location, image: ImageEntry, upright: bool) -> tuple[MalformedEntry | None, bool]:
    """What is wrong with the picture, if anything, and whether it has an orientation that is not followed."""
    path = find_picture(place.images, image.file_name)
    try:
        picture = read_image(path, upright=upright)
    except UserError as error:
        reason = str(error).replace(f"cannot read image {path}", "")
        return MalformedEntry(str(path), reason, reason), False
    return _size_problem(path, picture, image), not upright and exif_orientation(picture) != 1


def _with_hint(problem: MalformedEntry, place: Location, image: ImageEntry) -> MalformedEntry:
    """A problem that will be shown in full; which other file is meant is looked for among all, so for no other one."""
    there = os.path.exists(find_picture(place.images, image.file_name))
    hint = "" if there else other_picture_hint(place.images, image.file_name)
    return MalformedEntry(problem.entry, problem.cause + hint, problem.kind)


def _size_problem(path: Path, picture: Image.Image, image: ImageEntry) -> MalformedEntry | None:
    if picture.size == (image.width, image.height):
        return None
    hint = exif_hint(picture, image)
    cause = f"is {picture.width}x{picture.height}, but image {image.id} says {image.width}x{image.height}{hint}"
    return MalformedEntry(str(path), cause, f"is of another size{hint}")


def _note_what_training_leaves_out(images: dict[ImageId, ImageEntry], instances: list[Instance], report: Report) -> None:
    grouped: dict[ImageId, list[Instance]] = {image_id: [] for image_id in images}
    for instance in instances:
        grouped[instance.image_id].append(instance)
    kept = {image_id: int(usable(images[image_id], group)[0].sum()) for image_id, group in grouped.items()}
    dropped = len(instances) - sum(kept.values())
    if dropped:
        report.notes.append(f"{dropped} instances without shape, or of at most one pixel, are left out of training")
    empty = sum(count == 0 for count in kept.values())
    if empty:
        report.notes.append(f"{empty} pictures without a usable instance are left out of training")
