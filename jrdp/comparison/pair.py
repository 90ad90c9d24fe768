"""Both frameworks side by side with the same configuration and weights: what every comparison starts from."""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Iterator, Optional

import numpy as np

from jrdp import interchange
from jrdp.comparison.exchange import load_arrays, save_arrays
from jrdp.comparison.process import Worker
from jrdp.comparison.synthetic import synthetic_state
from jrdp.config import Config, load_config, own_parts, parse_config
from jrdp.engine.weights import is_backbone_only, refuse_unasked_code
from jrdp.errors import UserError
from jrdp.files import protect
from jrdp.import_path import is_import_path

# Mistakes that the twin can be given, to show that a comparison notices them; see `twin.Variant`.
NEGATIVE_CONTROLS = {
    "rgb": {"rgb": True},
    "aligned": {"aligned": True},
    "nms-without-one": {"nms_without_one": True},
    "sqrt-score": {"sqrt_score": True},
    "group-norm-eps": {"group_norm_eps": 1e-3},
}
OF_TWIN = {"model.backbone.name": "--twin-backbone", "model.pyramid.enhancement": "--twin-pyramid"}


@dataclass
class Options:
    """What the user chose.

    weights: a weight file of any kind for both sides, None for synthetic weights; twin_weights: another one for the
    twin, which reads a .pth with torch itself. threads: of each side's kernels, None for all cores.
    negative_control: a key of `NEGATIVE_CONTROLS`. precision: the twin's, "float32" or "float64". engine: the Jittor
    side's for prediction, "plain" or "fast". tf32: both sides may use TF32 on a GPU; the configuration's train.tf32 and
    test.tf32 are for runs, and do not make a comparison less exact. twin_device: the twin's, None for `device`: a torch
    without CUDA can stand beside a Jittor with it. timing: the twin is timed, with compiled operators.
    initialise: what `weights` does not hold starts as jrdp initialises
    it (by `seed`) for training, where comparisons of a pass take synthetic weights. twin_backbone, twin_pyramid: import
    paths of the twin's, written in torch, for a configuration whose own the twin does not have.
    """

    config: Optional[Path] = None
    settings: list[str] = field(default_factory=list)
    weights: Optional[Path] = None
    twin_weights: Optional[Path] = None
    twin_python: str = sys.executable
    device: str = "cpu"
    threads: Optional[int] = None
    seed: int = 1
    negative_control: Optional[str] = None
    precision: str = "float32"
    engine: str = "plain"
    tf32: bool = False
    twin_device: Optional[str] = None
    timing: bool = False
    initialise: bool = False
    twin_backbone: Optional[str] = None
    twin_pyramid: Optional[str] = None

    @property
    def twin_parts(self) -> dict[str, str]:
        """The import paths of the twin's own parts, by the keys of what they stand for."""
        return {key: path for key, path in zip(OF_TWIN, (self.twin_backbone, self.twin_pyramid)) if path is not None}

    @property
    def device_of_twin(self) -> str:
        return self.twin_device or self.device

    @property
    def has_floor(self) -> bool:
        """Whether the twin's float32 shows how much rounding Jittor may have: not in float64, nor on another device."""
        return self.precision == "float32" and self.same_device

    @property
    def same_device(self) -> bool:
        """Whether both sides compute on the same kind of device."""
        return self.device_of_twin == self.device

    def checked(self) -> Options:
        """These options, their files protected; raises `UserError` for a word that is none of the choices."""
        protect(*filter(None, (self.config, self.weights, self.twin_weights)))
        choices = {
            "device": (self.device, ("cpu", "cuda")),
            "twin-device": (self.twin_device, (None, "cpu", "cuda")),
            "twin-precision": (self.precision, ("float32", "float64")),
            "engine": (self.engine, ("plain", "fast")),
            "negative-control": (self.negative_control, (None, *NEGATIVE_CONTROLS)),
        }
        for name, (value, allowed) in choices.items():
            if value not in allowed:
                raise UserError(f"unknown --{name} {value!r}: choose {', '.join(a for a in allowed if a)}")
        for key, path in self.twin_parts.items():
            if not is_import_path(path):
                raise UserError(f"{OF_TWIN[key]} {path}: expected an import path, package.module:Class")
        if self.engine == "fast" and self.device != "cpu":
            raise UserError("--engine fast is for the CPU; leave out --device cuda")
        if self.tf32 and self.device == "cpu":
            raise UserError("--tf32 needs a GPU: add --device cuda, or leave it out")
        return self


@dataclass
class Pair:
    """jittor, torch: the two processes, built and loaded. start: the Jittor side's tensors by name.

    differing: names of the tensors that the two sides were given different values of.
    """

    jittor: Worker
    torch: Worker
    config: Config
    start: dict[str, np.ndarray]
    differing: list[str]
    trainable: list[str]
    versions: dict[str, str]
    folder: Path
    options: Options


