"""The embedded sample set: generated pictures of textured objects with exact masks, for trying everything out.

Nothing is downloaded and nothing is random beyond the seed. Objects are bright and saturated and lie, partly
overlapping, on muted backgrounds, so that even a network that starts from random weights learns them in minutes.
"""

from __future__ import annotations

import colorsys
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from jrdp.dataset_tools.outline import trace
from jrdp.data.rle import encode_mask, encode_mask_as_list
from jrdp.errors import UserError
from jrdp.files import make_folder, read_json, write_json
from jrdp.visualize import save_image

_SIZES = [(240, 160), (240, 160), (160, 240), (216, 176), (176, 224)]  # width, height
_FINER = 4  # outlines are drawn so many times finer, for smooth edges
_DESCRIPTION = "jrdp sample set: generated pictures with exact masks"
_FIRST_VAL_ID = 10001


class SampleSet(NamedTuple):
    """Where the sample set lies; as text, the names under which it can be trained and tested on."""

    images: Path
    train: Path
    val: Path

    def __str__(self) -> str:
        return f"to train on: {self.images}:{self.train}\nto test on:  {self.images}:{self.val}"


def write_sample(directory: str | os.PathLike, train: int = 64, val: int = 16, seed: int = 0) -> SampleSet:
    """Write `imgs/`, `train.json` and `val.json` (COCO) below `directory`; the same seed gives the same files.

    Pictures hold 1 to 3 instances. Masks are exact to the pixel, and are written in turn as polygons along the pixel
    edges, as compressed and as uncompressed RLE; shapes with a hole always as RLE.

    Raises:
        UserError: when something cannot be written, or would replace annotations of another dataset.
    """
    folder = Path(directory)
    for name in ("train", "val"):
        _refuse_other_dataset(folder / f"{name}.json")
    images = make_folder(folder / "imgs")
    for part, (name, count, first_id) in enumerate((("train", train, 1), ("val", val, _FIRST_VAL_ID))):
        entries: list[dict] = []
        annotations: list[dict] = []
        for number in range(count):
            width, height = _SIZES[number % len(_SIZES)]
            pixels, masks = draw_picture(np.random.default_rng([seed, part, number]), width, height)
            entry = {"id": first_id + number, "file_name": f"{name}_{number:03d}.png", "width": width, "height": height}
            save_image(pixels, images / entry["file_name"])
            entries.append(entry)
            for mask in masks:
                annotations.append(_annotation(len(annotations) + 1, entry["id"], mask))
        categories = [{"id": 1, "name": "salient"}]
        info = {"description": _DESCRIPTION, "seed": seed}
        content = {"info": info, "categories": categories, "images": entries, "annotations": annotations}
        write_json(folder / f"{name}.json", content)
    return SampleSet(images, folder / "train.json", folder / "val.json")


def _refuse_other_dataset(path: Path) -> None:
    """Raise `UserError` for annotations that are not an earlier sample's: somebody's work would be replaced."""
    if not path.exists():
        return
    data = read_json(path, "annotations")
    info = data.get("info") if isinstance(data, dict) else None
    if not isinstance(info, dict) or info.get("description") != _DESCRIPTION:
        raise UserError(f"{path} is there already and is not of a sample set: give another folder")


def _annotation(annotation_id: int, image_id: int, mask: np.ndarray) -> dict:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    polygons, holes = trace(mask)
    if annotation_id % 3 and not holes:
        segmentation = polygons
    elif annotation_id % 2:
        segmentation = encode_mask(mask)
    else:
        segmentation = encode_mask_as_list(mask)
    x, y = int(columns[0]), int(rows[0])
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": 1,
        "iscrowd": 0,
        "area": int(mask.sum()),
        "bbox": [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y],
        "segmentation": segmentation,
    }


