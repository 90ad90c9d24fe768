"""The typed configuration: defaults here, a YAML file over them, `--set key.key=value` over both.

Every field is written out in `configs/r50_isod.yaml`. An unknown key or a wrong type is a `UserError` that names the
key and what was expected; there is no value that is accepted and then ignored.
"""

from __future__ import annotations

import reprlib
from pathlib import Path
from typing import Annotated, Callable, Literal, Optional

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from jrdp.errors import UserError
from jrdp.files import refuse_special
from jrdp.import_path import is_import_path
from jrdp.yaml_values import parse_yaml

BACKBONES = ("r50", "r101", "x101")
ENHANCEMENTS = ("none", "progressive", "dense", "regularized", "top_down_regularized", "pa", "nas_fpn", "bifpn")


def _one_of(*names: str) -> Callable[[str], str]:
    """A check that a value is one of `names`, or names a class of one's own as `package.module:Class`."""

    def check(value: str) -> str:
        if value not in names and not is_import_path(value):
            raise ValueError(f"should be {', '.join(names)}, or one of your own as package.module:Class")
        return value

    return check


# Numbers have bounds, so that none asks for more memory, processes or bits than any machine has.
Count = Annotated[int, Field(gt=0, le=2**31 - 1)]
LARGEST_SIDE = 16384
Pixels = Annotated[int, Field(gt=0, le=LARGEST_SIDE)]
_MOST = 1e6  # of what numbers are multiplied with or divided by: float32 ends at 3e38
Factor = Annotated[float, Field(gt=0, le=_MOST)]
Shift = Annotated[float, Field(ge=-_MOST, le=_MOST)]
Scale = Annotated[float, Field(ge=1 / _MOST, le=_MOST)]


class Section(BaseModel):
    # strict: true is no 1, "3" no 3 and 1.5 no count; an integer is a number too.
    model_config = ConfigDict(extra="forbid", strict=True, validate_assignment=True, allow_inf_nan=False)


class BackboneConfig(Section):
    """ResNet-50, ResNet-101 or ResNeXt-101 32x8d with frozen batch norm; or a class of one's own by its import path."""

    name: Annotated[str, AfterValidator(_one_of(*BACKBONES))] = "r50"
    # Where a stage halves the map: in its first 1x1 (MSRA ResNets) or in its 3x3 (ResNeXt, torchvision).
    # None: true for r50 and r101, false for x101 (convention 12).
    stride_in_1x1: Optional[bool] = None
    # 2: the stem and the first stage keep their ImageNet weights, as released; 0 trains everything.
    freeze_at: int = Field(2, ge=0, le=5)

    @model_validator(mode="after")
    def _stride_is_ours(self) -> BackboneConfig:
        if is_import_path(self.name) and self.stride_in_1x1 is not None:
            raise ValueError(f"stride_in_1x1 is for {', '.join(BACKBONES)}; {self.name} decides by itself where it halves maps")
        return self

    @property
    def strides_in_1x1(self) -> bool:
        return self.name != "x101" if self.stride_in_1x1 is None else self.stride_in_1x1


class PyramidConfig(Section):
    """The FPN and what enhances it (Sec. III-B of the paper)."""

    # A class of one's own, by its import path, is derived from `jrdp.models.fpn.FPN`.
    enhancement: Annotated[str, AfterValidator(_one_of(*ENHANCEMENTS))] = "regularized"
    levels: Literal["p3-p5", "p3-p7"] = "p3-p7"  # the levels that the enhancement covers
    upsample: Literal["nearest", "bilinear"] = "nearest"  # the FPN's top-down path; the paper says bilinear (convention 2)
    fusion: Literal["1x1_3x3", "3x3"] = "1x1_3x3"  # the paper (Eq. 8) has one 3x3 (convention 3)

    @model_validator(mode="after")
    def _effects(self) -> PyramidConfig:
        if self.enhancement in ("none", "pa", "nas_fpn", "bifpn") and self.fusion != "1x1_3x3":
            raise ValueError(f"fusion: {self.fusion} has no effect with enhancement: {self.enhancement}; leave it out")
        if self.enhancement == "none" and self.levels != "p3-p7":
            raise ValueError(f"levels: {self.levels} has no effect with enhancement: none; leave it out")
        return self