@contextlib.contextmanager
def open_pair(options: Options) -> Iterator[Pair]:
    """Start both workers in a temporary folder and give them the same network; everything ends with the block.

    Raises `UserError` when a framework is missing, or when the two networks do not have the same tensors.
    """
    file = None if options.weights is None else interchange.read(options.weights)
    config = resolve_config(file, options)
    folder = Path(tempfile.mkdtemp(prefix="jrdp-compare-"))
    try:
        with Worker("torch", options.twin_python, folder, options.threads) as torch:
            values = config.model_dump(mode="json")
            variant = NEGATIVE_CONTROLS[options.negative_control] if options.negative_control else {}
            theirs = torch.ask(
                "build", config=values, device=options.device_of_twin, precision=options.precision, variant=variant,
                tf32=options.tf32, timing=options.timing, own=options.twin_parts,
            )
            with Worker("jittor", sys.executable, folder, options.threads) as jittor:
                ours = jittor.ask(
                    "build", config=values, device=options.device, engine=options.engine, tf32=options.tf32
                )
                check_same_tensors(ours, theirs, ordered=not options.twin_parts)
                start = _start(file, ours["shapes"], options, jittor, folder)
                twin_start = start
                if options.twin_weights is not None:
                    twin_start = state_of(interchange.read(options.twin_weights), ours["shapes"], options.seed)
                _load(jittor, start, folder / "start.npz")
                if is_torch_file(options.twin_weights):
                    torch.ask("load_checkpoint", path=str(options.twin_weights))
                else:
                    _load(torch, twin_start, folder / "twin_start.npz")
                differing = [name for name in start if not np.array_equal(start[name], twin_start[name])]
                versions = {**ours["versions"], **theirs["versions"]}
                yield Pair(
                    jittor, torch, config, start, differing, ours["trainable"], versions, folder, options
                )
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def refuse_idle_precision(config: Config, engine: str) -> None:
    """Raise `UserError` for a precision of prediction that only the fast engine has, where another one predicts."""
    if config.test.precision == "bfloat16" and engine != "fast":
        raise UserError("test.precision=bfloat16 has no effect with --engine plain: use --engine fast, or leave it out")


def resolve_config(file, options: Options) -> Config:
    """The configuration given, else the one in the weight file, else what its tensors tell, else the defaults.

    Raises:
        UserError: for a backbone or a pyramid of one's own whose twin is not named: the twin does not have it.
    """
    config = _config_of(file, options)
    for key, name in own_parts(config.model).items():
        if key not in options.twin_parts:
            raise UserError(
                f"the PyTorch twin has only the released network, not {key} = {name}: `jrdp compare layers` takes its twin, "
                f"written in PyTorch, with {OF_TWIN[key]} package.module:Class; two result files compare without (compare detections)"
            )
    return config


def _config_of(file, options: Options) -> Config:
    if options.config is not None or file is None:
        return load_config(options.config, options.settings)
    stored = file.metadata.get("config")
    values = stored if isinstance(stored, dict) else interchange.infer_config(file)
    config = load_config(None, options.settings, base=parse_config(values, f"stored in {options.weights}"))
    refuse_unasked_code(file, config, options.settings)
    return config


def check_same_tensors(ours: dict, theirs: dict, ordered: bool = True) -> None:
    """Names, order, shapes and trainability, as each side reports them; the order matters where momentum travels."""
    if ours["shapes"] != theirs["shapes"] or (ordered and list(ours["shapes"]) != list(theirs["shapes"])):
        odd = [n for n in {**ours["shapes"], **theirs["shapes"]} if ours["shapes"].get(n) != theirs["shapes"].get(n)]
        raise UserError(f"the two networks have different tensors: {', '.join(odd[:5]) or 'in another order'}")
    odd = sorted(set(ours["trainable"]) ^ set(theirs["trainable"]))
    if odd:
        raise UserError(f"the two networks train different tensors: {', '.join(odd[:5])}")


def starts_at_random(*weights: Path | None) -> bool:
    """Whether a comparison draws tensors by its seed: without weights, or where a file holds a backbone alone."""
    return weights[0] is None or any(path is not None and is_backbone_only(interchange.read(path)) for path in weights)


def state_of(file, shapes: dict[str, list[int]], seed: int) -> dict[str, np.ndarray]:
    """Every tensor as float32: from the file, strictly; a backbone's file is completed by synthetic heads."""
    if file is None:
        return synthetic_state(shapes, seed)
    expected = {name: tuple(shape) for name, shape in shapes.items()}
    heads: dict[str, np.ndarray] = {}
    if is_backbone_only(file):
        heads = synthetic_state({n: s for n, s in shapes.items() if not n.startswith("backbone.body.")}, seed)
        expected = {name: shape for name, shape in expected.items() if name not in heads}
    matched = interchange.match(expected, file).tensors
    filled = {**{name: np.asarray(value, dtype=np.float32) for name, value in matched.items()}, **heads}
    return {name: filled[name] for name in shapes}


def _start(file, shapes: dict[str, list[int]], options: Options, jittor: Worker, folder: Path) -> dict[str, np.ndarray]:
    if not options.initialise:
        return state_of(file, shapes, options.seed)
    path = folder / "initial.npz"
    jittor.ask("initial", out=str(path), seed=options.seed)
    state = load_arrays(path)
    if file is not None:
        given = state_of(file, shapes, options.seed)
        body_only = is_backbone_only(file)
        state |= {n: v for n, v in given.items() if not body_only or n.startswith("backbone.body.")}
    return {name: state[name] for name in shapes}


def is_torch_file(path: Path | None) -> bool:
    """Whether the twin reads this file with torch itself, as a check of what jrdp wrote."""
    return path is not None and path.suffix in (".pth", ".pt")


def _load(worker: Worker, state: dict[str, np.ndarray], path: Path) -> None:
    save_arrays(path, state)
    worker.ask("load", state=str(path))
