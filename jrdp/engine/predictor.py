"""The Python face of jrdp: `jrdp.load(...)` and `model.predict(...)`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from jrdp import interchange, runtime, visualize
from jrdp.config import Config, load_config, parse_config
from jrdp.data.transforms import batch_images, prepare_image, read_image
from jrdp.engine.inference import detect_batch, sorted_by_score
from jrdp.ops import paste_mask_rle, paste_masks
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
            height, width = self.instances.size
            self.instances.masks = paste_masks(
                self.instances.mask_probabilities, self.instances.boxes, height, width, self.mask_threshold
            )
        return self.instances.masks

    def above(self, threshold: float) -> Prediction:
        """The instances with a score above `threshold`."""
        return Prediction(self.photo, self.instances.select(self.scores > threshold), self.mask_threshold)

    def mask_rle(self) -> list[dict]:
        """The masks as COCO run lengths, without building them at full size all at once."""
        height, width = self.instances.size
        return paste_mask_rle(
            self.instances.mask_probabilities, self.instances.boxes, height, width, self.mask_threshold
        )

    def overlay(self, threshold: float = 0.5) -> np.ndarray:
        """The photograph with the instances above `threshold` drawn on it, RGB uint8."""
        shown = self.above(threshold)
        return visualize.overlay(self.photo, shown.masks, shown.boxes, shown.scores)

    def save(self, path: str | Path, threshold: float = 0.5) -> None:
        """Write the overlay; the suffix chooses the format."""
        visualize.save_image(self.overlay(threshold), Path(path))


class SalientInstanceModel:
    """A network with its weights and the preprocessing they were trained with."""

    def __init__(self, network, config: Config):
        self.network = network
        self.config = config

    def predict(self, picture: str | Path | Image.Image | np.ndarray) -> Prediction:
        """Find the salient instances of a file, a PIL image or an RGB uint8 array `[height, width, 3]`.

        Raises:
            UserError: if the file is missing or not a readable picture.
        """
        return self.predict_batch([picture])[0]

    def predict_batch(self, pictures: list) -> list[Prediction]:
        """`predict` for several pictures, which share one run of the network, padded to the largest."""
        photos = [_as_image(picture) for picture in pictures]
        batch = batch_images([prepare_image(photo, self.config.input, image_id=i) for i, photo in enumerate(photos)])
        return [
            Prediction(np.asarray(photo), sorted_by_score(found), self.config.test.mask_threshold)
            for photo, found in zip(photos, detect_batch(self.network, batch))
        ]


def load(
    weights: str | Path, config: str | Path | Config | None = None, device: str = "auto", overrides: list[str] = ()
) -> SalientInstanceModel:
    """Read weights of any supported kind and build the network they belong to.

    Without `config`, the configuration is the one in the file, or is inferred from its tensors (backbone, pyramid,
    mask head) with the released settings for everything else.

    Raises:
        UserError: if the file is not a checkpoint, or does not fit the configuration; or for `device="cuda"` without
            a usable GPU.
    """
    file = interchange.read(weights)
    settings = config_of(file, config, list(overrides))
    runtime.start(device)
    return build(file, settings)


def config_of(file, config: str | Path | Config | None, overrides: list[str]) -> Config:
    """The configuration for a weight file: given, else stored in the file, else inferred from its tensors."""
    if isinstance(config, Config):
        return config
    if config is not None:
        return load_config(config, overrides)
    stored = file.metadata.get("config")
    if stored is None:
        stored = {"model": interchange.infer_model(file)}
    return load_config(None, overrides, base=parse_config(stored, f"stored in {file.path}"))


def build(file, config: Config) -> SalientInstanceModel:
    """The network of `config` filled strictly with the tensors of a weight file; Jittor must have been started."""
    from jrdp.engine.start import check_preprocessing
    from jrdp.models.rdpnet import RDPNet
    from jrdp.models.state import assign_state, named_tensors

    check_preprocessing(file.metadata.get("preprocessing"), config, str(file.path))
    network = RDPNet(config.model)
    expected = {name: tuple(value.shape) for name, value in named_tensors(network).items()}
    assign_state(network, interchange.match(expected, file).tensors)
    network.eval()
    return SalientInstanceModel(network, config)
