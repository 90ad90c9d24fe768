"""Running the network on the pictures of the goldens, and reading off what the goldens keep."""

from dataclasses import dataclass

import jittor as jt
import numpy as np

from jrdp.config import Config
from jrdp.data import transforms
from jrdp.models.rdpnet import RDPNet
from jrdp.structures import ImageBatch, Instances

PICTURES = ("a_480x320", "b_267x400", "c_500x333", "d_320x480")


def picture_batch(golden, *names: str, channel_order: str = "bgr") -> ImageBatch:
    config = Config().input
    config.channel_order = channel_order
    if channel_order == "rgb":
        config.mean = config.mean[::-1]
    images = [
        transforms.prepare_image(transforms.read_image(golden / "imgs" / f"{name}.png"), config) for name in names
    ]
    return transforms.batch_images(images)


@dataclass
class Summary:
    """A stage as the goldens keep it: its shape, L2 norm and some values."""

    shape: tuple
    norm: float
    sample: np.ndarray


def summarize(value: jt.Var, samples: int = 256) -> Summary:
    array = value.numpy()
    flat = array.reshape(-1)
    count = min(samples, flat.size)
    picks = (np.arange(count) * flat.size) // count
    return Summary(array.shape, float(np.linalg.norm(flat.astype(np.float64))), flat[picks])


@dataclass
class Forward:
    batch: ImageBatch
    stages: dict
    instances: Instances


def run(model: RDPNet, batch: ImageBatch) -> Forward:
    stages = {}
    instances = model.detect(batch, stages)[0]
    return Forward(batch, {name: summarize(value) for name, value in stages.items()}, instances)
