"""How a network's convolutions compute: in training as `train` asks for, otherwise as they are defined."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Iterator

import jittor as jt
from jittor import nn

from jrdp.config import TrainConfig
from jrdp.engine.precision import refuse_unfit_precision
from jrdp.errors import UserError
from jrdp.fast import bfloat16, training
from jrdp.models.layers import convolve_by, use_half_convolutions


def refuse_unfit_arithmetic(train: TrainConfig) -> None:
    """Raise `UserError` for what this device does not have."""
    if jt.flags.use_cuda and train.engine == "fast":
        raise UserError("train.engine=fast is for a CPU: this run is on a GPU; leave out --set train.engine=fast")
    if not jt.flags.use_cuda and train.amp:
        raise UserError("train.amp needs a GPU: this run is on the CPU; leave out --set train.amp=true")
    refuse_unfit_precision("train.precision", train.precision)


@contextmanager
def convolutions_of_training(network: nn.Module, train: TrainConfig, asked: bool = True) -> Iterator[None]:
    """In float16 with `train.amp`, in bfloat16 with `train.precision: bfloat16`, by `jrdp.fast.training` with
    `train.engine: fast`, while the block runs.

    asked: False for the opposite: within a training, as defined while the block runs.
    """
    _switch(network, train, asked)
    try:
        yield
    finally:
        _switch(network, train, not asked)


def convolutions_as_defined(network: nn.Module, train: TrainConfig):
    """Within a training, for a block that only predicts."""
    return convolutions_of_training(network, train, asked=False)


def _switch(network: nn.Module, train: TrainConfig, asked: bool) -> None:
    use_half_convolutions(network, asked and train.amp)
    convolve_by(network, _convolution(train) if asked else nn.conv2d)


def _convolution(train: TrainConfig):
    if train.precision == "bfloat16":
        return bfloat16.convolve
    return training.convolve if train.engine == "fast" else nn.conv2d
