"""Where a training starts: random initialisation, an ImageNet backbone, or a full checkpoint."""

from __future__ import annotations

import numpy as np

from jrdp import interchange
from jrdp.config import Config
from jrdp.errors import UserError
from jrdp.models.state import assign_state, named_tensors

BACKBONE = "backbone.body."


def initialise(model, config: Config) -> str:
    """Load `config.train.weights` into `model` if given; returns a line that says where training starts.

    A file with backbone tensors alone fills the backbone; any other file must fill the whole network.

    Raises:
        UserError: if the file does not fit, or was made for another preprocessing or stride convention.
    """
    path = config.train.weights
    if path is None:
        return "starting from random weights (train.weights is not set): expect low accuracy from short training"
    file = interchange.read(path)
    expected = {name: tuple(value.shape) for name, value in named_tensors(model).items()}
    check_preprocessing(file.metadata.get("preprocessing"), config, str(path))
    backbone_only = all(name.startswith(BACKBONE) for name in file.tensors)
    if backbone_only:
        expected = {name: shape for name, shape in expected.items() if name.startswith(BACKBONE)}
    matched = interchange.match(expected, file)
    current = {name: value.numpy() for name, value in named_tensors(model).items()}
    current.update({name: np.asarray(value, dtype=np.float32) for name, value in matched.tensors.items()})
    assign_state(model, current)
    what = "ImageNet backbone" if backbone_only else "all weights"
    return f"starting from {path}: {what}, {len(matched.tensors)} tensors"


def check_preprocessing(preprocessing: dict | None, config: Config, path: str) -> None:
    """Refuse weights that were made for other pixels or strides than `config` has; None means as released.

    Raises:
        UserError: naming each setting that differs and the `--set` that follows the weights.
    """
    if preprocessing is None:
        return
    mine = {**config.input.model_dump(mode="json"), "stride_in_1x1": config.model.backbone.strides_in_1x1}
    keys = {
        "channel_order": "input.channel_order",
        "scale": "input.scale",
        "mean": "input.mean",
        "std": "input.std",
        "stride_in_1x1": "model.backbone.stride_in_1x1",
    }
    fixes = []
    for name, key in keys.items():
        if name not in preprocessing:
            continue
        theirs = preprocessing[name]
        same = theirs == mine[name] if isinstance(theirs, (str, bool)) else np.allclose(theirs, mine[name], rtol=1e-4, atol=1e-4)
        if not same:
            shown = str(list(theirs) if isinstance(theirs, (list, tuple)) else theirs).replace(" ", "").lower()
            fixes.append(f"--set {key}={shown}")
    if fixes:
        raise UserError(f"{path} was made for another preprocessing than the config: use {' '.join(fixes)}")
