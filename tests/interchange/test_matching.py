"""Strict matching: what passes, and that each kind of misfit is named."""

import numpy as np
import pytest

from jrdp import interchange
from jrdp.errors import UserError
from jrdp.interchange import BFloat16, WeightFile
from jrdp.interchange.layout import LAST_SCALE, backbone_layout, network_layout


def network(backbone="r50", **variant):
    return {entry.name: entry.shape for entry in network_layout(backbone, **variant)}


@pytest.fixture(scope="module")
def weights():
    """Zero-strided constants: the network's shapes without its memory."""
    return {name: np.broadcast_to(np.float32(0.5), shape) for name, shape in network().items()}


def misfit(expected, source, kind=None):
    with pytest.raises(UserError) as caught:
        interchange.match(expected, source, kind)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1500
    return str(caught.value)


def test_every_name_is_filled_once_in_the_networks_order(weights):
    shuffled = dict(sorted(weights.items()))
    matched = interchange.match(network(), shuffled)
    assert list(matched.tensors) == list(network()) and matched.ignored == {}
    assert matched.used == {name: name for name in network()}
    assert [row.target for row in matched.rows] == list(network())
    assert all(tensor.dtype == np.float32 for tensor in matched.tensors.values())


def test_types_are_widened_for_the_model_and_kept_for_conversion():
    expected = {"a": (2,), "b": (2,), "c": (2,)}
    bits = np.array([0x3F80, 0xC040], np.uint16)
    source = {"a": BFloat16(bits), "b": np.array([0.1, 3], np.float64), "c": np.array([0.1, 3], np.float16)}
    matched = interchange.match(expected, source)
    assert matched.tensors["a"].tolist() == [1.0, -3.0]
    assert np.array_equal(matched.tensors["b"], source["b"].astype(np.float32))
    assert np.array_equal(matched.tensors["c"], source["c"].astype(np.float32))
    assert all(matched.exact[name] is source[name] for name in expected)
    assert [row.dtype for row in matched.rows] == ["bfloat16", "float64", "float16"]


def test_the_written_exceptions(weights):
    source = {**weights, "backbone.body.stem.bn1.num_batches_tracked": np.asarray(7, np.int64)}
    source.pop(LAST_SCALE)
    matched = interchange.match(network(), source)
    assert list(matched.ignored) == ["backbone.body.stem.bn1.num_batches_tracked"]
    assert matched.tensors[LAST_SCALE].tolist() == [1.0]
    smaller = {name: shape for name, shape in network().items() if name != LAST_SCALE}
    matched = interchange.match(smaller, weights)
    assert LAST_SCALE not in matched.tensors and "never used" in matched.ignored[LAST_SCALE]
    missing = dict(weights)
    missing.pop("rpn.head.scales.4.scale")  # another scale is no exception
    assert "1 missing (rpn.head.scales.4.scale)" in misfit(network(), missing)


def test_missing_unexpected_and_misshaped_are_named_with_the_nearest(weights):
    source = dict(weights)
    source["backbone.fpn.fpn_inner_2.weight"] = source.pop("backbone.fpn.fpn_inner2.weight")
    source["rpn.head.cls_logits.weight"] = np.zeros((2, 128, 3, 3), np.float32)
    message = misfit(network(), source)
    assert "1 missing (backbone.fpn.fpn_inner2.weight [nearest: backbone.fpn.fpn_inner_2.weight])" in message
    assert "1 unexpected (backbone.fpn.fpn_inner_2.weight [nearest: backbone.fpn.fpn_inner2.weight])" in message
    assert "1 mis-shaped (rpn.head.cls_logits.weight is 2x128x3x3, not 1x128x3x3)" in message


def test_integers_are_not_weights(weights):
    source = {**weights, "rpn.head.cls_logits.bias": np.zeros(1, np.int64)}
    assert "1 not floating-point (rpn.head.cls_logits.bias is int64)" in misfit(network(), source)


