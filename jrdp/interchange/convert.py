"""`jrdp convert`: one weight file into another, strictly, with a table of what became of every tensor."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Mapping, Optional

from jrdp.config import Config, parse_config
from jrdp.errors import UserError
from jrdp.import_path import is_import_path
from jrdp.interchange import native, training_state, weight_file
from jrdp.interchange.backbones import Row
from jrdp.interchange.layout import LAST_SCALE, Entry, backbone_layout, network_layout
from jrdp.models.shapes import RESNETS
from jrdp.interchange.matching import match
from jrdp.interchange.tensors import FLOATS, Tensor, dtype_name
from jrdp.interchange.training_state import TrainingState
from jrdp.interchange.weight_file import WeightFile


_WEIGHTS_ONLY = "; --weights-only converts the weights without the training state"


@dataclass
class Conversion:
    """What `convert` did; `str()` gives the table that `jrdp convert` prints."""

    source: Path
    target: Path
    what: str
    rows: list[Row]
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [("source", "target", "shape", "type", "note")]
        for row in self.rows:
            shape = "x".join(map(str, row.shape)) or "scalar"
            target = "=" if row.target == row.source else row.target or "-"
            lines.append((row.source or "-", target, shape, row.dtype, row.note))
        widths = [max(len(line[column]) for line in lines) for column in range(4)]
        table = ["  ".join([*(cell.ljust(w) for cell, w in zip(line, widths)), line[4]]).rstrip() for line in lines]
        filled = sum(row.target is not None for row in self.rows)
        left = sum(row.target is None for row in self.rows)
        summary = f"{self.source} -> {self.target}: {self.what}; {filled} tensors, {left} left out"
        return "\n".join([*table, summary, *(f"note: {note}" for note in self.notes)])


def convert(
    source: str | Path,
    target: str | Path,
    legacy: bool = False,
    expected: Optional[Mapping[str, tuple]] = None,
    weights_only: bool = False,
) -> Conversion:
    """Read `source`, check it strictly against the network it looks like, and write `target` by its suffix.

    `expected` (name -> shape) replaces the network inferred from the file. Element types and bits of the tensors stay.
    SGD's momentum and the iteration go along between .pth and .safetensors, where they lie in a second file beside it,
    unless `weights_only`.

    Raises:
        UserError: if the source cannot be read or does not fit strictly, or the target cannot be written.
    """
    source, target = Path(source), Path(target)
    if target.suffix.lower() not in weight_file.SUFFIXES:
        raise UserError(f"cannot write {target}: the suffix must be one of {', '.join(weight_file.SUFFIXES)}")
    file = weight_file.read(source)
    weight_file.check_writable(target)
    if weights_only:
        file.optimizer = file.scheduler = None
        file.metadata.pop("state", None)
    layout = expected_layout(file)
    matched = match(expected or {entry.name: entry.shape for entry in layout}, file, _whole_numbers(file))
    notes = [f"its entries {', '.join(file.others)} are not used"] if file.others else []
    if file.prefix:
        notes.append(f"{file.prefix} was taken off the names")
    result = WeightFile(dict(matched.exact), iteration=file.iteration, metadata=dict(file.metadata))
    result.metadata.pop("state", None)
    if target.suffix.lower() in (".pth", ".pt"):
        _state_to_pytorch(file, layout, result)
    elif target.suffix.lower() == ".safetensors":
        notes += _state_to_native(file, layout, target, result)
    elif file.optimizer is not None or file.iteration is not None:
        notes.append("a .pkl file holds weights only: the training state stays behind")
    notes += weight_file.write(target, result, legacy=legacy)
    return Conversion(source, target, str(file.likeness), matched.rows, notes)


def expected_layout(file: WeightFile) -> list[Entry]:
    """The keys of the network that `file` looks like, trainable as its configuration or its optimizer says.

    A pyramid that is none of ours is taken with the keys that the file has for it.

    Raises:
        UserError: if it looks like no network of ours.
    """
    look = file.likeness
    if not look.backbone:
        config = _config_of(file)
        if config is not None and is_import_path(config.model.backbone.name):
            raise UserError(
                f"{file.path} has a backbone of its own, {config.model.backbone.name}: only networks with "
                f"{', '.join(RESNETS)} can be converted"
            )
        names = ", ".join(name[:80] for name in list(file.tensors)[:3])
        looks = f" (it looks like {look})" if look.backbone is None else ""
        raise UserError(f"{file.path} is no checkpoint of RDPNet or a ResNet it uses{looks}: its tensors are {names}, ...")

    return _layout(file, _frozen_stages(file))


def _layout(file: WeightFile, freeze_at: int) -> list[Entry]:
    look = file.likeness
    if look.backbone_only:
        return backbone_layout(look.backbone, freeze_at)
    # Where the file says that its pyramid is one's own, its names may still look like one of the paper's.
    enhancement = None if _has_own_pyramid(file) else look.enhancement
    entries = network_layout(
        look.backbone,
        enhancement or "none",
        look.levels,
        look.fusion,
        look.head_channels or 128,
        look.mask_head or "multi_level",
        freeze_at,
    )
    if enhancement is not None:
        return entries
    known = {entry.name for entry in entries}
    state = native.read_state(file)
    own = [
        Entry(name, tuple(tensor.shape), name in state.momentum if state is not None and state.momentum else _may_learn(name, tensor))
        for name, tensor in file.tensors.items()
        if name.startswith("backbone.fpn.") and name not in known
    ]
    by_name = {entry.name: entry for entry in [*entries, *own]}
    return [by_name[name] for name in file.in_order(by_name)]


def _has_own_pyramid(file: WeightFile) -> bool:
    config = _config_of(file)
    return config is not None and is_import_path(config.model.pyramid.enhancement)


def _may_learn(name: str, tensor: Tensor) -> bool:
    """Of a tensor of one's own part, where no training state tells."""
    return dtype_name(tensor) in FLOATS and not name.endswith((".running_mean", ".running_var"))


