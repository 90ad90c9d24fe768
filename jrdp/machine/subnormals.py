"""Keeps the numbers nearest to zero: no kernel that is loaded changes how this process computes.

g++ before version 13 links into every library that is compiled with -Ofast, as Jittor's kernels are, an object that makes
the thread that loads the library take all numbers below 1.2e-38 for zero from then on: this thread, not the others that
compute beside it, and the host's own NumPy with it. What a training computes would depend on which thread loaded a
kernel when, so on what the process did before: a resumed run would not be equal to one that was left alone. Without that
object arithmetic is everywhere as IEEE 754 has it, and as PyTorch leaves it.
"""

from __future__ import annotations

import re
import subprocess

from jrdp.machine.cache import fingerprint, own_folder, replace_file

_OBJECT = "crtfastmath"
# In g++'s specs, what is linked at a library's end, and there the choice "with one of these options, that object".
_AT_THE_END = re.compile(r"^\*endfile:\n(.*)$", re.MULTILINE)
_CHOICE = re.compile(r"%\{[^{}:;]*:\s*" + _OBJECT + r"\.o%s\s*;?\s*\}")


def flags(compiler: str) -> str:
    """What to add to the command line of kernels so that `compiler` leaves the object out; empty where it does anyway.

    Writes a file of specs below Jittor's cache. For another compiler than g++, and for specs of another form, nothing is
    added. Raises `OSError` where the file cannot be written.
    """
    specs = _run(compiler, "-dumpspecs")
    found = _AT_THE_END.search(specs)
    if found is None or not _links_it(compiler):
        return ""
    without = _CHOICE.sub("", found.group(1))
    if _OBJECT in without:
        return ""
    text = f"*endfile:\n{without}\n\n"
    file = own_folder() / f"kernels-{fingerprint(text)}.specs"
    replace_file(file, text)
    return f"-specs={file}"


def _links_it(compiler: str) -> bool:
    told = _run(compiler, "-Ofast", "-shared", "-fPIC", "-###", "-x", "c++", "/dev/null", "-o", "/dev/null")
    return _OBJECT in told


def _run(compiler: str, *arguments: str) -> str:
    """What it prints, on either stream; nothing where it does not run."""
    if not compiler:
        return ""
    try:
        done = subprocess.run([compiler, *arguments], capture_output=True, text=True, errors="replace")
    except OSError:
        return ""
    return done.stdout + done.stderr if done.returncode == 0 else ""
