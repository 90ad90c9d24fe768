"""Pictures for people: instances drawn on a photograph, index masks, and sheets of several pictures.

All pictures are RGB uint8 `[height, width, 3]`. Contours, scores and captions scale with the picture.
"""

from __future__ import annotations

import io
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from jrdp.errors import UserError
from jrdp.files import atomic_write
from jrdp.png import encode_png

# Bright hues that stay apart from each other and from most photographs; the first few serve nearly every picture.
_PALETTE = np.array(
    [
        (255, 77, 77), (46, 196, 255), (255, 205, 41), (57, 217, 128), (190, 110, 255), (255, 140, 38),
        (255, 105, 195), (0, 214, 196), (165, 224, 56), (96, 125, 255), (214, 150, 110), (235, 235, 245),
    ],
    dtype=np.uint8,
)  # fmt: skip
_PAPER = (255, 255, 255)
_INK = (31, 41, 51)


def colors(count: int) -> np.ndarray:
    """`count` RGB colours, uint8 `[count, 3]`: twelve chosen ones, then hues by the golden angle."""
    if count <= len(_PALETTE):
        return _PALETTE[:count]
    extra = np.arange(count - len(_PALETTE))
    hsv = np.stack([(extra * 137.508 / 2) % 180, 150 + 90 * (extra % 2), 255 - 60 * (extra % 3)], axis=1)
    rgb = cv2.cvtColor(hsv.astype(np.uint8)[None], cv2.COLOR_HSV2RGB)[0]
    return np.concatenate([_PALETTE, rgb])


