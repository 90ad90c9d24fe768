"""Mask pictures as people have them, read as what they are: index maps, one shape, or neither.

Smooth edges, JPEG and photographs fill an index map with values that are no instances, and an alpha channel may hold the
shape while the colours hold nothing. Both look like results, so both are recognised and refused with a way on.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from jrdp.data.transforms import read_image
from jrdp.errors import UserError

LOSSY = {".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".avif", ".heic", ".heif"}
MASK_SUFFIXES = {".png", ".bmp", ".tif", ".tiff", ".gif", *LOSSY}
_INDEXED = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L")
_MOST_GREY = 0.25  # of a mask's pixels, between a quarter and three quarters of its largest value


def index_map(path: Path) -> np.ndarray:
    """The values `[height, width]` of an index mask: grey values, palette indices, or colours as one number.

    Raises:
        UserError: where its alpha channel holds a shape that its colours do not, for lossy formats, several pages, and
            numbers that are not whole.
    """
    if path.suffix.lower() in LOSSY and not _is_lossless(path):
        raise UserError(
            f"{path} is stored with loss, which changes values, so that it is no instance map; save it as .png, or "
            "use --soft to take it as the mask of one instance"
        )
    image = _single(path)
    if image.mode in _INDEXED:
        return np.asarray(image)
    if image.mode == "F":
        return _whole(np.asarray(image), path)
    deep = _is_deep(path)
    colours, alpha = _deep_samples(path) if deep else (np.asarray(image.convert("RGB")), _alpha(image))
    bits = 16 if deep else 8
    red, green, blue = np.moveaxis(colours.astype(np.int64), 2, 0)
    values = (red << 2 * bits) + (green << bits) + blue
    if alpha is not None and ((values != 0) != (alpha != 0)).any():
        raise UserError(
            f"{path} has an alpha channel with another shape than its colours; save it without transparency, or use "
            "--soft to take the alpha channel as the mask of one instance"
        )
    return values


def shape_of(path: Path, soft: bool = False) -> np.ndarray:
    """The mask bool `[height, width]` of one instance: more than half of the largest value.

    An alpha channel that is not the same everywhere is the shape, whatever the colours are. soft: a wide grey rim, as
    networks give it, is expected.

    Raises:
        UserError: where it is empty, or no mask but a photograph, or has several pages.
    """
    image = _single(path)
    deep = image.mode not in _INDEXED and _is_deep(path)
    colours, alpha = _deep_samples(path) if deep else (None, _alpha(image))
    if alpha is not None:
        values = alpha
    elif image.mode in ("L", "1", "I", "I;16", "I;16B", "I;16L", "F"):
        values = np.asarray(image)
    elif colours is not None:
        values = colours.mean(axis=2)
    else:
        values = np.asarray(image.convert("L"))
    return half_of_largest(values, path, 2 * _MOST_GREY if soft else _MOST_GREY)


def half_of_largest(values: np.ndarray, source, most_grey: float = _MOST_GREY) -> np.ndarray:
    """Where `values` are more than half of their largest; raises `UserError` for none, and for a photograph's."""
    refuse_no_numbers(values, source)
    if not values.any():
        raise UserError(f"{source} is empty: an instance needs at least one pixel")
    values = values.astype(np.float64)
    largest = values.max()
    grey = float(((values > largest / 4) & (values < largest * 3 / 4)).mean())
    if grey > most_grey:
        raise UserError(f"{source} is no mask: {100 * grey:.0f} % of its pixels are neither bright nor dark")
    return values > largest / 2


def refuse_smooth_edges(labels: np.ndarray, source) -> None:
    """Raise `UserError` for an index map whose values come from smoothing, scaling or compressing a mask.

    Such values lie along edges: nowhere is there a square of 3 x 3 pixels of them, and each of their pixels touches a
    smaller and a larger value. Instances of an index map have their numbers in no order, and rarely so little width.
    """
    values = [value for value in np.unique(labels).tolist() if value != 0]
    thin = [value for value in values if not _has_inside(labels == value)]
    if not thin:
        return
    kernel = np.ones((3, 3), np.uint8)
    levels = np.unique(labels, return_inverse=True)[1].reshape(labels.shape).astype(np.float32)
    between = (cv2.erode(levels, kernel) < levels) & (cv2.dilate(levels, kernel) > levels)
    edges = [value for value in thin if between[labels == value].mean() > 0.8 and (labels == value).sum() >= 2]
    many = len(thin) >= 6 and 2 * len(thin) > len(values)
    if edges and (len(edges) >= 2 or np.count_nonzero(labels == edges[0]) >= 8) or many:
        count = len(thin) if many else len(edges)
        raise UserError(
            f"{source} is no instance map: {count} of its {len(values)} values are found along edges only, as smoothing, "
            "scaling or JPEG leaves them; scale index masks without interpolation, or use --soft to take it as the mask "
            "of one instance"
        )


def _has_inside(mask: np.ndarray) -> bool:
    """Whether a square of 3 x 3 pixels fits into the mask; what touches the border may go on beyond it."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    part = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(np.uint8)
    if min(part.shape) < 3:
        return False
    return bool(cv2.erode(part, np.ones((3, 3), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=0).any())


def refuse_no_numbers(values: np.ndarray, source) -> None:
    """Raise `UserError` where `values` hold NaN or infinity, which are neither background nor an instance."""
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise UserError(f"{source} holds NaN or infinity: write 0 there, which is background")


def _whole(values: np.ndarray, source) -> np.ndarray:
    refuse_no_numbers(values, source)
    if (values != np.rint(values)).any():
        raise UserError(f"{source} holds numbers that are not whole, so that it is no instance map; --soft takes it as the mask of one instance")
    return values


def _single(path: Path) -> Image.Image:
    """The picture as it is in the file; raises `UserError` where the file holds several, of which one would be read."""
    image = read_image(path, None)
    if image.info.get("first_of"):
        raise UserError(
            f"{path} holds several pages or frames, and a mask is one picture: save each as a file of its own, in a folder "
            "named after the photograph"
        )
    return image


def _is_deep(path: Path) -> bool:
    """Whether a file of several channels has 16 bits for each, of which Pillow keeps the upper 8."""
    with Image.open(path) as image:  # which has been decoded before, so that it can be opened
        return any(";16" in str(tile[3]) for tile in image.tile)


def _deep_samples(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Colours uint16 `[height, width, 3]`, RGB, and the alpha channel as `_alpha` gives it, of a file that `_is_deep`."""
    samples = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if samples is None or samples.dtype != np.uint16 or samples.ndim != 3 or samples.shape[2] not in (3, 4):
        raise UserError(f"{path} has 16 bits for each of several channels, and cannot be read so: save it as a grey picture of 16 bits")
    return samples[..., 2::-1], _varied(samples[..., 3]) if samples.shape[2] == 4 else None


def _alpha(image: Image.Image) -> np.ndarray | None:
    """The alpha channel, where it is there and not the same everywhere."""
    if image.mode not in ("RGBA", "LA", "PA", "RGBa", "La"):
        return None
    return _varied(np.asarray(image.getchannel("A")))


def _varied(alpha: np.ndarray) -> np.ndarray | None:
    return alpha if alpha.min() != alpha.max() else None


def _is_lossless(path: Path) -> bool:
    """Whether a WebP is of the lossless kind."""
    with open(path, "rb") as stream:
        start = stream.read(4096)
    return start[:4] == b"RIFF" and b"VP8L" in start
