"""Where datasets lie: the names of the released layout, and any COCO json as `images_folder:annotations.json`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from jrdp.config import Config
from jrdp.errors import UserError
from jrdp.files import protect, refuse_url


@dataclass(frozen=True)
class Entry:
    """A named dataset: paths below `data.root`, and how many of its pictures have instances, as published."""

    images: str
    annotations: str
    pictures: int


# Sources of the counts are in docs/data.md. SOC counts its salient pictures only.
CATALOG = {
    "isod_train": Entry("isod/imgs", "isod/train.json", 500),
    "isod_test": Entry("isod/imgs", "isod/test.json", 300),
    "soc_train": Entry("soc/imgs", "soc/train.json", 1800),
    "soc_val": Entry("soc/imgs", "soc/val.json", 600),
    "soc_test": Entry("soc/imgs", "soc/test.json", 600),
    "come_train": Entry("COME15K/COME/RGB", "COME15K/train.json", 8025),
    "come_e_test": Entry("COME15K/COME-E/RGB", "COME15K/test_e.json", 4600),
    "come_h_test": Entry("COME15K/COME-H/RGB", "COME15K/test_h.json", 3000),
}


@dataclass(frozen=True)
class Location:
    """A dataset found on disk. `expected_pictures` is None where nothing is published about it."""

    name: str
    images: Path
    annotations: Path
    expected_pictures: Optional[int]


def locate(name: str, root: str | os.PathLike) -> Location:
    """The dataset called `name`: one of `CATALOG` below `root`, or `images_folder:annotations.json`.

    The two paths of the second form are taken from the working directory where they exist there, else from `root`. The
    annotations are an input from now on: nothing replaces them.

    Raises:
        UserError: for an unknown name, or when the folder or the json is not there (the message says where they
            should be).
    """
    entry = CATALOG.get(name)
    if entry is not None:
        images, annotations = Path(root) / entry.images, Path(root) / entry.annotations
        expected = entry.pictures
    elif "://" in name:
        refuse_url(name)
        raise UserError(f"dataset {name!r} is not of the form images_folder:annotations.json")
    elif ":" in name:
        first, second = name.rsplit(":", 1)
        if not first or not second:
            raise UserError(f"dataset {name!r} is not of the form images_folder:annotations.json")
        images, annotations = _find(first, root), _find(second, root)
        expected = None
    else:
        raise UserError(
            f"unknown dataset {name!r}: it is none of {', '.join(CATALOG)} and not of the form "
            "images_folder:annotations.json"
        )
    missing = []
    if not images.is_dir():
        missing.append(f"the folder {images}")
    if not annotations.is_file():
        missing.append(f"the file {annotations}")
    if missing:
        raise UserError(
            f"dataset {name} is not there: missing {' and '.join(missing)}; "
            "see docs/data.md for where to get it, and data.root for where it is looked for"
        )
    protect(annotations)
    return Location(name, images, annotations, expected)


def _find(path: str, root: str | os.PathLike) -> Path:
    here, below = Path(path), Path(root) / path
    return below if not here.exists() and below.exists() else here


def load_dataset(names: list[str], config: Config, training: bool):
    """The datasets `names` as one: a `CocoDataset`, or a `JoinedDataset` of several.

    Raises:
        UserError: for a missing dataset, malformed annotations, and pictures that are not there.
    """
    from jrdp.data.coco import CocoDataset, JoinedDataset

    if not names:
        raise UserError("no dataset is named: set data.train or data.test to a list of datasets")
    places = [locate(name, config.data.root) for name in names]
    parts = [CocoDataset(place.images, place.annotations, config.input, training) for place in places]
    for part in parts:
        part.refuse_missing_pictures()
    return parts[0] if len(parts) == 1 else JoinedDataset(parts)