@pytest.mark.parametrize(
    "variant, words",
    [
        ({"backbone": "r101"}, ["255 missing (backbone.body.layer3.6.", "network is ResNet-101", "like ResNet-50"]),
        ({"backbone": "x101"}, ["mis-shaped", "the network is ResNeXt-101 32x8d"]),
        ({"enhancement": "dense"}, ["8 unexpected (backbone.fpn.att_block_1.", "network is ResNet-50, dense pyramid"]),
        ({"enhancement": "none"}, ["26 unexpected (backbone.fpn.refine_block_1.", "network is ResNet-50, plain FPN"]),
        ({"fusion": "3x3"}, ["missing (backbone.fpn.refine_block_2.weight", "3x3 fusion"]),
        ({"head_channels": 256}, ["mis-shaped (rpn.head.cls_tower.0.weight is 128x256x3x3", "256-channel head"]),
        ({"mask_head": "single_level"}, ["single_level mask head", "looks like ResNet-50, regularized pyramid"]),
    ],
)
def test_another_network_is_called_by_its_name(variant, words, weights):
    message = misfit(network(**variant), WeightFile(weights))
    for word in words:
        assert word in message, message


def test_a_backbone_alone_does_not_make_a_detector(weights):
    body = {name: tensor for name, tensor in weights.items() if name.startswith("backbone.body.")}
    message = misfit(network(), WeightFile(body))
    assert "an ImageNet backbone alone (ResNet-50 alone)" in message and "train.weights" in message
    only = {entry.name: entry.shape for entry in backbone_layout("r50")}
    assert list(interchange.match(only, WeightFile(body)).tensors) == list(only)


def test_strangers_and_hostile_names_give_short_messages():
    assert "no part of RDPNet" in misfit(network(), {"x" * 100_000: np.zeros(1, np.float32)})
    many = {f"name{i}" * 20: np.zeros(1, np.float32) for i in range(20_000)}
    assert "20000 unexpected" in misfit(network(), many)


def test_three_names_are_shown_and_the_rest_counted():
    message = misfit({name: (1,) for name in "abcde"}, {"a": np.zeros(1, np.float32)})
    assert "4 missing (b, c, d, and 1 more)" in message
    assert "3 missing (b, c, d)" in misfit({name: (1,) for name in "abcd"}, {"a": np.zeros(1, np.float32)})


def test_the_file_is_named_where_there_is_one():
    given = {"b": np.zeros(1, np.float32)}
    assert misfit({"a": (1,)}, WeightFile(given, path="mine.pth")).startswith("mine.pth does not fit the network: ")
    assert misfit({"a": (1,)}, WeightFile(given)).startswith("the weights does not fit the network: ")


def test_names_of_torchvision_are_told_with_ours():
    given = {"conv1.weight": np.ones((64, 3, 7, 7), np.float32), "fc.bias": np.zeros(1000, np.float32)}
    matched = interchange.match({"backbone.body.stem.conv1.weight": (64, 3, 7, 7)}, given, "torchvision")
    assert matched.used == {"conv1.weight": "backbone.body.stem.conv1.weight"} and list(matched.ignored) == ["fc.bias"]
    assert {(row.source, row.target) for row in matched.rows} == {
        ("conv1.weight", "backbone.body.stem.conv1.weight"), ("fc.bias", None)
    }  # fmt: skip


def test_a_part_is_what_has_name_and_shape():
    given = {
        "same": np.array([1.5, 2], np.float16), "other.shape": np.zeros(3, np.float32), "integer": np.zeros(2, np.int64),
        "stranger": np.zeros(1, np.float32),
    }  # fmt: skip
    part = interchange.match_part({"same": (2,), "other.shape": (2,), "integer": (2,), "absent": (1,)}, WeightFile(given))
    assert list(part.tensors) == ["same"] and part.tensors["same"].dtype == np.float32
    assert part.tensors["same"].tolist() == [1.5, 2]
    assert part.missing == ["absent"] and part.misshaped == ["other.shape", "integer"] and part.unused == ["stranger"]
    with pytest.raises(UserError, match="the weights: no tensor has the name and shape"):
        interchange.match_part({"absent": (1,)}, WeightFile(given))
