"""Jittor's own source in one stable place, so that what it compiled survives a new virtual environment.

Jittor's cache path contains a hash of the folder it is imported from, and every compile command names that folder: the
same release in another virtual environment compiles everything again (three to six minutes). So the installed package
is copied, unchanged, under Jittor's cache folder, in a folder named after a digest of its contents, and imported from
there. Any change to the installed files gives another digest, hence another copy and another cache.
"""

from __future__ import annotations

import compileall
import hashlib
import importlib.util
import json
import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Optional

from jrdp.machine.cache import build_folder, fingerprint, own_folder, replace_file, short

PACKAGES = ("jittor", "jittor_utils")


def installed_site() -> Optional[Path]:
    """The folder on `sys.path` that holds both packages of Jittor, or None."""
    spec = importlib.util.find_spec("jittor")
    if spec is None or spec.origin is None:
        return None
    site = Path(spec.origin).parent.parent
    return site if (site / "jittor_utils" / "__init__.py").is_file() else None


def stable_copy(site: Path, version: str) -> Path:
    """A copy of the Jittor in `site` that keeps its path when `site` moves; `site` itself when it is that copy."""
    if site.parent == own_folder():
        return site
    target = own_folder() / f"jittor-{version}-{_digest(site)}"
    return build_folder(target, lambda new: _copy(site, new))


def kernel_python(copy: Path) -> Path:
    """A script that runs this Python's base interpreter with the stable copy on its path.

    Jittor compiles each CPU kernel through a Python program of its own, and the interpreter's path is part of what it
    compares to decide whether a kernel is up to date: with the interpreter of a virtual environment, every environment
    would compile all kernels again.
    """
    base = os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)
    folder, program = shlex.quote(str(copy)), shlex.quote(base)
    text = f'#!/bin/sh\nPYTHONPATH={folder}${{PYTHONPATH:+:$PYTHONPATH}} exec {program} "$@"\n'
    script = own_folder() / f"python-{fingerprint(text)}"
    replace_file(script, text, executable=True)
    return script


def _copy(site: Path, folder: Path) -> None:
    for package in PACKAGES:
        shutil.copytree(site / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
        # Where Python may not keep bytecode itself (PYTHONDONTWRITEBYTECODE, as in many containers, or a cache that is
        # read-only to its users), it would compile all of this at each start.
        compileall.compile_dir(folder / package, quiet=2)


def _digest(site: Path) -> str:
    """Eight hexadecimal digits of the contents; remembered per site as long as no size or time of a file changes."""
    files = _files(site)
    stamp = hashlib.sha256()
    for name, path in files:
        status = os.stat(path)
        stamp.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
    memo = own_folder() / "digests" / f"{hashlib.sha256(os.fsencode(site)).hexdigest()[:16]}.json"
    try:
        known = json.loads(memo.read_text())
        if known["stamp"] == stamp.hexdigest():
            return str(known["digest"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    contents = hashlib.sha256()
    for name, path in files:
        contents.update(os.fsencode(name) + b"\0" + hashlib.sha256(Path(path).read_bytes()).digest())
    digest = short(contents.hexdigest())
    replace_file(memo, json.dumps({"site": str(site), "stamp": stamp.hexdigest(), "digest": digest}))
    return digest


def _files(site: Path) -> list[tuple[str, str]]:
    found = []
    for package in PACKAGES:
        for folder, folders, names in os.walk(site / package):
            folders[:] = sorted(f for f in folders if f != "__pycache__")
            for name in sorted(names):
                path = os.path.join(folder, name)
                found.append((os.path.relpath(path, site), path))
    return found
