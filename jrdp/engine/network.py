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

    "auto" is the fast engine on a CPU wherever it knows the configuration and every layer of the network.

    Raises:
        UserError: for "fast" on a GPU, or with a part of the network that the engine does not know.
    """
    engine = config.test.engine
    if engine == "plain" or (engine == "auto" and (_obstacle(config) or foreign_layer(network))):
        return network
    refuse_unfit_engine(config)
    foreign = foreign_layer(network)
    if foreign:
        raise UserError(
            f"test.engine=fast cannot be used here (it does not know the network's {foreign}); use --set test.engine=plain"
        )
    return FastNetwork({name: value.numpy() for name, value in named_tensors(network).items()}, config.model)


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
    reason = _obstacle(config)
    if reason:
        raise UserError(f"test.engine=fast cannot be used here ({reason}); use --set test.engine=plain")


def _obstacle(config: Config) -> str | None:
    return "it runs on the CPU only: add --device cpu" if jt.flags.use_cuda else unsupported(config.model)
