"""One file with weights, whatever wrote it: reading by content, writing by suffix."""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Iterable, Optional

import numpy as np

from jrdp.errors import UserError
from jrdp.interchange import backbones, packed_backbone
from jrdp.files import atomic_write, check_target, parse_json, refuse_special
from jrdp.interchange.backbones import Row
from jrdp.interchange.jittor_pickle import is_jittor, read_pickle, write_jittor
from jrdp.interchange.layout import Likeness, likeness
from jrdp.interchange.pytorch_read import MAGIC_NUMBER, read_legacy, read_zip
from jrdp.interchange.pytorch_write import write_legacy, write_zip
from jrdp.interchange.safetensors_file import header_length, read_safetensors, write_safetensors
from jrdp.interchange.state_dict import find_weights, without_prefixes
from jrdp.interchange.tensors import HALVES, BFloat16, FormatError, Tensor, as_float32, dtype_name

SUFFIXES = (".pth", ".pt", ".pkl", ".safetensors")


@dataclass
class WeightFile:
    """Weights under the released key names, and what else the file holds.

    Attributes:
        tensors: name -> array (read-only) or `BFloat16`, in the file's order, with the file's element types.
        path: where it was read from; None for one made in memory.
        format: "pytorch", "pytorch legacy", "safetensors", "jittor", "pickle" or "caffe2".
        naming: whose names the file uses: "released", "torchvision", "caffe2" (both renamed here) or "unknown".
        rows: one per tensor of the file, what became of it.
        wrapped: the state dict lay under a key ("model", "state_dict", ...), not at the top.
        prefix: what wrappers had put into every name, and was removed ("module.", "_orig_mod.", or nothing).
        optimizer, scheduler: PyTorch's state dicts, with arrays; see `training_state.py`.
        iteration: iterations done, or None if the file does not say.
        metadata: the native header: "config", "preprocessing" (with "stride_in_1x1"), "versions", ...; for ImageNet
            backbones of torchvision and Detectron their known "preprocessing".
        others: names of further entries, not used.
    """

    tensors: dict[str, Tensor]
    path: Optional[Path] = None
    format: str = ""
    naming: str = backbones.RELEASED
    rows: list[Row] = field(default_factory=list)
    wrapped: bool = True
    prefix: str = ""
    optimizer: Optional[dict] = None
    scheduler: Optional[dict] = None
    iteration: Optional[int] = None
    metadata: dict[str, Any] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)

    @property
    def likeness(self) -> Likeness:
        return likeness({name: tuple(tensor.shape) for name, tensor in self.tensors.items()})

    def in_order(self, names: Iterable[str]) -> list[str]:
        """`names` in the order in which the file has them; what it has not comes last, as it was."""
        place = {name: index for index, name in enumerate(self.tensors)}
        return sorted(names, key=lambda name: place.get(name, len(place)))

    def in_float32(self) -> WeightFile:
        """The same with float16 and bfloat16 as float32, which changes no value; the rest, as the network wants it, later."""
        floats = {name: as_float32(tensor) for name, tensor in self.tensors.items() if dtype_name(tensor) in HALVES}
        return replace(self, tensors={**self.tensors, **floats})


def read(path: str | Path) -> WeightFile:
    """Read a weight file of any supported kind; what it is, its content decides, not its suffix.

    Raises:
        UserError: if there is no such file, or it is no checkpoint, truncated, damaged, or asks for a name outside
            the allow-list. Nothing of a refused file has run, and memory stays within a small multiple of its size.
    """
    path = Path(path)
    refuse_special(path)
    try:
        file = _read(path)
    except FormatError as error:
        raise UserError(f"{path} cannot be read as a checkpoint: {error}") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except MemoryError as error:
        raise UserError(f"not enough memory to read {path} ({path.stat().st_size >> 20} MB)") from error
    except Exception as error:  # a damaged file breaks any assumption that the readers did not check by name
        raise UserError(f"{path} cannot be read as a checkpoint: it is damaged ({type(error).__name__})") from error
    file.path = path
    return file