def overlay(
    photo: np.ndarray,
    masks: np.ndarray,
    boxes: np.ndarray | None = None,
    scores: np.ndarray | None = None,
    labels: Sequence[str] | None = None,
    palette: np.ndarray | None = None,
    alpha: float = 0.45,
) -> np.ndarray:
    """The photograph with every instance tinted, outlined and labelled; the photograph itself is not changed.

    masks: bool `[K, height, width]`. boxes: `[K, 4]` (x1, y1, x2, y2), drawn as frames where given, thin ones where
    there is a mask too. scores: `[K]`, written on the instance where given, and then higher scores lie on top;
    `labels` replaces the written text. Instance k's colour is `palette[k]`, by default `colors(K)[k]`.
    Raises `ValueError` where the masks do not fit the photograph.
    """
    photo = _as_picture(photo)
    height, width = photo.shape[:2]
    masks = np.asarray(masks).astype(bool)
    if masks.ndim != 3 or masks.shape[1:] != (height, width):
        raise ValueError(f"masks {masks.shape} do not fit a photograph of {height} x {width} (height x width)")
    windows = [_window(mask) for mask in masks]
    if scores is None:  # small instances on top of the large ones that they may lie on
        order = np.argsort([-np.count_nonzero(mask) for mask in masks], kind="stable")
    else:
        order = np.argsort(np.asarray(scores), kind="stable")
    palette = colors(len(masks)) if palette is None else palette
    line = _line_width(height, width)
    picture = photo.copy()
    drawn = [int(k) for k in order if windows[k] is not None]
    levels = np.arange(256, dtype=np.float32)[:, None] * np.float32(1 - alpha)
    for k in drawn:
        part = picture[windows[k]]  # a view
        tinted = cv2.LUT(part, (levels + palette[k] * np.float32(alpha) + 0.5).astype(np.uint8)[:, None])
        np.copyto(part, tinted, where=masks[k][windows[k]][:, :, None])
    for k in drawn:  # after every tint, so that no tint dulls a contour
        _draw_contour(picture, masks[k], palette[k], line)
    if boxes is not None:
        for k in order:
            x1, y1, x2, y2 = (int(round(float(value))) for value in boxes[k])
            frame = line + 1 if windows[k] is None else max(1, line // 2)  # without a mask the box is all there is
            cv2.rectangle(picture, (x1, y1), (x2, y2), palette[k].tolist(), frame, cv2.LINE_AA)
    if labels is None and scores is not None:
        labels = [f"{float(score):.2f}" for score in scores]
    if labels is not None:
        # The best instance chooses its label's place first.
        labelled = [int(k) for k in order[::-1] if boxes is not None or windows[k] is not None]
        anchors = {k: _label_anchor(masks[k], windows[k], None if boxes is None else boxes[k]) for k in labelled}
        _draw_labels(picture, anchors, labels, palette)
    return picture


def index_mask(masks: np.ndarray) -> np.ndarray:
    """`[height, width]`: 0 is background and k + 1 is the instance `masks[k]`; where masks overlap the first wins.

    masks: bool `[K, height, width]`, highest score first, so that higher scores lie on top. uint8 up to 255
    instances, else uint16.
    """
    masks = np.asarray(masks)
    index = np.zeros(masks.shape[1:], dtype=np.uint8 if len(masks) <= 255 else np.uint16)
    for k in range(len(masks) - 1, -1, -1):
        index[masks[k].astype(bool)] = k + 1
    return index


def save_index_mask(masks: np.ndarray, path: str | Path) -> None:
    """Write `index_mask(masks)` as a PNG in one step: coloured by a palette up to 255 instances, else 16-bit grey."""
    index = index_mask(masks)
    palette = np.concatenate([np.zeros((1, 3), np.uint8), colors(255)]) if index.dtype == np.uint8 else None
    with atomic_write(path) as stream:
        stream.write(encode_png(index, palette))


def save_image(picture: np.ndarray, path: str | Path) -> None:
    """Write a picture in one step; the suffix (.png, .jpg, .webp, ...) chooses the format.

    Raises `UserError` for a suffix that names no picture format and where the file cannot be written.
    """
    path = Path(path)
    file_format = Image.registered_extensions().get(path.suffix.lower())
    if file_format is None or file_format not in Image.SAVE:
        raise UserError(f"cannot write {path}: {path.suffix or 'no suffix'} is no picture format; use .png or .jpg")
    picture = _as_picture(picture)
    with atomic_write(path) as stream:
        if file_format == "PNG":
            stream.write(encode_png(picture))
        else:
            Image.fromarray(picture).save(stream, file_format)


def encode_jpeg(picture: np.ndarray, quality: int = 88) -> bytes:
    """The picture as a JPEG file's content."""
    buffer = io.BytesIO()
    Image.fromarray(_as_picture(picture)).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def panels(pictures: Sequence[np.ndarray], titles: Sequence[str] = (), height: int | None = None) -> np.ndarray:
    """Pictures side by side at one height (default: the first one's), each under its title.

    For photo | ground truth | prediction; pictures of one photograph keep one size.
    """
    return mosaic(pictures, columns=len(pictures), titles=titles, height=height)


def mosaic(
    pictures: Sequence[np.ndarray],
    columns: int = 4,
    titles: Sequence[str] = (),
    height: int | None = None,
    gap: int | None = None,
) -> np.ndarray:
    """A contact sheet: rows of `columns` pictures, every picture `height` pixels high, on white.

    titles: above the pictures of the first row, one per column, or above every picture. height: default the first
    picture's. Rows are scaled a little, up to a third, so that they end at one width; else they are centred.
    Raises `ValueError` for no picture.
    """
    if len(pictures) == 0 or columns < 1:
        raise ValueError("a sheet needs at least one picture and one column")
    if len(titles) not in (0, min(columns, len(pictures)), len(pictures)):
        raise ValueError(f"{len(titles)} titles for {len(pictures)} pictures in {columns} columns")
    height = len(pictures[0]) if height is None else height
    gap = max(4, height // 40) if gap is None else gap
    head_size = _font_size(height, height)
    starts = range(0, len(pictures), columns)
    groups = [[_as_picture(picture) for picture in pictures[start : start + columns]] for start in starts]
    # The width of a row whose pictures are `height` high, without its gaps.
    natural = [sum(height * picture.shape[1] / len(picture) for picture in group) for group in groups]
    full = [value for value, group in zip(natural, groups) if len(group) == len(groups[0])]
    wanted = float(np.median(full))
    rows = []
    for start, group, width in zip(starts, groups, natural):
        scale = wanted / width if 3 / 4 <= wanted / width <= 4 / 3 else 1.0
        size = (max(1, round(height * scale)), max(len(group), round(width * scale)))
        rows.append(_row(group, titles[start : start + columns], size, gap, head_size))
    width = max(row.shape[1] for row in rows)
    sheet = np.full((sum(len(row) for row in rows) + gap * (len(rows) + 1), width + 2 * gap, 3), _PAPER, np.uint8)
    top = gap
    for row in rows:
        left = gap + (width - row.shape[1]) // 2
        sheet[top : top + len(row), left : left + row.shape[1]] = row
        top += len(row) + gap
    return sheet


def _row(
    pictures: Sequence[np.ndarray], titles: Sequence[str], size: tuple[int, int], gap: int, head_size: int
) -> np.ndarray:
    """Pictures side by side; size: (height, width) of all of them together, without the gaps and titles."""
    height, width = size
    aspects = np.cumsum([0.0] + [picture.shape[1] / len(picture) for picture in pictures])
    edges = np.round(aspects / aspects[-1] * width).astype(int)  # rounded together, so that rows end at one width
    head = 2 * head_size if any(titles) else 0
    row = np.full((head + height, width + gap * (len(pictures) - 1), 3), _PAPER, dtype=np.uint8)
    for position, picture in enumerate(pictures):
        left, right = edges[position] + position * gap, edges[position + 1] + position * gap
        if position < len(titles) and titles[position]:
            _draw_title(row[:head, left:right], titles[position], head_size)
        row[head:, left:right] = resized(picture, height, max(1, right - left))
    return row


def _draw_title(strip: np.ndarray, text: str, size: int) -> None:
    """Write `text` into the middle of `strip`, shortened to its width."""
    font = _font(size)
    if font.getlength(text) > strip.shape[1]:
        while len(text) > 1 and font.getlength(text + "…") > strip.shape[1]:
            text = text[:-1]
        text += "…"
    image = Image.fromarray(strip)
    ImageDraw.Draw(image).text((strip.shape[1] / 2, len(strip) / 2), text, font=font, fill=_INK, anchor="mm")
    strip[:] = np.asarray(image)


def _draw_contour(picture: np.ndarray, mask: np.ndarray, color: np.ndarray, line: int) -> None:
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, contours, -1, color.tolist(), line, cv2.LINE_AA)


def _label_anchor(
    mask: np.ndarray, window: tuple[slice, slice] | None, box: np.ndarray | None
) -> tuple[float, float, bool]:
    """(x, y, centred): where a label stands; its bottom is at y, and x is its middle or its left end.

    At the box's top left corner where boxes are drawn, else above the mask's highest pixels.
    """
    if box is not None:
        return float(box[0]), float(box[1]), False
    top = window[0].start
    return float(np.flatnonzero(mask[top]).mean()), float(top), True


def _draw_labels(picture: np.ndarray, anchors: dict, labels: Sequence[str], palette: np.ndarray) -> None:
    """A coloured chip with dark or light text for each instance, moved down past the chips before it."""
    height, width = picture.shape[:2]
    font = _font(_font_size(height, width))
    ascent, descent = font.getmetrics()
    pad = max(2, ascent // 4)
    chip_height = ascent + descent // 2 + pad
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    taken: list[tuple[int, int, int, int]] = []
    for k, (x, y, centred) in anchors.items():
        chip_width = int(font.getlength(labels[k])) + 2 * pad
        left = round(min(max(x - (chip_width / 2 if centred else 0), 0), max(width - chip_width, 0)))
        top = round(min(max(y - chip_height, 0), max(height - chip_height, 0)))
        for _ in range(len(taken)):
            below = [
                t[3] + 1
                for t in taken
                if left < t[2] and left + chip_width > t[0] and top < t[3] and top + chip_height > t[1]
            ]
            if not below or max(below) + chip_height > height:
                break
            top = max(below)
        taken.append((left, top, left + chip_width, top + chip_height))
        corners = (left, top, left + chip_width - 1, top + chip_height - 1)
        color = tuple(palette[k].tolist())
        luminance = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]
        draw.rounded_rectangle(corners, radius=max(1, chip_height // 5), fill=color)
        ink = (20, 24, 28) if luminance > 115 else (255, 255, 255)
        draw.text((left + chip_width / 2, top + chip_height / 2), labels[k], font=font, fill=ink, anchor="mm")
    picture[:] = np.asarray(image)


def _window(mask: np.ndarray) -> tuple[slice, slice] | None:
    """Rows and columns that the mask spans, so that work stays inside; None for an empty mask."""
    columns = np.flatnonzero(mask.any(axis=0))
    if columns.size == 0:
        return None
    rows = np.flatnonzero(mask.any(axis=1))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def _line_width(height: int, width: int) -> int:
    return max(1, round((height * width) ** 0.5 / 220))


def _font_size(height: int, width: int) -> int:
    return max(11, round((height * width) ** 0.5 / 28))


@lru_cache(maxsize=8)
def _font(size: int) -> ImageFont.FreeTypeFont:
    # DejaVu Sans comes with matplotlib; found without importing it, which would take longer than the drawing.
    package = Path(find_spec("matplotlib").origin).parent
    return ImageFont.truetype(str(package / "mpl-data" / "fonts" / "ttf" / "DejaVuSans-Bold.ttf"), size)


def resized(picture: np.ndarray, height: int, width: int | None = None) -> np.ndarray:
    """The picture at another size; without `width`, in its own proportions."""
    if width is None:
        width = max(1, round(picture.shape[1] * height / len(picture)))
    if picture.shape[:2] == (height, width):
        return picture
    shrinking = height < len(picture)
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA if shrinking else cv2.INTER_CUBIC)


def _as_picture(picture: np.ndarray) -> np.ndarray:
    picture = np.asarray(picture)
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        raise ValueError(f"a picture is RGB uint8 [height, width, 3], not {picture.dtype} {list(picture.shape)}")
    return picture
