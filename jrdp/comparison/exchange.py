"""What travels between the processes of a comparison: named arrays, and a batch with its ground truth, as .npz."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from jrdp.structures import ImageBatch, Targets


def save_arrays(path: str | Path, arrays: dict[str, np.ndarray]) -> None:
    """Write named arrays; the order of the names is kept.

    As `np.savez`, which leaves its archive open where it is interrupted: it then complains of the file that is closed.
    """
    with zipfile.ZipFile(path, "w") as archive:
        for name, value in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, np.asarray(value), allow_pickle=False)


def load_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """What `save_arrays` wrote; nothing is unpickled."""
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def save_batch(path: str | Path, batch: ImageBatch, targets: list[Targets] | None = None) -> None:
    """Write a batch and, for training, its ground truth (one `Targets` per image)."""
    arrays = {
        "images": batch.images,
        "sizes": np.array(batch.sizes, np.int64),
        "original_sizes": np.array(batch.original_sizes, np.int64),
        "image_ids": np.array(batch.image_ids, np.int64),
    }
    for image, target in enumerate(targets or []):
        arrays[f"target{image}/boxes"] = target.boxes
        arrays[f"target{image}/size"] = np.array(target.size, np.int64)
        for instance, (polygons, bitmap) in enumerate(zip(target.polygons, target.bitmaps)):
            place = f"target{image}/instance{instance}"
            if polygons is None:
                arrays[f"{place}/bitmap"] = bitmap
                continue
            for part, polygon in enumerate(polygons):
                arrays[f"{place}/part{part}"] = polygon
    save_arrays(path, arrays)


def load_batch(path: str | Path) -> tuple[ImageBatch, list[Targets]]:
    """A batch and its ground truth (an empty list where none was saved)."""
    arrays = load_arrays(path)
    sizes = _pairs(arrays["sizes"])
    batch = ImageBatch(arrays["images"], sizes, _pairs(arrays["original_sizes"]), arrays["image_ids"].tolist())
    targets = []
    for image in range(len(sizes)):
        if f"target{image}/boxes" in arrays:
            targets.append(_load_target(arrays, f"target{image}"))
    return batch, targets


def _load_target(arrays: dict[str, np.ndarray], place: str) -> Targets:
    boxes = arrays[f"{place}/boxes"]
    polygons, bitmaps = [], []
    for instance in range(len(boxes)):
        inner = f"{place}/instance{instance}"
        bitmap = arrays.get(f"{inner}/bitmap")
        parts = []
        while f"{inner}/part{len(parts)}" in arrays:
            parts.append(arrays[f"{inner}/part{len(parts)}"])
        polygons.append(parts if bitmap is None else None)
        bitmaps.append(bitmap)
    return Targets(boxes, polygons, bitmaps, tuple(arrays[f"{place}/size"].tolist()))


def _pairs(values: np.ndarray) -> list[tuple[int, int]]:
    return [(int(first), int(second)) for first, second in values]