def _whole_numbers(file: WeightFile) -> dict[str, str]:
    """The types of those tensors of a pyramid of one's own that are integers or truth values; the paper's has none."""
    if not _has_own_pyramid(file):
        return {}
    types = {name: dtype_name(tensor) for name, tensor in file.tensors.items() if name.startswith("backbone.fpn.")}
    return {name: dtype for name, dtype in types.items() if dtype not in FLOATS}


def _frozen_stages(file: WeightFile) -> int:
    """At which stage the backbone is frozen: from the configuration, else from the number of trained parameters."""
    config = _config_of(file)
    if config is not None:
        return config.model.backbone.freeze_at
    groups = (file.optimizer or {}).get("param_groups")
    if isinstance(groups, list):
        listed = [group.get("params") for group in groups if isinstance(group, dict)]
        count = sum(len(ids) for ids in listed if isinstance(ids, list))
        for freeze_at in (2, 1, 0, 3, 4, 5):
            names = [entry.name for entry in _layout(file, freeze_at) if entry.trainable]
            if count in (len(names), len(names) - (LAST_SCALE in names and LAST_SCALE not in file.tensors)):
                return freeze_at
    return 2


def _config_of(file: WeightFile) -> Config | None:
    stored = file.metadata.get("config")
    return parse_config(stored, f"stored in {file.path}") if isinstance(stored, dict) else None


def _state_of(file: WeightFile, layout: list[Entry]) -> TrainingState | None:
    try:
        if file.optimizer is not None:
            return training_state.from_pytorch(file, {entry.name: entry.shape for entry in layout if entry.trainable})
        return native.read_state(file)
    except UserError as error:
        raise UserError(f"{error}{_WEIGHTS_ONLY}") from error


def _state_to_pytorch(file: WeightFile, layout: list[Entry], result: WeightFile) -> None:
    if file.optimizer is not None:
        _state_of(file, layout)  # checked, then taken over unchanged
        result.optimizer, result.scheduler = file.optimizer, file.scheduler
        # It tells its parameters by the order that the file has them in.
        result.tensors = {name: result.tensors[name] for name in file.in_order(result.tensors)}
        return
    state = _state_of(file, layout)
    if state is not None:
        trainable = [entry.name for entry in layout if entry.trainable]
        try:
            result.optimizer, result.scheduler = training_state.to_pytorch(state, trainable)
        except UserError as error:
            raise UserError(f"{error}{_WEIGHTS_ONLY}") from error
        result.iteration = state.iteration


def _state_to_native(file: WeightFile, layout: list[Entry], target: Path, result: WeightFile) -> list[str]:
    """Complete the header where the file tells the whole network, and write the momentum beside `target`."""
    state = _state_of(file, layout)
    config = _config_of(file)
    if file.likeness.backbone_only or config is None and file.likeness.enhancement is None:
        return [] if state is None else ["the training state stays behind: the file does not tell its whole network"]
    if config is None:
        values = weight_file.infer_config(file)
        values["model"]["backbone"]["freeze_at"] = _frozen_stages(file)
        if state is not None and state.solver:
            values["solver"] = state.solver
        config = parse_config(values, f"inferred from {file.path}")
    iteration = state.iteration if state is not None else file.iteration
    result.metadata.update(native.header(config, iteration or 0))
    result.iteration = iteration
    if state is None:
        return []
    if not state.momentum:
        return ["the optimizer has made no step yet: there is no momentum to keep", *state.notes]
    result.metadata["state"] = native.write_state(target, state)
    return [f"momentum of {len(state.momentum)} parameters at iteration {iteration} is in {result.metadata['state']}", *state.notes]
