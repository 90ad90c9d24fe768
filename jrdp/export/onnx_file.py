"""A weight file as an ONNX file with the whole network in it, preprocessing, decoding and suppression included."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Sequence

from jrdp import interchange
from jrdp.config import Config, ModelConfig
from jrdp.engine.weights import config_of
from jrdp.errors import UserError
from jrdp.files import write_bytes
from jrdp.interchange.layout import shapes_of
from jrdp.models.shapes import RESNETS


def export(
    target: str | Path, weights: str | Path, config: str | Path | Config | None = None, overrides: Sequence[str] = ()
) -> str:
    """Write the network of `weights` to `target` (.onnx); returns one line that describes it.

    Its input is `image`, RGB uint8 `[height, width, 3]`, a picture of any size (resized as the weights were trained, for
    which see the file's metadata); its outputs are `boxes` `[K, 4]` in that picture's pixels, `scores` `[K]` and `masks`
    `[K, 32, 32]`, the probabilities within each box, in the order of `RDPNet.detect`.

    Raises:
        UserError: without the `onnx` package, for weights that do not fit the configuration, a part of the network that
            the export does not know, or a file that cannot be written.
    """
    if Path(target).suffix != ".onnx":
        raise UserError(f"cannot export to {target}: the name has to end in .onnx")
    try:
        importlib.import_module("onnx")  # what jrdp/export/graph.py builds with, asked for before weights are read
    except ImportError as error:
        raise UserError("jrdp export needs the onnx package: pip install 'jrdp[onnx]'") from error
    file = interchange.read(weights)
    chosen = config_of(file, config, list(overrides))
    model = build(file, chosen)
    data = model.SerializeToString()
    write_bytes(target, data)
    return f"{target}: {len(model.graph.node)} operators, {len(data) / 2**20:.0f} MiB; {file.likeness}"


def unsupported(config: ModelConfig) -> str | None:
    """Why this network cannot be exported; None when it can."""
    from jrdp.export.onnx_network import ENHANCEMENTS

    if config.backbone.name not in RESNETS:
        return f"it does not know model.backbone.name: {config.backbone.name}, only {', '.join(RESNETS)}"
    if config.pyramid.enhancement not in ENHANCEMENTS:
        known = ", ".join(ENHANCEMENTS)
        return f"it does not know model.pyramid.enhancement: {config.pyramid.enhancement}, only {known}"
    if config.mask.head != "multi_level":
        return f"it does not know model.mask.head: {config.mask.head}, only multi_level"
    return None


def build(file: interchange.WeightFile, config: Config):
    """The `onnx.ModelProto` of `config`'s network with the tensors of `file`.

    Raises:
        UserError: for a network that the export does not know, or tensors that are not exactly those of the network.
    """
    from jrdp.export import onnx_network
    from jrdp.export.onnx_decoding import decode
    from jrdp.export.graph import Graph

    model = config.model
    problem = unsupported(model)
    if problem is not None:
        raise UserError(f"this network cannot be exported to ONNX: {problem}")
    graph = Graph(interchange.match(shapes_of(model), file).tensors)
    x = onnx_network.preprocess(graph, "image", config.input)
    levels = onnx_network.pyramid(graph, onnx_network.backbone(graph, x, model), model)
    boxes, _ = decode(graph, onnx_network.head(graph, levels), "image", model.fcos, ("boxes", "scores"))
    onnx_network.masks(graph, levels, boxes, "masks")
    return graph.model(
        inputs=[("image", "uint8", ["height", "width", 3])],
        outputs=[
            ("boxes", "float32", ["instances", 4]),
            ("scores", "float32", ["instances"]),
            ("masks", "float32", ["instances", 32, 32]),
        ],
        metadata={
            "min_size": str(config.input.min_size),
            "max_size": str(config.input.max_size),
            "mask_threshold": str(config.test.mask_threshold),
            "config": json.dumps(config.model_dump(mode="json")),
        },
    )
