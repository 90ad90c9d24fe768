"""Data-parallel training over MPI, with Jittor's own engine (`mpirun -np 2 jrdp train ...`).

Every rank computes its slice of the global batch. Losses are divided by counts of the whole batch, so that two ranks
give the gradients of one rank with the doubled batch; the released code divides by each process's own counts (convention 33).
"""

from __future__ import annotations

import jittor as jt
import numpy as np


def rank() -> int:
    return jt.rank if jt.in_mpi else 0


def world_size() -> int:
    return jt.world_size if jt.in_mpi else 1


def is_main() -> bool:
    return rank() == 0


def all_reduce(values: np.ndarray) -> np.ndarray:
    """The mean of float32 `values` over the ranks; `values` itself in a single process.

    A loss divided by the mean count, with gradients averaged over the ranks as Jittor's optimizers do, is the loss of
    the whole batch divided by the total count.
    """
    if not jt.in_mpi:
        return values
    return jt.array(np.asarray(values, dtype=np.float32)).mpi_all_reduce("mean").numpy()


def mean_over_ranks(values: dict[str, float]) -> dict[str, float]:
    if not jt.in_mpi:
        return values
    return dict(zip(values, all_reduce(np.array(list(values.values()), dtype=np.float32)).tolist()))
