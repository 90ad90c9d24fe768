"""Which implementation predicts: the plain network, or on a CPU the fast engine built from its weights."""

from __future__ import annotations

import jittor as jt

from jrdp.config import Config
from jrdp.errors import UserError
from jrdp.fast.network import FastNetwork, unsupported
from jrdp.models.rdpnet import RDPNet
from jrdp.models.state import named_tensors


def for_prediction(network: RDPNet, config: Config) -> RDPNet | FastNetwork:
    """`network` itself, or a `FastNetwork` with its weights, as `test.engine` says; both have `detect(ImageBatch)`.

    "auto" is the fast engine on a CPU wherever it knows the configuration.

    Raises:
        UserError: for "fast" on a GPU, or with a part of the network that the engine does not know.
    """
    engine = config.test.engine
    if engine == "plain" or (engine == "auto" and _obstacle(config)):
        return network
    refuse_unfit_engine(config)
    return FastNetwork({name: value.numpy() for name, value in named_tensors(network).items()}, config.model)


def refuse_unfit_engine(config: Config) -> None:
    """Raise `UserError` where the fast engine cannot run `config` on the device in use."""
    reason = _obstacle(config)
    if reason:
        raise UserError(f"test.engine=fast cannot be used here ({reason}); use --set test.engine=plain")


def _obstacle(config: Config) -> str | None:
    return "it runs on the CPU only: add --device cpu" if jt.flags.use_cuda else unsupported(config.model)