class FcosConfig(Section):
    channels: int = Field(128, gt=0, le=8192, multiple_of=32)  # group norm has 32 groups; the paper says 256 (convention 1)
    pre_nms_threshold: float = Field(0.05, ge=0, le=1)
    pre_nms_top_n: Count = 1000  # per level
    nms_threshold: float = Field(0.6, ge=0, le=1)  # 0.8 for SOC
    post_nms_top_n: Count = 100  # ties at the last place are kept


class MaskConfig(Section):
    head: Literal["multi_level", "single_level"] = "multi_level"


class ModelConfig(Section):
    backbone: BackboneConfig = Field(default_factory=BackboneConfig)
    pyramid: PyramidConfig = Field(default_factory=PyramidConfig)
    fcos: FcosConfig = Field(default_factory=FcosConfig)
    mask: MaskConfig = Field(default_factory=MaskConfig)


class InputConfig(Section):
    """How a photograph becomes network input; travels with the weights."""

    min_size: Pixels = 320
    max_size: Pixels = 480
    channel_order: Literal["bgr", "rgb"] = "bgr"
    scale: Scale = 255.0  # pixels are 0..scale before the mean is taken
    # In channel_order; not strict, since YAML and JSON have lists only.
    mean: Annotated[tuple[Shift, Shift, Shift], Field(strict=False)] = (102.9801, 115.9465, 122.7717)
    std: Annotated[tuple[Scale, Scale, Scale], Field(strict=False)] = (1.0, 1.0, 1.0)
    # Whether pictures are turned as their EXIF orientation says. None: `jrdp predict` turns them, training and testing
    # do not, as released (annotations are in the pixels of the file).
    exif: Optional[Literal["apply", "ignore"]] = None

    @model_validator(mode="after")
    def _sizes(self) -> InputConfig:
        if self.max_size < self.min_size:
            raise ValueError(f"max_size ({self.max_size}) is smaller than min_size ({self.min_size})")
        return self


class DataConfig(Section):
    """Names from the catalog (isod_train, soc_train, come_train, ...) or paths as `images_folder:annotations.json`."""

    root: str = Field("datasets", min_length=1)
    train: list[str] = Field(default_factory=lambda: ["isod_train"], min_length=1)
    test: list[str] = Field(default_factory=lambda: ["isod_test"])  # may be empty: training then ends without a test
    flip_probability: float = Field(0.5, ge=0, le=1)
    workers: int = Field(2, ge=0, le=1024)
    # Variation of training pictures, each drawn anew for every picture and epoch. All off, as released.
    min_sizes: list[Pixels] = Field(default_factory=list)  # short sides to choose from in place of input.min_size
    brightness: float = Field(0.0, ge=0, lt=1)  # the factor is drawn from 1 - this to 1 + this; so for the next two
    contrast: float = Field(0.0, ge=0, lt=1)
    saturation: float = Field(0.0, ge=0, lt=1)
    hue: float = Field(0.0, ge=0, le=0.5)  # the turn of the colour circle is drawn from -this to this, in whole turns

    @model_validator(mode="after")
    def _tests(self) -> DataConfig:
        twice = [name for name in self.test if self.test.count(name) > 1]
        if twice:
            raise ValueError(f"test: {twice[0]} is named twice")
        return self