def stored_config(path: str | Path) -> Optional[dict]:
    """The configuration in the header of a native checkpoint, without its tensors; None where there is none, or no file.

    What is wrong with a file, `read` says.
    """
    try:
        refuse_special(path)
        with open(path, "rb") as stream:
            start = stream.read(10)
            length = header_length(start)
            header = b"" if length is None else (start + stream.read(length))[8 : 8 + length]
        config = parse_json(parse_json(header)["__metadata__"]["jrdp"])["config"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return config if isinstance(config, dict) else None


def _read(path: Path) -> WeightFile:
    if path.is_dir():
        raise FormatError("it is a folder")
    with open(path, "rb") as stream:
        start = stream.read(512)
    if start[:4] == b"PK\x03\x04":
        return _unwrap(read_zip(path), "pytorch")
    data = path.read_bytes()
    # Before the pickles: a header's length may begin with any byte, but a pickle never reads as such a length.
    if header_length(data) is not None:
        return _from_safetensors(*read_safetensors(data))
    if start[:1] in (b"\x80", b"(", b"}") or is_jittor(data):
        if start.find(MAGIC_NUMBER.to_bytes(10, "little")) in range(2, 32):
            return _unwrap(read_legacy(data), "pytorch legacy")
        return _unwrap(read_pickle(data), "jittor" if is_jittor(data) else "pickle")
    raise FormatError(_what_else(start))


_OTHER_FORMATS = (
    (b"\x1f\x8b", "it is compressed with gzip: unpack it first"),
    (b"BZh", "it is compressed with bzip2: unpack it first"),
    (b"\xfd7zXZ", "it is compressed with xz: unpack it first"),
    (b"7z\xbc\xaf", "it is a 7z archive: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "it is compressed with zstd: unpack it first"),
    (b"Rar!", "it is a rar archive: unpack it first"),
    (b"\x89HDF", "it is an HDF5 file (Keras), which is not supported"),
    (b"\x93NUMPY", "it is one NumPy array (.npy), not a dictionary of tensors"),
    (b"GGUF", "it is a GGUF file, which is not supported"),
    (b"PK\x05\x06", "it is an empty zip file"),
    (b"{", "it is text (JSON), not weights"),
    (b"<?xml", "it is text (XML), not weights"),
)


def _what_else(start: bytes) -> str:
    text = start.lstrip().lower()
    if not start:
        return "it is empty"
    if text.startswith((b"<!doctype", b"<html")):
        return "it is a web page: the download did not give the file itself"
    if text.startswith(b"version https://git-lfs"):
        return "it is a pointer of git-lfs: fetch the file itself with `git lfs pull`"
    if start[257:262] == b"ustar":
        return "it is a tar archive, as torch 0.1 wrote or as files are packed: unpack it, or save it anew with torch.save"
    for beginning, meaning in _OTHER_FORMATS:
        if start.startswith(beginning):
            return meaning
    return "it is not a checkpoint (known: PyTorch .pth, Jittor or Detectron .pkl, .safetensors)"


def _from_safetensors(tensors: dict[str, Tensor], header: dict[str, str]) -> WeightFile:
    if not tensors:
        raise FormatError("it holds no tensors")
    file = _named_without_prefix(tensors, "safetensors")
    if "jrdp" in header:
        try:
            native = parse_json(header["jrdp"])
        except ValueError as error:
            raise FormatError("its jrdp header is not valid JSON: the file is damaged") from error
        if not isinstance(native, dict):
            raise FormatError("its jrdp header is damaged")
        file.metadata.update(native)
        file.iteration = _iterations(native.get("iteration"))
        if native.get("packed") is not None:
            return WeightFile(packed_backbone.expand(file.tensors), format=file.format, metadata=dict(packed_backbone.METADATA))
    return file


def _unwrap(value: Any, form: str) -> WeightFile:
    """The weights in what a pickle held, and the training state beside them."""
    found = find_weights(value)
    if not found.tensors:
        raise FormatError("it holds no tensors")
    file = _named_without_prefix(found.tensors, form)
    file.wrapped = bool(found.path)
    file.others = found.others
    if found.path:
        file.optimizer = value.get("optimizer") if isinstance(value.get("optimizer"), dict) else None
        file.scheduler = value.get("scheduler") if isinstance(value.get("scheduler"), dict) else None
        file.iteration = _iterations(value.get("iteration"))
        native = value.get("jrdp")
        if isinstance(native, str):
            try:
                file.metadata.update(parse_json(native))
            except (ValueError, TypeError) as error:
                raise FormatError("its jrdp header is not valid JSON: the file is damaged") from error
        file.others = [name for name in found.others if name not in ("optimizer", "scheduler", "iteration", "jrdp")]
    return file


def _named_without_prefix(tensors: dict[str, Tensor], form: str) -> WeightFile:
    short, prefix, counters = without_prefixes(tensors)
    file = named(short, form)
    file.prefix = prefix
    for name in counters:
        file.rows.append(Row(name, None, tuple(tensors[name].shape), dtype_name(tensors[name]), "left out: a counter"))
    return file


def named(tensors: dict[str, Tensor], form: str) -> WeightFile:
    """Rename an ImageNet backbone's tensors; take others as they are."""
    naming = backbones.naming(tensors)
    if naming == backbones.TORCHVISION:
        renamed = backbones.from_torchvision(tensors)
        metadata = {"preprocessing": dict(backbones.TORCHVISION_PREPROCESSING)}
    elif naming == backbones.CAFFE2:
        renamed = backbones.from_caffe2(tensors)
        grouped = likeness({name: tuple(tensor.shape) for name, tensor in renamed.tensors.items()}).backbone == "x101"
        metadata = {"preprocessing": {**backbones.DETECTRON_PREPROCESSING, "stride_in_1x1": not grouped}}
        form = "caffe2"
    else:
        renamed = backbones.Renamed({})
        for name, tensor in tensors.items():
            renamed.put(name, name, tensor)
        metadata = {}
    return WeightFile(renamed.tensors, format=form, naming=naming, rows=renamed.rows, metadata=metadata)


def _iterations(value: Any) -> Optional[int]:
    """A number of iterations as people store it: 300, 300.0, or a tensor with that one number."""
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.item()
    if type(value) is float and value.is_integer():
        value = int(value)
    return value if type(value) is int and value >= 0 else None


def check_writable(path: str | Path) -> None:
    """Make sure that weights can be written to `path`, making its folder, before they are fetched or computed.

    Raises:
        UserError: for a suffix that no format has, or a place that cannot be written to.
    """
    if Path(path).suffix.lower() not in SUFFIXES:
        raise UserError(f"cannot write {path}: the suffix must be one of {', '.join(SUFFIXES)}")
    check_target(path)


def write(path: str | Path, file: WeightFile, legacy: bool = False) -> list[str]:
    """Write by suffix, whole or not at all: .pth (`legacy`: as torch < 1.6), .pkl (Jittor), .safetensors.

    A .pth holds {"model", "optimizer", "scheduler", "iteration"} (those that are there) and the native header as JSON
    text under "jrdp"; a .safetensors holds weights and header; a .pkl the weights alone. Names are the released ones,
    without prefix; element types stay, except bfloat16 in .pkl, which becomes float32.

    Returns:
        One sentence for each thing in `file` that this format does not hold.

    Raises:
        UserError: for another suffix, or a place that cannot be written to.
    """
    check_writable(path)
    path = Path(path)
    suffix = path.suffix.lower()
    if legacy and suffix not in (".pth", ".pt"):
        raise UserError(f"cannot write {path}: the legacy format is a .pth file")
    header = dict(file.metadata)
    if file.iteration is not None:
        header["iteration"] = file.iteration
    left_out = []
    try:
        if suffix in (".pth", ".pt"):
            with atomic_write(path) as stream:
                (write_legacy if legacy else write_zip)(stream, _wrapped(file, header))
        elif suffix == ".safetensors":
            if file.optimizer is not None:
                left_out.append("the optimizer's state is not part of a .safetensors file")
            metadata = {"format": "pt", **({"jrdp": json.dumps(header)} if header else {})}
            with atomic_write(path) as stream:
                write_safetensors(stream, file.tensors, metadata)
        else:
            if file.optimizer is not None or header:
                left_out.append("a .pkl file holds weights only: no optimizer, iteration or preprocessing")
            if any(isinstance(tensor, BFloat16) for tensor in file.tensors.values()):
                left_out.append("bfloat16 is stored as float32 (same values): NumPy has no such type")
            with atomic_write(path) as stream:
                write_jittor(stream, file.tensors)
    except FormatError as error:
        raise UserError(f"cannot write {path}: {error}") from error
    return left_out


def _wrapped(file: WeightFile, header: dict) -> dict:
    value: dict[str, Any] = {"model": OrderedDict(file.tensors)}
    if file.optimizer is not None:
        value["optimizer"] = file.optimizer
    if file.scheduler is not None:
        value["scheduler"] = file.scheduler
    if file.iteration is not None:
        value["iteration"] = file.iteration
    if set(header) - {"iteration"}:
        value["jrdp"] = json.dumps(header)
    return value


def infer_config(file: WeightFile) -> dict:
    """Values for `Config` that the file tells: "model" from its keys and shapes, "input" from its preprocessing."""
    model = file.likeness.model_config()
    config: dict = {"model": model}
    preprocessing = file.metadata.get("preprocessing")
    if isinstance(preprocessing, dict):
        stride = preprocessing.get("stride_in_1x1")
        if stride is not None and "backbone" in model:
            model["backbone"]["stride_in_1x1"] = stride
        names = ("min_size", "max_size", "channel_order", "scale", "mean", "std")
        config["input"] = {name: preprocessing[name] for name in names if name in preprocessing}
    return config


def infer_model(file: WeightFile) -> dict:
    """Values for `ModelConfig` that the file tells; see `infer_config`."""
    return infer_config(file)["model"]
