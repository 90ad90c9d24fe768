"""Which pictures make up which batch: a pure function of the seed and the epoch, so that any iteration can be found."""

from __future__ import annotations

from typing import Sequence

import numpy as np


def aspect_group(height: int, width: int) -> int:
    """0 for landscape, 1 for portrait and square pictures (convention 28)."""
    return int(height / width >= 1)


def grouped_batches(order: Sequence[int], groups: Sequence[int], batch_size: int) -> list[list[int]]:
    """`order` cut into batches of pictures of one group each (convention 28).

    Within a group the order is kept, and the last batch of a group may be incomplete. The batches are sorted by where
    their first picture stands in `order`.
    """
    members: dict[int, list[int]] = {}
    for position, index in enumerate(order):
        members.setdefault(groups[index], []).append(position)
    batches = [
        positions[start : start + batch_size]
        for positions in members.values()
        for start in range(0, len(positions), batch_size)
    ]
    return [[order[position] for position in batch] for batch in sorted(batches)]


def batches_per_epoch(groups: Sequence[int], batch_size: int) -> int:
    counts = np.unique(np.asarray(groups), return_counts=True)[1]
    return int(sum(-(-count // batch_size) for count in counts))


def epoch_plan(
    groups: Sequence[int], batch_size: int, flip_probability: float, seed: int, epoch: int
) -> list[list[tuple[int, bool]]]:
    """The batches of an epoch, each a list of (picture index, whether it is mirrored); a pure function."""
    random = np.random.default_rng([seed, epoch])
    order = random.permutation(len(groups)).tolist()
    flips = random.random(len(groups)) < flip_probability
    batches = grouped_batches(order, groups, batch_size)
    return [[(index, bool(flips[index])) for index in batch] for batch in batches]


def share_of_rank(batch: list, rank: int, world_size: int) -> list:
    """The contiguous share of a global batch that `rank` of `world_size` computes.

    A batch with fewer pictures than ranks is repeated, so that no rank has nothing to do.
    """
    if len(batch) < world_size:
        return [batch[rank % len(batch)]]
    return batch[rank * len(batch) // world_size : (rank + 1) * len(batch) // world_size]
