"""What goes between the host's memory and a GPU's, and through which of Jittor's allocators."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Iterator

import jittor as jt
import numpy as np

from jrdp.ops import report


@contextmanager
def made_on_host() -> Iterator[list[jt.Var]]:
    """Within it, arrays become Vars in ordinary host memory, and go to the GPU when it first needs them (or by `to_gpu`).

    For what stays, weights above all. Jittor gives an array that is made for the GPU memory of a kind of its own, twice,
    on the card and pinned on the host, keeps both as long as the Var lives, and never gives back nor reuses what it once took
    for that. The block is given a list, for the Vars that are to be made so.
    """
    made: list[jt.Var] = []
    with jt.flag_scope(use_cuda=0, log_silent=1):  # silent, because Jittor says each time that it uses the GPU again
        yield made
        jt.sync(made)


def to_gpu(variables: list[jt.Var]) -> None:
    """Take what was made on the host to the GPU, where Jittor computes there, so that what does not fit is said now."""
    if jt.flags.use_cuda:
        jt.sync([report([], [variable.float32()]) for variable in variables])


def fetch(variable: jt.Var) -> np.ndarray:
    """`variable.numpy()`; from a GPU through pinned memory, which Jittor keeps for the next time, in one copy by the card."""
    if not jt.flags.use_cuda:
        return variable.numpy()
    with jt.flag_scope(use_cuda_host_allocator=1):
        return variable.numpy()