class SolverConfig(Section):
    """SGD with the released schedule (conventions 6 and 7)."""

    base_lr: Factor = 0.0025
    bias_lr_factor: Factor = 2.0
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(1e-4, ge=0, le=_MOST)
    bias_weight_decay: float = Field(0.0, ge=0, le=_MOST)
    batch_size: int = Field(4, gt=0, le=4096)
    max_iterations: Count = 9000
    steps: list[Count] = Field(default_factory=lambda: [6000])
    gamma: Factor = 0.1
    warmup_iterations: int = Field(500, ge=0, le=2**31 - 1)
    warmup_factor: Factor = 1 / 3
    accumulate: int = Field(1, gt=0, le=4096)  # batches of batch_size whose gradients are averaged for one step
    # The largest L2 norm of all gradients together: longer ones are shortened to it. None: as they are, as released.
    clip_norm: Optional[float] = Field(None, gt=0)

    @model_validator(mode="after")
    def _effects(self) -> SolverConfig:
        if any(second <= first for first, second in zip(self.steps, self.steps[1:])):
            raise ValueError(f"steps: {self.steps} should increase from one to the next")
        for key, value, of in (("gamma", self.gamma, "steps"), ("warmup_factor", self.warmup_factor, "warmup_iterations")):
            if value != type(self).model_fields[key].default and not getattr(self, of):
                raise ValueError(f"{key}: {value} has no effect with {of}: {getattr(self, of)}; leave it out")
        return self


class TrainConfig(Section):
    weights: Optional[str] = Field(None, min_length=1)  # ImageNet backbone or a full checkpoint to start from; None starts from scratch
    # Take from the weights what fits the network, and print what was and was not filled; otherwise all of it must fit.
    partial_weights: bool = False
    checkpoint_period: Count = 1000
    # Test every so many iterations, and keep the best weights by the masks' AP. None: only at the end.
    eval_period: Optional[Count] = None
    log_period: Count = 20
    seed: int = Field(1, ge=0, le=2**31 - 1)
    tensorboard: bool = False  # also log for TensorBoard: pip install 'jrdp[tensorboard]'
    amp: bool = False  # mixed precision on a GPU
    # In mixed precision: skip a step whose gradients overflow and halve the loss's factor, instead of ending the run;
    # double it after 2,000 steps without.
    dynamic_loss_scale: bool = False
    # On a CPU, fast: 3x3 and 1x1 convolutions and their gradients by Winograd's algorithm and as products, where that is faster.
    engine: Literal["plain", "fast"] = "plain"
    # bfloat16: convolutions and their gradients multiply in it and add in float32, on a CPU that has AMX or AVX512_BF16, all
    # the rest and the weights being float32; amp is a GPU's counterpart. auto: float32.
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    tf32: bool = False  # on a GPU, convolutions multiply in TF32 (10 bits of mantissa); holds for the closing test too

    @model_validator(mode="after")
    def _effects(self) -> TrainConfig:
        if self.dynamic_loss_scale and not self.amp:
            raise ValueError("dynamic_loss_scale has no effect without amp; leave it out")
        if self.precision == "bfloat16" and self.engine == "fast":
            raise ValueError("engine: fast has no effect with precision: bfloat16; leave out one of them")
        if self.precision == "bfloat16" and self.amp:
            raise ValueError("amp is for a GPU and precision: bfloat16 for a CPU; leave out one of them")
        return self


class TestConfig(Section):
    batch_size: int = Field(1, gt=0, le=4096)
    mask_threshold: float = Field(0.5, gt=0, lt=1)
    engine: Literal["auto", "plain", "fast"] = "auto"  # auto: fast on a CPU, plain on a GPU
    # bfloat16: the fast engine's convolutions multiply in it, on a CPU that has AMX or AVX512_BF16. auto: float32.
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    tf32: bool = False  # as train.tf32, for `jrdp test`, `jrdp predict` and `jrdp.load`

    @model_validator(mode="after")
    def _effects(self) -> TestConfig:
        if self.precision == "bfloat16" and self.engine == "plain":
            raise ValueError("precision: bfloat16 has no effect with engine: plain; leave one of them out")
        return self


