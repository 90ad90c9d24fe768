"""How training pictures are varied beside mirroring: their size and their colours. All of it is off by default.

What is drawn for a picture is a pure function of the seed, the epoch and the picture, as its mirroring is, so that a
resumed run sees what the uninterrupted one saw.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Optional

import numpy as np
from PIL import Image, ImageEnhance

from jrdp.config import DataConfig

_STREAM = 1  # of random numbers, beside the one for order and mirroring


class Look(NamedTuple):
    """How one picture is varied.

    min_size: its short side in place of `input.min_size`, None for that; the long side's limit changes with it.
    brightness, contrast, saturation: factors, 1 leaves the picture as it is.
    hue: a turn of the colour circle, in whole turns; 0 leaves it.
    """

    min_size: Optional[int] = None
    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0


PLAIN = Look()


@dataclass(frozen=True)
class Augmentation:
    """What looks are drawn from. See the fields of the same names in `DataConfig`."""

    min_sizes: tuple[int, ...] = ()
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0

    @staticmethod
    def of(config: DataConfig) -> Augmentation:
        return Augmentation(
            tuple(config.min_sizes), config.brightness, config.contrast, config.saturation, config.hue
        )

    def looks(self, pictures: int, seed: int, epoch: int) -> list[Look] | None:
        """The look of every picture in an epoch; None where nothing is varied."""
        if self == Augmentation():
            return None
        random = np.random.default_rng([seed, epoch, _STREAM])
        sizes = random.integers(0, max(1, len(self.min_sizes)), pictures)
        shares = random.uniform(-1, 1, (pictures, 4))
        strengths = (self.brightness, self.contrast, self.saturation, self.hue)
        looks = []
        for size, share in zip(sizes, shares):
            brightness, contrast, saturation, hue = (float(x * s) for x, s in zip(share, strengths))
            min_size = self.min_sizes[size] if self.min_sizes else None
            looks.append(Look(min_size, 1 + brightness, 1 + contrast, 1 + saturation, hue))
        return looks


def change_colours(image: Image.Image, look: Look) -> Image.Image:
    """An RGB picture with brightness, contrast, saturation and hue of `look`, in this order."""
    for enhance, factor in (
        (ImageEnhance.Brightness, look.brightness),
        (ImageEnhance.Contrast, look.contrast),
        (ImageEnhance.Color, look.saturation),
    ):
        if factor != 1:
            image = enhance(image).enhance(factor)
    if look.hue:
        turn = round(look.hue * 256)
        hue, saturation, value = image.convert("HSV").split()
        image = Image.merge("HSV", (hue.point(lambda x: (x + turn) % 256), saturation, value)).convert("RGB")
    return image