def draw_picture(random: np.random.Generator, width: int, height: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """A picture, uint8 `[height, width, 3]` RGB, and bool masks `[height, width]` of what one sees of each object."""
    count = int(random.choice([1, 2, 3], p=[0.3, 0.45, 0.25]))
    coverages = _place_objects(random, width, height, count)
    pixels = _background(random, width, height)
    first_hue = random.random()
    for number, coverage in enumerate(coverages):
        pixels *= 1 - 0.45 * _shadow(coverage)[:, :, None]
        colour = _object_texture(random, coverage, first_hue + number / len(coverages))
        pixels = pixels * (1 - coverage[:, :, None]) + colour * coverage[:, :, None]
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8), _visible(coverages)


def _visible(coverages: list[np.ndarray]) -> list[np.ndarray]:
    """Masks of the objects, each without what later ones hide of it."""
    masks, hidden = [], np.zeros(coverages[0].shape, dtype=bool)
    for coverage in reversed(coverages):
        solid = coverage >= 0.5
        masks.append(solid & ~hidden)
        hidden |= solid
    return masks[::-1]


def _place_objects(random: np.random.Generator, width: int, height: int, count: int) -> list[np.ndarray]:
    """Coverages 0..1 `[height, width]` of objects that overlap a little, drawn until each is well visible."""
    while True:
        columns = random.permutation(count)
        coverages = []
        for column in columns:
            spread = min(0.48, 0.62 / count**0.45)  # alone no larger than in pairs: FCOS sees all on one level at 128 x 192
            size = min(width, height) * spread * random.uniform(0.75, 1.0)
            along, across = (column + 0.5) / count, random.uniform(0.38, 0.62)
            x, y = (along, across) if width >= height else (across, along)
            centre = (width * (0.5 + 0.8 * (x - 0.5)), height * (0.5 + 0.8 * (y - 0.5)))
            coverages.append(_draw_shape(random, width, height, centre, size))
        masks = _visible(coverages)
        shares = [mask.sum() / (coverage >= 0.5).sum() for mask, coverage in zip(masks, coverages)]
        overlap = sum((coverage >= 0.5).astype(int) for coverage in coverages).max() > 1
        if min(shares) > 0.6 and (count == 1 or overlap):
            return coverages


def _draw_shape(random: np.random.Generator, width: int, height: int, centre: tuple[float, float], size: float):
    """Coverage of a random shape about `centre`, up to `size` pixels from it."""
    angle = np.arange(0, 2 * np.pi, np.pi / 90)
    kind = random.choice(["ellipse", "blob", "star", "polygon", "ring", "flower"])
    stretch = random.uniform(0.65, 1.0)
    if kind == "blob":
        radius = 0.78 + sum(random.uniform(0, 0.26) / k * np.sin(k * angle + random.uniform(0, 6.3)) for k in (2, 3, 4))
    elif kind == "star":
        points = int(random.integers(5, 7))
        radius = np.interp((angle * points / np.pi) % 2, [0, 1, 2], [1.05, 0.52, 1.05])
    elif kind == "polygon":
        corners = int(random.integers(3, 7))
        radius = np.cos(np.pi / corners) / np.cos((angle % (2 * np.pi / corners)) - np.pi / corners)
    elif kind == "flower":
        radius = 0.82 + 0.18 * np.cos(int(random.integers(5, 8)) * angle)
    else:
        radius = np.full_like(angle, 0.9)
    turn = random.uniform(0, 2 * np.pi)
    cosine, sine = np.cos(turn), np.sin(turn)
    u, v = size * radius * np.cos(angle), size * radius * np.sin(angle) * stretch
    outline = np.stack([centre[0] + u * cosine - v * sine, centre[1] + u * sine + v * cosine], axis=1)
    canvas = Image.new("L", (width * _FINER, height * _FINER))
    draw = ImageDraw.Draw(canvas)
    draw.polygon([tuple(point) for point in outline * _FINER], fill=255)
    if kind == "ring":
        inner = np.asarray(centre) + 0.42 * (outline - centre)
        draw.polygon([tuple(point) for point in inner * _FINER], fill=0)
    return np.asarray(canvas.resize((width, height), Image.BOX), dtype=np.float64) / 255


