"""A loaded network and what it says about one photograph; `jrdp.load` gives it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Mapping, NamedTuple

import numpy as np
from PIL import Image

from jrdp import interchange, visualize
from jrdp.config import Config
from jrdp.data.transforms import PreparedImage, batch_images, decoded, prepare_image, read_image
from jrdp.engine.inference import detect_batch, sorted_by_score
from jrdp.engine.network import fast_network, predicts_fast
from jrdp.engine.weights import check_finite
from jrdp.fast import FastNetwork
from jrdp.interchange import WeightFile, native
from jrdp.interchange.layout import shapes_of
from jrdp.masks import PastedMasks
from jrdp.models.layers import without_initial_weights
from jrdp.models.rdpnet import RDPNet
from jrdp.models.state import assign_state, named_tensors, tensor_dtypes
from jrdp.ops import paste
from jrdp.structures import Instances


@dataclass
class Prediction:
    """The salient instances of one photograph, highest score first; boxes and masks in its pixels.

    photo: RGB uint8 `[height, width, 3]`.
    instances: see `jrdp.structures.Instances`; its masks are pasted when first asked for.
    """

    photo: np.ndarray
    instances: Instances
    mask_threshold: float = 0.5

    @property
    def boxes(self) -> np.ndarray:
        """float32 `[K, 4]`, (x1, y1, x2, y2), both corners inside the box."""
        return self.instances.boxes

    @property
    def scores(self) -> np.ndarray:
        """float32 `[K]` in 0..1."""
        return self.instances.scores

    @property
    def masks(self) -> np.ndarray:
        """bool `[K, height, width]`."""
        if self.instances.masks is None:
            self.instances.masks = self.pasted().arrays()
        return self.instances.masks

    def pasted(self) -> PastedMasks:
        """The masks as bits, which can be sent to another process and become arrays or run lengths there."""
        height, width = self.instances.size
        return paste(self.instances.mask_probabilities, self.instances.boxes, height, width, self.mask_threshold)

    def above(self, threshold: float) -> Prediction:
        """The instances with a score above `threshold`."""
        return Prediction(self.photo, self.instances.select(self.scores > threshold), self.mask_threshold)

    def mask_rle(self) -> list[dict]:
        """The masks as COCO run lengths, without building them at full size all at once."""
        return self.pasted().run_lengths()

    def overlay(self, threshold: float = 0.5) -> np.ndarray:
        """The photograph with the instances above `threshold` drawn on it, RGB uint8."""
        shown = self.above(threshold)
        return visualize.overlay(self.photo, shown.masks, shown.boxes, shown.scores)

    def save(self, path: str | Path, threshold: float = 0.5) -> None:
        """Write the overlay; the suffix chooses the format."""
        visualize.save_image(self.overlay(threshold), Path(path))


class Ready(NamedTuple):
    """A photograph, RGB and upright, and what the network is given of it."""

    photo: Image.Image
    prepared: PreparedImage


class SalientInstanceModel:
    """A network with its weights and the preprocessing they were trained with.

    engine: what predicts, see `jrdp.engine.network`.
    """

    def __init__(self, engine: RDPNet | FastNetwork, config: Config, network: Callable[[], RDPNet]):
        self.engine = engine
        self.config = config
        self._network = network

    @property
    def network(self) -> RDPNet:
        """The network itself, to look into or to train further.

        Where a CPU predicts with the fast engine, which cannot learn, the weights are read again; from then on this
        network predicts, so that what it learns shows.
        """
        if not isinstance(self.engine, RDPNet):
            self.engine = self._network()
        return self.engine

    def save_weights(self, path: str | Path) -> None:
        """Write the network's weights and the configuration as .safetensors, which `jrdp.load` reads."""
        tensors = {name: value.numpy() for name, value in named_tensors(self.network).items()}
        interchange.write(path, WeightFile(tensors, iteration=0, metadata=native.header(self.config, 0)))

    @property
    def upright(self) -> bool:
        """Whether files are turned as their EXIF orientation or their video's rotation says."""
        return self.config.input.exif != "ignore"

    def predict(self, picture: str | Path | Image.Image | np.ndarray) -> Prediction:
        """Find the salient instances of a file, a PIL image or an RGB uint8 array `[height, width, 3]`.

        Raises:
            UserError: if the file is missing or not a readable picture.
            ValueError: for an array of another type or shape. TypeError: for another kind of argument.
        """
        return self.predict_batch([picture])[0]

    def predict_batch(self, pictures: list) -> list[Prediction]:
        """`predict` for several pictures, which share one run of the network, padded to the largest.

        Raises as `predict`, and `TypeError` for a single picture.
        """
        if isinstance(pictures, (str, os.PathLike, Image.Image)) or (isinstance(pictures, np.ndarray) and pictures.ndim < 4):
            raise TypeError("pictures: expected a list of pictures; predict takes a single one")
        return self.predict_ready([self.ready(picture) for picture in pictures])

    def ready(self, picture: str | Path | Image.Image | np.ndarray) -> Ready:
        """What `predict` does before it runs the network, which another thread can do beside one. Raises as `predict`."""
        photo = _as_image(picture, self.upright)
        return Ready(photo, prepare_image(photo, self.config.input))

    def predict_ready(self, pictures: list[Ready]) -> list[Prediction]:
        """`predict_batch` of what `ready` gave."""
        batch = batch_images([picture.prepared for picture in pictures])
        return [
            Prediction(np.asarray(picture.photo), sorted_by_score(found), self.config.test.mask_threshold)
            for picture, found in zip(pictures, detect_batch(self.engine, batch))
        ]


def build(file: WeightFile, config: Config) -> SalientInstanceModel:
    """The network of `config` filled strictly with the tensors of a weight file; Jittor must have been started.

    Raises:
        UserError: if the file does not hold exactly the tensors of that network.
    """
    if predicts_fast(config):
        engine = fast_network(_fitting(shapes_of(config.model), file, {}), config)
    else:
        engine = _filled(file, config)
    return SalientInstanceModel(engine, config, _ReadAgain(file.path, config))


class _ReadAgain:
    """Makes the network anew from its file; what keeps a model from being pickled with a file that may be another there."""

    def __init__(self, path: str | Path, config: Config):
        self._path, self._config = path, config

    def __call__(self) -> RDPNet:
        return _filled(interchange.read(self._path), self._config)

    def __reduce__(self):
        raise TypeError("a model is not sent to another process: call jrdp.load there, as in the initializer of a pool")

    def __deepcopy__(self, memo) -> _ReadAgain:
        return self


def _filled(file: WeightFile, config: Config) -> RDPNet:
    with without_initial_weights():
        network = RDPNet(config.model)
    shapes = {name: tuple(value.shape) for name, value in named_tensors(network).items()}
    assign_state(network, _fitting(shapes, file, tensor_dtypes(network)))
    return network


def _fitting(shapes: dict[str, tuple], file: WeightFile, dtypes: Mapping[str, str]) -> dict[str, np.ndarray]:
    tensors = interchange.match(shapes, file, dtypes).tensors
    check_finite(tensors, file.path)
    return tensors


def _as_image(picture: str | Path | Image.Image | np.ndarray, upright: bool) -> Image.Image:
    if isinstance(picture, Image.Image):
        return decoded(picture, upright)
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
            raise ValueError(f"a picture is RGB uint8 [height, width, 3], not {picture.dtype} {list(picture.shape)}")
        return Image.fromarray(picture)
    if not isinstance(picture, (str, os.PathLike)):
        raise TypeError(f"a picture is a file, a PIL image or an array, not {type(picture).__name__}")
    return read_image(picture, upright=upright)
