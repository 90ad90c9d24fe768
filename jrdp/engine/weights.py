"""What a weight file asks of a configuration. Needs no Jittor, so that bad input is refused before it is imported."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydantic import ValidationError

from jrdp import interchange
from jrdp.config import Config, InputConfig, load_config, own_parts, parse_config
from jrdp.errors import UserError
from jrdp.import_path import is_imported
from jrdp.interchange import WeightFile
from jrdp.interchange.layout import BACKBONE_NAMES
from jrdp.interchange.tensors import as_float32

BACKBONE = "backbone.body."


def is_backbone_only(file: WeightFile) -> bool:
    """Whether the file holds an (ImageNet) backbone and nothing else."""
    return bool(file.tensors) and all(name.startswith(BACKBONE) for name in file.tensors)


def refuse_backbone_alone(file: WeightFile) -> None:
    """Raise `UserError` for an ImageNet backbone where a whole network is needed: its preprocessing is no matter then."""
    if is_backbone_only(file):
        raise UserError(
            f"{file.path or 'the weights'} holds an ImageNet backbone alone ({file.likeness}): it can start a training "
            "(train.weights), but the rest of the network is not in it"
        )


def expected_tensors(shapes: dict[str, tuple], file: WeightFile) -> dict[str, tuple]:
    """The tensors that `file` has to fill: the backbone's if it holds a backbone only, else the whole network's."""
    if not is_backbone_only(file):
        return shapes
    return {name: shape for name, shape in shapes.items() if name.startswith(BACKBONE)}


def config_of(file: WeightFile, config: str | Path | Config | None, overrides: list[str]) -> Config:
    """The configuration for a weight file: given, else stored in the file, else inferred from its tensors.

    Raises:
        UserError: for a bad configuration, when pixels or strides would not be those of the weights, and when the file
            names code (a backbone of one's own) that nobody asked for and that is not imported yet.
    """
    if isinstance(config, Config):
        chosen = load_config(None, overrides, base=config) if overrides else config
    elif config is not None:
        chosen = load_config(config, overrides)
    else:
        stored = file.metadata.get("config") or interchange.infer_config(file)
        chosen = load_config(None, overrides, base=parse_config(stored, f"stored in {file.path}"))
        refuse_unasked_code(file, chosen, overrides)
    check_backbone(file, chosen)
    refuse_backbone_alone(file)
    check_preprocessing(file, chosen)
    return chosen


def batch_size_of(weights: Path, config: Path | None, overrides: list[str]) -> int:
    """The `test.batch_size` that `config_of` would give; reads no tensor of a native file, and checks no weights."""
    stored = None if config is not None else interchange.stored_config(weights)
    base = None if stored is None else parse_config(stored, f"stored in {weights}")
    return load_config(config, overrides, base=base).test.batch_size


def refuse_unasked_code(file: WeightFile, config: Config, overrides: list[str]) -> None:
    """Weights hold no code, and which code is run because of them is for who loads them to say."""
    asked = {override.partition("=")[0].strip() for override in overrides}
    unasked = {k: p for k, p in own_parts(config.model).items() if k not in asked and not is_imported(p)}
    if unasked:
        settings = " ".join(f"--set {key}={path}" for key, path in unasked.items())
        raise UserError(
            f"{file.path} was trained with code of its own, {' and '.join(unasked.values())}: to run that code, add {settings} "
            "or give the --config it was trained with"
        )


def check_finite(tensors: dict, path: str | Path | None) -> None:
    """Raise `UserError` naming the first tensor that holds NaN or infinity."""
    for name, tensor in tensors.items():
        values = as_float32(tensor)
        if not np.isfinite(values).all():
            count = int(values.size - np.isfinite(values).sum())
            raise UserError(
                f"{path or 'the weights'}: {name} holds NaN or infinity ({count} of {values.size} numbers): the training "
                "that wrote it had diverged; take an earlier checkpoint"
            )


def _parsed_preprocessing(stored: object, mine: dict, file: WeightFile) -> dict:
    """The preprocessing in a header, checked; what it does not name is as in `mine`. Raises `UserError` for nonsense."""
    damaged = UserError(f"the header of {file.path} is damaged: its preprocessing is {_short(stored)}")
    if not isinstance(stored, dict) or not isinstance(stored.get("stride_in_1x1", True), (bool, type(None))):
        raise damaged
    named = {key: value for key, value in stored.items() if key in InputConfig.model_fields}
    try:
        values = InputConfig.model_validate({**{key: mine[key] for key in InputConfig.model_fields}, **named})
    except ValidationError as error:
        raise damaged from error
    stride = stored.get("stride_in_1x1")
    return {**values.model_dump(mode="json"), "stride_in_1x1": mine["stride_in_1x1"] if stride is None else stride}


def _short(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 200 else f"{shown[:200]}..."


def check_backbone(file: WeightFile, config: Config) -> None:
    """Refuse another backbone before anything is asked of its preprocessing, which would not help then."""
    wanted, look = config.model.backbone.name, file.likeness
    if look.backbone == wanted or wanted not in BACKBONE_NAMES:  # one of somebody's own has tensors of its own
        return
    if not look.backbone:
        what = f"it looks like {look}" if look.backbone is None else "it has no backbone"
        names = ", ".join(name[:80] for name in list(file.tensors)[:3])
        raise UserError(
            f"{file.path} does not fit: {BACKBONE_NAMES[wanted]} is needed (model.backbone.name={wanted}), {what}; its "
            f"tensors are {names}, ..."
        )
    raise UserError(
        f"{file.path} does not fit: its backbone is {BACKBONE_NAMES[look.backbone]}, the configuration has "
        f"{BACKBONE_NAMES[wanted]}; use --set model.backbone.name={look.backbone} or other weights"
    )


def check_preprocessing(file: WeightFile, config: Config) -> None:
    """Refuse weights that were made for other pixels or strides than `config` has; a file that says nothing passes.

    Raises:
        UserError: naming for each setting that differs the `--set` that follows the weights.
    """
    preprocessing = file.metadata.get("preprocessing")
    if preprocessing is None:
        return
    mine = {**config.input.model_dump(mode="json"), "stride_in_1x1": config.model.backbone.strides_in_1x1}
    stored = _parsed_preprocessing(preprocessing, mine, file)
    keys = {
        "channel_order": "input.channel_order",
        "scale": "input.scale",
        "mean": "input.mean",
        "std": "input.std",
        "stride_in_1x1": "model.backbone.stride_in_1x1",
    }
    fixes = []
    for name, key in keys.items():
        theirs = stored[name]
        if isinstance(theirs, (str, bool)):
            same = theirs == mine[name]
        else:
            same = np.allclose(theirs, mine[name], rtol=1e-4, atol=1e-4)
        if not same:
            shown = str(list(theirs) if isinstance(theirs, (list, tuple)) else theirs).replace(" ", "").lower()
            fixes.append(f"--set {key}={shown}")
    if fixes:
        raise UserError(f"{file.path} was made for another preprocessing than the config: use {' '.join(fixes)}")
