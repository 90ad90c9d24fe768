"""The Jittor network's decisions in one training step."""

from __future__ import annotations

from typing import Any

import jittor as jt
import numpy as np

from jrdp.comparison.choices import MAPS, Decisions, pooling_choice
from jrdp.models.fcos_decode import decode_vars
from jrdp.models.fcos_targets import assign_targets, locations
from jrdp.models.layers import watching_relus
from jrdp.models.rdpnet import RDPNet
from jrdp.models.shapes import LEVELS, STRIDES
from jrdp.structures import ImageBatch, Targets


def watched_losses(
    model: RDPNet, batch: ImageBatch, targets: list[Targets]
) -> tuple[dict[str, jt.Var], dict[str, jt.Var], list[jt.Var]]:
    """The losses, the stages and the outputs of the ReLUs, in order: nothing is fetched yet."""
    stages: dict[str, jt.Var] = {}
    with watching_relus() as relus:
        losses = model.losses(batch, targets, stages=stages)
    kept = {f"{name}_P{level}": stages[f"{name}_P{level}"] for name in MAPS for level in LEVELS}
    return losses, kept, relus


def read_decisions(
    model: RDPNet, batch: ImageBatch, targets: list[Targets], stages: dict[str, jt.Var], relus: list[jt.Var]
) -> Decisions:
    """What `watched_losses` saw. Boxes and targets are chosen again, by the same functions from the same maps."""
    output = [[stages[f"{name}_P{level}"] for level in LEVELS] for name in MAPS]
    found = decode_vars(*output, batch.sizes, model.config.fcos)
    rois, masks = model.mask_targets(found, targets)
    points = [locations(*x.shape[2:], stride) for x, stride in zip(output[0], STRIDES)]
    assigned = assign_targets(points, [target.boxes for target in targets])
    maps = {name: value.numpy() for name, value in stages.items()}
    first = relus[0].numpy()
    height, width = batch.sizes[0]
    whole = np.array([[0, 0, 0, width - 1, height - 1]], np.float32)
    return Decisions(
        relus=[first > 0, *[x.numpy() > 0 for x in relus[1:]]],
        pooling=[pooling_choice(first)],
        smaller=_smaller(maps, assigned, [len(level) for level in points]),
        positive=assigned.positive,
        maps=maps,
        proposals=[(each.boxes, each.scores) for each in found],
        rois=rois if len(rois) else whole,
        masks=masks,
    )


def _smaller(maps: dict[str, np.ndarray], assigned: Any, lengths: list[int]) -> np.ndarray:
    parts, start = [np.zeros((0, 4), bool)], 0
    for level, length in zip(LEVELS, lengths):
        given = maps[f"bbox_reg_P{level}"]
        given = given.reshape(len(given), 4, -1).transpose(0, 2, 1)  # [N, h * w, 4]
        here = slice(start, start + length)
        for image, positive in enumerate(assigned.positive[:, here]):
            parts.append(given[image][positive] < assigned.distances[image, here][positive])
        start += length
    return np.concatenate(parts)
