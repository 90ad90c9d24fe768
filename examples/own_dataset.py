"""A dataset of one's own, defined right here: python examples/own_dataset.py runs/discs

It has two methods. Pictures may also be files or PIL images, instances also polygons; see `jrdp/data/own.py`.
"""

import sys

import numpy as np

import jrdp


class Discs:
    """Bright discs on noise: the picture, RGB uint8 `[height, width, 3]`, and one mask for each disc."""

    def __init__(self, pictures: int = 64, height: int = 128, width: int = 192):
        self.pictures, self.height, self.width = pictures, height, width

    def __len__(self) -> int:
        return self.pictures

    def __getitem__(self, index: int):
        random = np.random.default_rng(index)
        picture = random.integers(0, 80, (self.height, self.width, 3), dtype=np.uint8)
        rows, columns = np.mgrid[: self.height, : self.width]
        masks = []
        for _ in range(random.integers(1, 3)):
            y, x = random.uniform(0.2, 0.8, 2) * (self.height, self.width)
            mask = (rows - y) ** 2 + (columns - x) ** 2 < random.uniform(0.1, 0.3) * self.height * 20
            picture[mask] = random.integers(150, 256, 3)
            masks.append(mask)
        return picture, masks

    def original_size(self, index: int):
        """Not needed; without it every picture is read once at the start."""
        return self.height, self.width


def main(out: str, *overrides: str) -> dict:
    def report(step) -> None:
        if step.iteration % 10 == 0:
            print(f"step {step.iteration}: masks {step.losses['loss_mask']:.3f}")

    return jrdp.train(
        "configs/quickstart.yaml", out, dataset=Discs(), on_step=report, overrides=["data.test=[]", *overrides]
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
