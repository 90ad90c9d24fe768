"""What is asked of a weight file before Jittor is imported: the likeliest mistake is named first."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from jrdp import interchange
from jrdp.config import Config
from jrdp.engine.start import read_start
from jrdp.engine.weights import config_of, is_backbone_only
from jrdp.errors import UserError

BLOCKS = {"resnet18": (2, 2, 2, 2), "resnet50": (3, 4, 6, 3)}


@pytest.fixture(params=BLOCKS)
def torchvision_file(request, tmp_path):
    """torchvision's ResNet-18 or ResNet-50, with its names and shapes: pixels, strides and, of ResNet-18, blocks are others."""
    tensors: dict[str, np.ndarray] = {}

    def convolution(name: str, norm: str, shape: tuple) -> None:
        tensors[f"{name}.weight"] = np.full(shape, 0.01, np.float32)
        for part in ("weight", "bias", "running_mean", "running_var"):
            tensors[f"{norm}.{part}"] = np.ones(shape[0], np.float32)

    convolution("conv1", "bn1", (64, 3, 7, 7))
    bottleneck = request.param == "resnet50"
    channels = 64
    for stage, blocks in enumerate(BLOCKS[request.param]):
        width = 64 << stage
        for block in range(blocks):
            prefix = f"layer{stage + 1}.{block}"
            if bottleneck:
                shapes = [(width, channels, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)]
            else:
                shapes = [(width, channels, 3, 3), (width, width, 3, 3)]
            for index, shape in enumerate(shapes, start=1):
                convolution(f"{prefix}.conv{index}", f"{prefix}.bn{index}", shape)
            if shapes[-1][0] != channels:
                convolution(f"{prefix}.downsample.0", f"{prefix}.downsample.1", (shapes[-1][0], channels, 1, 1))
            channels = shapes[-1][0]
    tensors["fc.weight"], tensors["fc.bias"] = np.ones((1000, channels), np.float32), np.ones(1000, np.float32)
    path = tmp_path / f"{request.param}.safetensors"
    save_file(tensors, path)
    return path


def test_another_backbone_is_named_before_its_preprocessing(torchvision_file):
    with pytest.raises(UserError) as refused:
        config_of(interchange.read(torchvision_file), Config(), [])
    if torchvision_file.stem == "resnet18":
        assert "ResNet-50 is needed (model.backbone.name=r50), it looks like ResNet-18 alone" in str(refused.value)
    else:
        assert "holds an ImageNet backbone alone (ResNet-50 alone): it can start a training" in str(refused.value)


def test_a_backbone_that_could_start_a_training_is_asked_for_its_preprocessing(torchvision_file):
    config = Config()
    config.train.weights = str(torchvision_file)
    with pytest.raises(UserError) as refused:
        read_start(config)
    if torchvision_file.stem == "resnet18":
        assert "it looks like ResNet-18 alone" in str(refused.value)
    else:
        assert "was made for another preprocessing than the config: use --set input.channel_order=rgb" in str(refused.value)


def test_a_file_without_tensors_is_no_backbone():
    assert not is_backbone_only(interchange.WeightFile({}))
