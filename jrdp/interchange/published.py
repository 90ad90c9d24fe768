"""Weights that others publish and the places they are looked for here: `jrdp weights`, and names instead of files.

    locate("r50_isod")     # weights/r50_isod.pth, or where $JRDP_WEIGHTS points; a path stays what it is
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jrdp.errors import UserError
from jrdp.files import sha256_of
from jrdp.interchange import packed_backbone, weight_file
from jrdp.interchange.layout import LAST_SCALE, network_layout
from jrdp.interchange.matching import match
from jrdp.interchange.tensors import as_float32
from jrdp.interchange.weight_file import SUFFIXES

FOLDER = Path("weights")  # of the working directory
VARIABLE = "JRDP_WEIGHTS"  # names one more folder
AUTHORS = "https://github.com/yuhuan-wu/RDPNet"


@dataclass(frozen=True)
class Published:
    """A checkpoint of the authors, ResNet-50.

    google, baidu: where their README links it; code: Baidu's.
    stated: mask AP, AP50 and AP70 (None: not stated) in percent, and by whom.
    config, test_set: what `jrdp test` needs to compare with that.
    """

    name: str
    dataset: str
    google: str
    baidu: str
    code: str
    stated: tuple[float, float, float | None]
    by: str
    config: str
    test_set: str
    size: str = "137 MB"

    @property
    def figures(self) -> str:
        return " ".join(f"{kind} {value}" for kind, value in zip(("AP", "AP50", "AP70"), self.stated) if value)

    @property
    def test(self) -> str:
        """The command that compares with `stated`."""
        return (
            f"jrdp test --weights {self.name} --config {self.config} --set 'data.test=[{self.test_set}]' "
            f"--out runs/test_{self.name}"
        )


PUBLISHED = (
    Published(
        "r50_isod", "ISOD", "https://drive.google.com/file/d/1P9HnPbeHKL_1EzKOcVYhjiYXyUiKCaYP",
        "https://pan.baidu.com/s/1pWCp6lwmEQW-07WGLl_zgw", "yhwu", (58.6, 88.9, 73.8), "paper",
        "configs/r50_isod.yaml", "isod_test",
    ),
    Published(
        "r50_soc", "SOC", "https://drive.google.com/file/d/1faQeoplwGPcWoMzrTHKs2YX9BYjUaCwD",
        "https://pan.baidu.com/s/1gN2a5Nd6eNBtd774uHk8XQ", "yhwu", (37.7, 59.4, 48.4), "paper",
        "configs/r50_soc.yaml", "soc_test",
    ),
    Published(
        "r50_come", "COME15K", "https://drive.google.com/drive/folders/1UoxfLQyWWqQke4mn7YWCsFMk5SU-Y6me",
        "https://pan.baidu.com/s/1qabnNtGZncmCi7UyfkOIWA", "iz2c", (43.1, 67.3, None), "authors' README",
        "configs/r50_come.yaml", "come_e_test",
    ),
)


def locate(weights: str | Path) -> Path:
    """`weights` as a path: itself where it is a file or has a suffix or a folder, else the file of that name in the places.

    The places are `weights/` and the folder that `$JRDP_WEIGHTS` names, in this order, with any suffix of a weight file.

    Raises:
        UserError: for a name without a file; for weights of the authors it says how to get them.
    """
    path = Path(weights)
    if path.exists() or path.name != str(weights) or path.suffix.lower() in SUFFIXES:
        return path
    found = _in_places(path.name)
    if found is None and path.name == packed_backbone.NAME:
        found = packed_backbone.PATH
    if found is not None:
        return found
    folders = " and ".join(str(folder) for folder in _places())
    known = any(entry.name == path.name for entry in PUBLISHED)
    where = f"`jrdp weights {path.name}` says where to get them" if known else "`jrdp weights` lists the known ones"
    raise UserError(f"no weights {path.name}: neither a file here nor {path.name}{{{','.join(SUFFIXES)}}} in {folders}; {where}")


def overview() -> str:
    """The table that `jrdp weights` prints."""
    rows = [("name", "trained on", "size", "stated mask AP (%)", "here")]
    for entry in PUBLISHED:
        here = _in_places(entry.name)
        rows.append((entry.name, entry.dataset, entry.size, f"{entry.figures} ({entry.by})", str(here or "no")))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = ["  ".join([*(cell.ljust(width) for cell, width in zip(row, widths)), row[4]]) for row in rows]
    folders = " and ".join(str(folder) for folder in _places())
    return "\n".join([*lines, f"looked for in {folders}; `jrdp weights NAME` says where to get one, and checks one that is here"])


def about(name: str) -> str:
    """What `jrdp weights NAME` prints: where to get the file, or what is in the one that is here.

    Raises:
        UserError: for an unknown name, and for a file that is not what it is called.
    """
    entry = next((entry for entry in PUBLISHED if entry.name == name), None)
    if entry is None:
        raise UserError(f"no published weights {name!r}; known: {', '.join(entry.name for entry in PUBLISHED)}")
    path = _in_places(name)
    if path is None:
        return (
            f"get:   {entry.google} ({entry.size}), or {entry.baidu} (code {entry.code}), linked by {AUTHORS}\n"
            f"put:   {FOLDER / name}.pth, or into the folder that ${VARIABLE} names\n"
            f"check: jrdp weights {name}, then {entry.test}"
        )
    count = _check(path, entry)
    return (
        f"{path}: R-50 as released, {count} tensors, all finite, {LAST_SCALE} is 1; SHA-256 {sha256_of(path)}\n"
        f"stated for it by the {entry.by}, mask: {entry.figures}\n"
        f"measure: {entry.test}"
    )


def _check(path: Path, entry: Published) -> int:
    """The number of tensors; raises `UserError` where the file is not the authors' network, or was changed."""
    file = weight_file.read(path)
    matched = match({item.name: item.shape for item in network_layout("r50")}, file)
    for tensor_name, tensor in matched.tensors.items():
        if not np.isfinite(tensor).all():
            raise UserError(f"{path}: {tensor_name} holds NaN or infinity: the file is damaged; get {entry.name} again")
    last = file.tensors.get(LAST_SCALE)
    # The released code builds this scale, starts it at 1, and never uses it: no training of theirs moves it.
    if last is None or not np.all(as_float32(last) == 1):
        what = "is missing" if last is None else f"is {float(np.ravel(as_float32(last))[0]):g}, not 1"
        raise UserError(f"{path}: {LAST_SCALE} {what}, so it is not the authors' file; get {entry.name} again")
    return len(file.tensors)


def _places() -> list[Path]:
    more = os.environ.get(VARIABLE)
    return [FOLDER, Path(more)] if more else [FOLDER]


def _in_places(name: str) -> Path | None:
    for folder in _places():
        for suffix in SUFFIXES:
            if (folder / f"{name}{suffix}").is_file():
                return folder / f"{name}{suffix}"
    return None