def _shadow(coverage: np.ndarray) -> np.ndarray:
    """A soft shadow below and to the right of an object, 0..1."""
    image = Image.fromarray(np.rint(coverage * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(6))
    shadow = np.zeros(coverage.shape)
    shadow[5:, 4:] = np.asarray(image, dtype=np.float64)[:-5, :-4] / 255
    return shadow


def _rgb(hue: float, saturation: float, value: float) -> np.ndarray:
    return 255 * np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value))


def _noise(random: np.random.Generator, width: int, height: int, cell: int) -> np.ndarray:
    """Smooth noise of about `cell` pixels, -1..1 `[height, width]`."""
    coarse = random.integers(0, 256, (height // cell + 3, width // cell + 3), dtype=np.uint8)
    fine = Image.fromarray(coarse).resize((coarse.shape[1] * cell, coarse.shape[0] * cell), Image.BICUBIC)
    return np.asarray(fine, dtype=np.float64)[cell : cell + height, cell : cell + width] / 127.5 - 1


def _background(random: np.random.Generator, width: int, height: int) -> np.ndarray:
    """A muted, softly textured surface, float64 `[height, width, 3]`."""
    hue, tilt = random.random(), random.uniform(-1, 1)
    value = random.uniform(0.34, 0.6)
    dark, bright = _rgb(hue, 0.22, value), _rgb(hue + 0.06, 0.14, value + 0.2)
    y, x = np.mgrid[:height, :width]
    mix = 0.5 + 0.35 * (y / height - 0.5) + 0.35 * tilt * (x / width - 0.5)
    mix += 0.22 * _noise(random, width, height, 40) + 0.12 * _noise(random, width, height, 10)
    mix += 0.10 * _noise(random, width, height, 3)
    return dark + (bright - dark) * mix[:, :, None]


def _object_texture(random: np.random.Generator, coverage: np.ndarray, hue: float) -> np.ndarray:
    """Bright pattern with a light from the top left over the whole picture, float64 `[height, width, 3]`."""
    height, width = coverage.shape
    y, x = np.mgrid[:height, :width]
    weight = coverage.sum()
    centre_x, centre_y = (coverage * x).sum() / weight, (coverage * y).sum() / weight
    extent = np.sqrt(weight / np.pi)
    turn, period = random.uniform(0, np.pi), extent * random.uniform(0.35, 0.6)
    u = ((x - centre_x) * np.cos(turn) + (y - centre_y) * np.sin(turn)) / period
    v = ((y - centre_y) * np.cos(turn) - (x - centre_x) * np.sin(turn)) / period
    pattern = random.choice(["stripes", "checks", "dots", "rings", "plain"])
    if pattern == "stripes":
        mix = np.clip(0.5 + 2 * np.sin(2 * np.pi * u), 0, 1)
    elif pattern == "checks":
        mix = np.clip(0.5 + 3 * np.sin(np.pi * u) * np.sin(np.pi * v), 0, 1)
    elif pattern == "dots":
        mix = np.clip(4 * (0.35 - np.hypot(u - np.rint(u), v - np.rint(v))) + 0.5, 0, 1)
    elif pattern == "rings":
        mix = np.clip(0.5 + 2 * np.sin(2 * np.pi * np.hypot(u, v)), 0, 1)
    else:
        mix = 0.5 + 0.5 * _noise(random, width, height, 24)
    colour = _rgb(hue, 0.92, 0.95)
    other = _rgb(hue + random.choice([-0.07, 0.07]), 0.6, 1.0) if pattern != "plain" else _rgb(hue + 0.05, 0.95, 0.7)
    light = 1.05 - 0.22 * ((x - centre_x) + (y - centre_y)) / extent / 1.4 + 0.05 * _noise(random, width, height, 4)
    return (colour + (other - colour) * mix[:, :, None]) * np.clip(light, 0.6, 1.25)[:, :, None]
