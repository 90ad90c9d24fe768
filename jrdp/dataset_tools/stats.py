"""`jrdp data stats`: instances per picture, areas and aspect ratios of a dataset, as numbers and as a plot."""

from __future__ import annotations

import io
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jrdp.data.annotations import has_shape, mask_area, read_annotations
from jrdp.data.catalog import locate
from jrdp.files import write_bytes

_SMALL, _MEDIUM = 32**2, 96**2  # COCO's limits of small and medium areas, in pixels


@dataclass
class Statistics:
    """One dataset in numbers; crowds are not counted.

    instances_per_picture: int `[N]`, one for each picture.
    areas: float64 `[G]`, mask pixels of each instance. shares: the same as a share of the picture, 0..1.
    box_ratios: float64 `[G]`, width / height of the box. picture_ratios: float64 `[N]`, width / height.
    picture_sizes: int `[N, 2]`, width and height.
    """

    name: str
    instances_per_picture: np.ndarray
    areas: np.ndarray
    shares: np.ndarray
    box_ratios: np.ndarray
    picture_ratios: np.ndarray
    picture_sizes: np.ndarray

    def as_dict(self) -> dict:
        """Plain numbers for json. Quantities that no instance defines are null."""
        counts = Counter(self.instances_per_picture.tolist())
        return {
            "name": self.name,
            "pictures": len(self.instances_per_picture),
            "instances": len(self.areas),
            "instances_per_picture": {
                "mean": _rounded(self.instances_per_picture.mean() if len(self.instances_per_picture) else None),
                "histogram": {str(count): counts[count] for count in sorted(counts)},
            },
            "sizes": {
                "small": int((self.areas < _SMALL).sum()),
                "medium": int(((self.areas >= _SMALL) & (self.areas < _MEDIUM)).sum()),
                "large": int((self.areas >= _MEDIUM).sum()),
            },
            "area": _spread(self.areas),
            "area_share_of_picture": _spread(self.shares),
            "box_width_over_height": _spread(self.box_ratios),
            "picture_width_over_height": _spread(self.picture_ratios),
            "picture_width": _spread(self.picture_sizes[:, 0]),
            "picture_height": _spread(self.picture_sizes[:, 1]),
            "landscape_pictures": int((self.picture_ratios > 1).sum()),
            "portrait_or_square_pictures": int((self.picture_ratios <= 1).sum()),
        }

    def text(self) -> str:
        """A short table for people."""
        values = self.as_dict()
        pictures = max(values["pictures"], 1)
        lines = [f"{self.name}: {values['pictures']} pictures, {values['instances']} instances"]
        lines.append("  instances per picture: " + ", ".join(
            f"{count}: {number} ({100 * number / pictures:.0f} %)"
            for count, number in values["instances_per_picture"]["histogram"].items()
        ))  # fmt: skip
        sizes = values["sizes"]
        shown = ", ".join(str(sizes[key]) for key in ("small", "medium", "large"))
        lines.append(f"  small (< 32^2), medium, large (>= 96^2): {shown}")
        for key, title in (
            ("area_share_of_picture", "area as a share of the picture"),
            ("box_width_over_height", "box width / height"),
            ("picture_width_over_height", "picture width / height"),
            ("picture_width", "picture width"),
            ("picture_height", "picture height"),
        ):
            spread = values[key]
            if spread is not None:
                shown = ", ".join(f"{name} {spread[name]:g}" for name in ("min", "p25", "median", "p75", "max"))
                lines.append(f"  {title}: {shown}")
        return "\n".join(lines)

    def plot(self, path: str | os.PathLike) -> Path:
        """Four histograms as PNG. Raises `UserError` when `path` cannot be written."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from jrdp.evaluation.curves import plain_text

        figure = Figure(figsize=(10, 7), layout="constrained")
        FigureCanvasAgg(figure)
        figure.suptitle(f"{plain_text(self.name)}: {len(self.instances_per_picture)} pictures, {len(self.areas)} instances")
        counts, shares, boxes, pictures = figure.subplots(2, 2).ravel()
        most = int(self.instances_per_picture.max(initial=1))
        counts.hist(self.instances_per_picture, bins=np.arange(-0.5, most + 1.5), rwidth=0.8)
        counts.set(title="instances per picture", xlabel="instances", ylabel="pictures")
        shares.hist(100 * self.shares, bins=np.arange(0, 101, 5))
        shares.set(title="area of an instance", xlabel="% of the picture", ylabel="instances")
        for axes, ratios, what in ((boxes, self.box_ratios, "instances"), (pictures, self.picture_ratios, "pictures")):
            axes.hist(np.log2(ratios), bins=np.arange(-3, 3.01, 0.25))
            ticks = np.arange(-3, 4)
            axes.set_xticks(ticks, [f"{2.0**tick:g}" for tick in ticks])
            axes.set(xlabel="width / height", ylabel=what)
        boxes.set_title("aspect ratio of boxes")
        pictures.set_title("aspect ratio of pictures")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=110)
        write_bytes(path, buffer.getvalue())
        return Path(path)


def dataset_statistics(name: str, root: str | os.PathLike) -> Statistics:
    """Statistics of the dataset `name` (see `catalog.locate`), from its json alone.

    Instances without shape, or whose box has no area, are not counted.

    Raises:
        UserError: for a missing dataset or malformed annotations.
    """
    place = locate(name, root)
    annotations = read_annotations(place.annotations)
    images = annotations.images
    per_picture = dict.fromkeys(images, 0)
    areas, shares, ratios = [], [], []
    for instance in annotations.instances:
        if instance.crowd or not has_shape(instance) or min(instance.xywh[2:]) <= 0:
            continue
        image = images[instance.image_id]
        per_picture[image.id] += 1
        areas.append(mask_area(instance, image))
        shares.append(areas[-1] / (image.width * image.height))
        ratios.append(instance.xywh[2] / instance.xywh[3])
    sizes = np.array([(image.width, image.height) for image in images.values()], dtype=np.int64).reshape(-1, 2)
    return Statistics(
        name,
        np.array(list(per_picture.values()), dtype=np.int64),
        np.array(areas, dtype=np.float64),
        np.array(shares, dtype=np.float64),
        np.array(ratios, dtype=np.float64),
        sizes[:, 0] / sizes[:, 1],
        sizes,
    )


def _rounded(value) -> float | None:
    return None if value is None else float(f"{float(value):.6g}")


def _spread(values: np.ndarray) -> dict | None:
    if len(values) == 0:
        return None
    low, first, middle, third, high = np.percentile(values, [0, 25, 50, 75, 100])
    named = {"min": low, "p25": first, "median": middle, "mean": values.mean(), "p75": third, "max": high}
    return {name: _rounded(value) for name, value in named.items()}
