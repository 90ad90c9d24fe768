"""What the options of `jrdp` and `jrdp compare` have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Iterable, Optional

import typer

from jrdp.config import Config
from jrdp.errors import UserError
from jrdp.interchange.published import locate


def find_weights(weights: Optional[Path]) -> Optional[Path]:
    """The file that an option for weights means: a path, or a name that is looked up."""
    return None if weights is None else locate(weights)


_PREDICTION = ("model", "input", "test")
_PASS = ("model", "input", "test.precision")  # of the network, by an engine that an option names
_ARITHMETIC = ("train.engine", "train.precision", "train.amp")
_PERIODS = ("train.checkpoint_period", "train.log_period")
# The parts of the configuration that a command looks at; `jrdp train` looks at all of it.
_USED = {
    "predict": _PREDICTION,
    "demo": _PREDICTION,
    "export": ("model", "input", "test.mask_threshold"),
    "test": ("model", "input", "test", "data.root", "data.test"),
    "bench": (*_PASS, "test.mask_threshold", "solver", *_ARITHMETIC),
    "bench --no-training": (*_PASS, "test.mask_threshold"),
    "bench --cost": ("model",),
    "data check": ("data.root", "input.exif"),
    "data stats": ("data.root",),
    "compare layers": _PASS,
    "compare gradients": ("model", "input", "data", "solver.batch_size", *_ARITHMETIC),
    "compare training": ("model", "input", "data", "solver", "train.log_period", *_ARITHMETIC),
    "compare training --evaluate": ("model", "input", "data", "solver", "test", "train.weights", *_PERIODS, *_ARITHMETIC),
    "compare detections": ("data.root",),
    "compare twin-test": ("model", "input", "test.mask_threshold", "data.root"),
    "compare speed": _PASS,
    "compare speed --training": (*_PASS, "solver", *_ARITHMETIC),
}


def refuse_unused_settings(command: str, settings: Iterable[str]) -> None:
    """Raise `UserError` for a `--set` that `command` never looks at. Unknown keys are left to the configuration."""
    for setting in settings:
        parts = [part.strip() for part in setting.partition("=")[0].split(".")]
        key = ".".join(parts)
        section = Config.model_fields.get(parts[0])
        known = section is not None and (len(parts) == 1 or parts[1] in section.default_factory.model_fields)
        if known and not any(f"{key}.".startswith(f"{used}.") or used.startswith(f"{key}.") for used in _USED[command]):
            raise UserError(f"--set {key} has no effect on jrdp {command}, which uses {', '.join(_USED[command])}")


def refuse_options(reason: str, **given: Any) -> None:
    """Raise `UserError` for options that were given (not None, False or empty) though they have no effect, for `reason`."""
    names = [f"--{name.replace('_', '-')}" for name, value in given.items() if value not in (None, False, [])]
    if names:
        raise UserError(f"{', '.join(names)} {'has' if len(names) == 1 else 'have'} no effect {reason}; leave it out")


def is_upright(exif: str) -> bool:
    """Whether --exif asks for pictures turned as their EXIF says; raises `UserError` for a value that it does not have."""
    if exif not in ("ignore", "apply"):
        raise UserError(f"--exif {exif!r} is not ignore or apply")
    return exif == "apply"


def was_given(context: typer.Context, name: str) -> bool:
    """Whether the command line names an option, with whatever value."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def refuse_given(context: typer.Context, reason: str, *names: str) -> None:
    """The same for options that have a default: refused when the command line names them, with whatever value."""
    refuse_options(reason, **{name: True for name in names if was_given(context, name)})