class Config(Section):
    model: ModelConfig = Field(default_factory=ModelConfig)
    input: InputConfig = Field(default_factory=InputConfig)
    data: DataConfig = Field(default_factory=DataConfig)
    solver: SolverConfig = Field(default_factory=SolverConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    test: TestConfig = Field(default_factory=TestConfig)

    @model_validator(mode="after")
    def _sizes(self) -> Config:
        for side in self.data.min_sizes:
            long_side = round(self.input.max_size * side / self.input.min_size)
            if long_side > LARGEST_SIDE:
                raise ValueError(
                    f"data.min_sizes: {side} makes pictures up to {long_side} wide, as input.max_size is {self.input.max_size} for "
                    f"an input.min_size of {self.input.min_size}; the largest is {LARGEST_SIDE}"
                )
        return self


def load_config(
    path: str | Path | None = None, overrides: list[str] | None = None, base: Config | None = None
) -> Config:
    """The configuration in `path` (None: `base`, or the defaults) with `key.key=value` overrides, read as YAML.

    Raises `UserError` for a missing or unreadable file, an unknown key or a value of the wrong type.
    """
    values: dict = {} if base is None else base.model_dump(mode="json")
    where = "the defaults" if base is None else "the stored configuration"
    if path is not None:
        where = str(path)
        refuse_special(path)
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read the config {path}: {_reason(error)}") from error
        try:
            values = parse_yaml(text)
        except ValueError as error:
            raise UserError(f"config {path} is not valid YAML: {error}") from error
        values = {} if values is None else values
        if not isinstance(values, dict):
            raise UserError(f"config {path} must be a YAML mapping of sections, not {type(values).__name__}")
    for override in overrides or []:
        key, separator, text = override.partition("=")
        if not separator or not all(part.strip() for part in key.split(".")):
            raise UserError(f"--set {_short(override)} is not of the form key.key=value")
        try:
            value = parse_yaml(text)
        except ValueError as error:
            raise UserError(f"--set {_short(override)}: the value is not valid YAML: {error}") from error
        section = values
        *sections, last = [part.strip() for part in key.split(".")]
        for name in sections:
            child = section.setdefault(name, {})
            if not isinstance(child, dict):
                raise UserError(f"--set {_short(override)}: {name!r} is a value in {where}, not a section")
            section = child
        section[last] = value
    return parse_config(values, where)


def parse_config(values: dict, where: str) -> Config:
    """A `Config` from plain values; `where` names their origin in the error message."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise UserError(f"config {where}: " + "; ".join(_explain(item) for item in error.errors())) from error


def start_from(config: Config, weights: Path) -> None:
    """Make `weights`, a path that was given beside the configuration, its `train.weights`. Raises `UserError`.

    A file name may be bytes that are no text, which neither the configuration nor its YAML can hold.
    """
    try:
        config.train.weights = str(weights)
    except ValidationError as error:
        raise UserError(
            f"--weights {str(weights)!r}: that name is not UTF-8, so the configuration cannot hold it: rename the file"
        ) from error


def own_parts(model: ModelConfig) -> dict[str, str]:
    """The import paths in a configuration of the network, by their keys."""
    paths = {"model.backbone.name": model.backbone.name, "model.pyramid.enhancement": model.pyramid.enhancement}
    return {key: path for key, path in paths.items() if is_import_path(path)}


def dump_config(config: Config) -> str:
    """The configuration as YAML with every field written out; `load_config` reads it back to the same value."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _short(value: object) -> str:
    """`repr` of a value from outside, bounded: an alias can make it longer than memory."""
    shorter = reprlib.Repr()
    shorter.maxstring = shorter.maxother = shorter.maxlong = 120
    return shorter.repr(value)


def _explain(item: dict) -> str:
    key = ".".join(str(part)[:80] for part in item["loc"])
    if item["type"] != "extra_forbidden":
        given = item.get("input")
        shown = f", not {_short(given)}" if isinstance(given, (str, int, float, bool, type(None), list)) else ""
        message = item["msg"].removeprefix("Value error, ")  # of our own checks
        return f"{key}{': ' if key else ''}{message[:1].lower()}{message[1:]}{shown}"
    section: type[BaseModel] = Config
    for part in item["loc"][:-1]:
        section = section.model_fields[str(part)].default_factory
    return f"unknown key {key}; known here: {', '.join(section.model_fields)}"
