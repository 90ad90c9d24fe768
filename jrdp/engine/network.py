"""Which implementation predicts: the plain network, or on a CPU the fast engine built from its weights."""

from __future__ import annotations

from typing import Mapping

import jittor as jt
import numpy as np

from jrdp.config import Config, TestConfig
from jrdp.engine.precision import refuse_unfit_precision
from jrdp.errors import UserError
from jrdp.fast.network import FastNetwork, unsupported
from jrdp.models.rdpnet import RDPNet
from jrdp.models.state import named_tensors


def for_prediction(network: RDPNet, config: Config) -> RDPNet | FastNetwork:
    """`network` itself, or a `FastNetwork` with its weights, as `test.engine` says; both have `detect(ImageBatch)`.

    "auto" is the fast engine on a CPU wherever it knows the configuration and every layer of the network.

    Raises:
        UserError: for "fast" or a precision that only it has on a GPU, with a part of the network that the engine does not
            know, or on a processor that has not this precision.
    """
    if not predicts_fast(config):
        return network
    foreign = foreign_layer(network)
    if foreign and asks_for_fast(config.test):
        _refuse(config.test, f"it does not know the network's {foreign}")
    if foreign:
        return network
    return fast_network({name: value.numpy() for name, value in named_tensors(network).items()}, config)


def predicts_fast(config: Config) -> bool:
    """Whether the fast engine is to predict for a network that is as `config` says. Raises `UserError` as `for_prediction`."""
    if not asks_for_fast(config.test) and (config.test.engine == "plain" or _obstacle(config)):
        return False
    refuse_unfit_engine(config)
    return True


def fast_network(tensors: Mapping[str, np.ndarray], config: Config) -> FastNetwork:
    """The engine with these tensors in the precision of `config.test`."""
    return FastNetwork(tensors, config.model, dtype="bfloat16" if config.test.precision == "bfloat16" else "float32")


def asks_for_fast(test: TestConfig) -> bool:
    """Whether nothing but the fast engine is what `test` asks for."""
    return test.engine == "fast" or test.precision == "bfloat16"


def foreign_layer(network: jt.nn.Module) -> str | None:
    """A layer of a class that is neither ours nor Jittor's own, which the fast engine has no equal of; None without one.

    Its tensors may have the names and shapes that the engine knows, so that they alone would not tell.
    """
    for name, module in network.named_modules():
        home = type(module).__module__
        if not home.startswith(("jrdp.models.", "jittor.")):
            return f"{name or 'network'} ({home}.{type(module).__qualname__})"
    return None


def refuse_unfit_engine(config: Config) -> None:
    """Raise `UserError` where the fast engine cannot run `config` on the device in use."""
    refuse_unfit_precision("test.precision", config.test.precision)
    reason = _obstacle(config)
    if reason:
        _refuse(config.test, reason)


def _refuse(test: TestConfig, reason: str) -> None:
    if test.engine == "fast":
        raise UserError(f"test.engine=fast cannot be used here ({reason}); use --set test.engine=plain")
    raise UserError(f"test.precision=bfloat16 needs the fast engine ({reason}); use --set test.precision=float32")


def _obstacle(config: Config) -> str | None:
    return "it runs on the CPU only: add --device cpu" if jt.flags.use_cuda else unsupported(config.model)
