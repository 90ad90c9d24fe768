"""From photographs to instances in photograph pixels: the loop that testing and predicting share."""

from __future__ import annotations

import numpy as np

from jrdp import boxes
from jrdp.machine import gpu_failure
from jrdp.structures import ImageBatch, Instances


def to_photograph(instances: Instances, original_size: tuple[int, int]) -> Instances:
    """Detections in network pixels -> in the photograph's, by the ratio of sizes: no -1/+1, no clip (convention 21)."""
    height, width = original_size
    resized = boxes.resize(instances.boxes, instances.size, original_size)
    return Instances(resized, instances.scores, instances.mask_probabilities, (height, width))


def detect_batch(network, batch: ImageBatch) -> list[Instances]:
    """Instances of each photograph of the batch, without pasted masks; `network` has `detect(ImageBatch)`.

    Raises:
        UserError: if the GPU's memory is full or the GPU fails.
    """
    with gpu_failure.explained(lambda: f"with {described(batch)}"):
        detected = network.detect(batch)
    return [to_photograph(found, size) for found, size in zip(detected, batch.original_sizes)]


def described(batch: ImageBatch) -> str:
    """How much a batch is, for an error: "2 pictures of 320x480", height x width as they are given to the network."""
    count, _, height, width = batch.images.shape
    return f"{count} picture{'s' if count > 1 else ''} of {height}x{width}"


def sorted_by_score(instances: Instances) -> Instances:
    """Highest score first; equal scores keep the network's order."""
    return instances.select(np.argsort(-instances.scores, kind="stable"))
