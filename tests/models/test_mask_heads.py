"""The two mask heads."""

import jittor as jt
import numpy as np
import pytest

from jrdp.models.shapes import STRIDES
from jrdp.models.mask_decoder import MaskHead, roi_levels
from jrdp.ops import roi_align

SIZES = ((40, 60), (20, 30), (10, 15), (5, 8), (3, 4))


@pytest.fixture(scope="module")
def features():
    rng = np.random.default_rng(0)
    return [jt.array(rng.standard_normal((2, 256, *size)).astype(np.float32)) for size in SIZES]


ROIS = np.array(
    [
        [1, 10, 20, 460, 300],  # P4
        [0, 5, 5, 60, 70],  # P3
        [0, 0, 0, 479, 319],  # P4
        [1, 100.5, 50.25, 180, 90],  # P3
        [1, 30, 30, 30, 30],  # P3, one pixel
    ],
    np.float32,
)


def test_level_of_a_box():
    sides = np.array([1, 111, 112, 223, 224, 447, 448, 896, 1792, 5000], np.float32)
    boxes = np.stack([0 * sides, 0 * sides, sides - 1, sides - 1], axis=1)
    assert roi_levels(boxes).tolist() == [3, 3, 3, 3, 4, 4, 5, 6, 7, 7]
    assert roi_levels(boxes, coarsest=5).tolist() == [3, 3, 3, 3, 4, 4, 5, 5, 5, 5]
    assert roi_levels(np.array([[0, 0, 111, 447]], np.float32)).tolist() == [4], "the area counts"
    assert roi_levels(boxes[:0]).shape == (0,)


@pytest.mark.parametrize("head, resolution", [("multi_level", 32), ("single_level", 28)])
def test_each_roi_is_decoded_for_itself(features, head, resolution):
    """So the order and the company of RoIs do not matter, and only those that learn need to be decoded in training."""
    mask = MaskHead(256, head)
    assert mask.resolution == resolution
    together = mask(features, jt.array(ROIS)).numpy()
    assert together.shape == (len(ROIS), 2, resolution, resolution)
    backwards = mask(features, jt.array(ROIS[::-1].copy())).numpy()[::-1]
    alone = mask(features, jt.array(ROIS[3:4])).numpy()
    scale = np.abs(together).max()
    assert np.abs(backwards - together).max() <= 1e-5 * scale
    assert np.abs(alone[0] - together[3]).max() <= 1e-5 * scale


@pytest.mark.parametrize("head, resolution", [("multi_level", 32), ("single_level", 28)])
def test_no_rois(features, head, resolution):
    found = MaskHead(256, head)(features, jt.zeros((0, 5)))
    assert tuple(found.shape) == (0, 2, resolution, resolution)


def test_single_level_pools_each_roi_from_its_level(features):
    mask = MaskHead(256, "single_level")
    stages = {}
    mask(features, jt.array(ROIS), stages)
    assert list(stages) == ["mask_roi", "mask_conv_1", "mask_conv_2", "mask_conv_3", "mask_conv_4", "mask_logits"]
    for k, level in enumerate([4, 3, 4, 3, 3]):
        rois = jt.array(ROIS[k : k + 1])
        expected = roi_align(features[level - 3], rois, 14, 1 / STRIDES[level - 3], 2).numpy()[0]
        np.testing.assert_array_equal(stages["mask_roi"].numpy()[k], expected)


def test_single_level_predictor_doubles_the_map():
    mask = MaskHead(256, "single_level")
    x = np.random.default_rng(1).standard_normal((2, 256, 3, 4)).astype(np.float32)
    weight, bias = mask.predictor.conv5_mask.weight.numpy(), np.arange(256, dtype=np.float32) / 100
    mask.predictor.conv5_mask.bias.assign(bias)
    up = np.einsum("nihw,ioyx->nohywx", x.astype(np.float64), weight).reshape(2, 256, 6, 8) + bias[:, None, None]
    logits = mask.predictor.mask_fcn_logits.weight.numpy()[:, :, 0, 0]
    expected = np.einsum("oc,nchw->nohw", logits, np.maximum(up, 0))
    found = mask.predictor(jt.array(x)).numpy()
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("head", ["multi_level", "single_level"])
def test_gradients_reach_features_and_parameters(features, head):
    mask = MaskHead(256, head)
    loss = (mask(features, jt.array(ROIS)) ** 2).sum()
    inputs = features if head == "multi_level" else features[:2]
    for grad in jt.grad(loss, [*inputs, *mask.parameters()]):
        assert np.abs(grad.numpy()).max() > 0
