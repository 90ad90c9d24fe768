"""The C++ headers of our own operators in one stable place, so that what was compiled from them can be found again.

Jittor's key of a compiled operator contains the path of the headers it includes: included from the package itself,
every virtual environment and every clone would compile all of them again. So they are copied under Jittor's cache
folder, to a folder named after a digest of their contents, and included from there. An edited header gives another
digest, hence another path and another operator.
"""

from __future__ import annotations

from pathlib import Path

from jrdp.machine.cache import build_folder, fingerprint, own_folder, replace_file


def stable_headers(folder: Path) -> Path:
    """A copy of the files in `folder` (which has no folders in it) that keeps its path when the package moves.

    A copy that exists is compared with `folder`; what is missing from it or was changed in it is put right.
    """
    texts = {path.name: path.read_text(encoding="utf-8") for path in sorted(folder.iterdir()) if path.is_file()}
    digest = fingerprint(*(part for item in texts.items() for part in item))
    target = own_folder() / f"headers-{folder.parent.name}-{digest}"
    build_folder(target, lambda new: _write(new, texts))
    _write(target, texts)
    return target


def _write(folder: Path, texts: dict[str, str]) -> None:
    for name, text in texts.items():
        replace_file(folder / name, text)
