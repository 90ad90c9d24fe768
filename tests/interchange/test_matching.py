"""Strict matching: what passes, and that each kind of misfit is named."""

import numpy as np
import pytest

from jrdp import interchange
from jrdp.errors import UserError
from jrdp.interchange import BFloat16, WeightFile
from jrdp.interchange.layout import LAST_SCALE, backbone_layout, network_layout
from jrdp.interchange.tensors import as_float32
from jrdp.interchange.weight_file import named


def network(backbone="r50", **variant):
    return {entry.name: entry.shape for entry in network_layout(backbone, **variant)}


@pytest.fixture(scope="module")
def weights():
    """Zero-strided constants: the network's shapes without its memory."""
    return {name: np.broadcast_to(np.float32(0.5), shape) for name, shape in network().items()}


def file_of(tensors):
    """A file of these tensors, as if it had been read."""
    return named(dict(tensors), "pytorch")


def told(matched):
    """What became of each tensor: {its name in the file: its name in the network, or why it was left out}."""
    return {row.source: row.target or row.note for row in matched.rows}


def misfit(expected, file):
    with pytest.raises(UserError) as caught:
        interchange.match(expected, file)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1500
    return str(caught.value)


def test_every_name_is_filled_once_in_the_networks_order(weights):
    shuffled = dict(sorted(weights.items()))
    matched = interchange.match(network(), file_of(shuffled))
    assert list(matched.tensors) == list(matched.exact) == list(network())
    assert told(matched) == {name: name for name in network()}
    assert [row.target for row in matched.rows] == list(network())
    assert all(tensor.dtype == np.float32 for tensor in matched.tensors.values())


def test_types_are_widened_for_the_model_and_kept_for_conversion():
    expected = {"a": (2,), "b": (2,), "c": (2,)}
    bits = np.array([0x3F80, 0xC040], np.uint16)
    source = {"a": BFloat16(bits), "b": np.array([0.1, 3], np.float64), "c": np.array([0.1, 3], np.float16)}
    matched = interchange.match(expected, file_of(source))
    assert matched.tensors["a"].tolist() == [1.0, -3.0]
    assert np.array_equal(matched.tensors["b"], source["b"].astype(np.float32))
    assert np.array_equal(matched.tensors["c"], source["c"].astype(np.float32))
    assert all(matched.exact[name] is source[name] for name in expected)
    assert [row.dtype for row in matched.rows] == ["bfloat16", "float64", "float16"]


def test_halves_are_widened_beforehand_and_nothing_else():
    tensors = {
        "half": np.array([0.1, 65504], np.float16),
        "bfloat16": BFloat16(np.array([0x3F80, 0x7F7F], np.uint16)),
        "float32": np.array([0.1], np.float32),
        "double": np.array([0.1]),
        "integer": np.array([2**24 + 1]),
    }
    file = WeightFile(dict(tensors), path="a.pth", iteration=7)
    wide = file.in_float32()
    assert wide.path == "a.pth" and wide.iteration == 7 and list(wide.tensors) == list(tensors)
    for name in ("integer", "double"):  # the network may have the same type
        assert wide.tensors[name] is tensors[name]
    for name in ("half", "bfloat16", "float32"):
        assert wide.tensors[name].dtype == np.float32
        np.testing.assert_array_equal(wide.tensors[name], as_float32(tensors[name]))
    assert file.tensors == tensors


def test_the_written_exceptions(weights):
    source = {**weights, "backbone.body.stem.bn1.num_batches_tracked": np.asarray(7, np.int64)}
    source.pop(LAST_SCALE)
    matched = interchange.match(network(), file_of(source))
    (counter,) = [row for row in matched.rows if row.target is None]
    assert (counter.source, counter.shape, counter.dtype) == ("backbone.body.stem.bn1.num_batches_tracked", (), "int64")
    assert "left out: a counter" in counter.note
    assert matched.tensors[LAST_SCALE].tolist() == [1.0]
    assert [(row.target, row.note) for row in matched.rows if row.source is None] == [
        (LAST_SCALE, "1: absent in the file, never used")
    ]
    smaller = {name: shape for name, shape in network().items() if name != LAST_SCALE}
    matched = interchange.match(smaller, file_of(weights))
    assert list(matched.tensors) == list(smaller) and "never used" in told(matched)[LAST_SCALE]
    missing = dict(weights)
    missing.pop("rpn.head.scales.4.scale")  # another scale is no exception
    assert "1 missing (rpn.head.scales.4.scale)" in misfit(network(), file_of(missing))


def test_missing_unexpected_and_misshaped_are_named_with_the_nearest(weights):
    source = dict(weights)
    source["backbone.fpn.fpn_inner_2.weight"] = source.pop("backbone.fpn.fpn_inner2.weight")
    source["rpn.head.cls_logits.weight"] = np.zeros((2, 128, 3, 3), np.float32)
    message = misfit(network(), file_of(source))
    assert "1 missing (backbone.fpn.fpn_inner2.weight [nearest: backbone.fpn.fpn_inner_2.weight])" in message
    assert "1 unexpected (backbone.fpn.fpn_inner_2.weight [nearest: backbone.fpn.fpn_inner2.weight])" in message
    assert "1 mis-shaped (rpn.head.cls_logits.weight is 2x128x3x3, not 1x128x3x3)" in message


def test_integers_are_not_weights(weights):
    source = {**weights, "rpn.head.cls_logits.bias": np.zeros(1, np.int64)}
    assert "1 not floating-point (rpn.head.cls_logits.bias is int64)" in misfit(network(), file_of(source))


def test_a_network_with_integers_takes_the_same_integers_alone():
    expected, dtypes = {"index": (2,), "wide": (2,), "scale": (2,)}, {"index": "int32", "wide": "float64", "scale": "float32"}
    given = {"index": np.array([1, 2**24 + 1], np.int32), "wide": np.array([0.1, 3]), "scale": np.array([0.1, 3], np.float16)}
    matched = interchange.match(expected, file_of(given), dtypes)
    assert {name: str(tensor.dtype) for name, tensor in matched.tensors.items()} == dtypes
    assert all(np.array_equal(matched.tensors[name], given[name]) for name in expected)
    part = interchange.match_part(expected, file_of({"index": given["index"]}), dtypes)
    assert part.tensors["index"].dtype == np.int32 and part.missing == ["wide", "scale"]
    for other in (np.int64, np.float32, bool):
        odd = file_of({**given, "index": given["index"].astype(other)})
        with pytest.raises(UserError, match=rf"1 of another type \(index is {np.dtype(other)}, not int32\); both look"):
            interchange.match(expected, odd, dtypes)
        assert interchange.match_part(expected, odd, dtypes).misshaped == ["index"]
    with pytest.raises(UserError, match=r"1 not floating-point \(scale is int32\)"):
        interchange.match(expected, file_of({**given, "scale": given["index"]}), dtypes)


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
    assert "no part of RDPNet" in misfit(network(), file_of({"x" * 100_000: np.zeros(1, np.float32)}))
    many = {f"name{i}" * 20: np.zeros(1, np.float32) for i in range(20_000)}
    assert "20000 unexpected" in misfit(network(), file_of(many))


def test_only_a_name_that_is_much_alike_is_told_as_the_nearest():
    one = np.zeros(1, np.float32)
    assert "(abcdefghij [nearest: abcdefghxy])" in misfit({"abcdefghij": (1,)}, file_of({"abcdefghxy": one}))  # 8 of 10 letters
    assert "(abcdefghij)" in misfit({"abcdefghij": (1,)}, file_of({"abcdefgxyz": one}))  # 7 of 10
    message = misfit({"layer.weight": (1,)}, file_of({"layer.weight": one, "layer.weights": one}))
    assert "does not fit the network: 1 unexpected (layer.weights [nearest: layer.weight]); both look" in message
    missing = misfit({"here.weight": (1,), "then.bias": (1,)}, file_of({"here.weight": one, "there.weight": one}))
    assert "1 unexpected (there.weight)" in missing  # a name that is filled is not what was meant


def test_a_long_name_is_cut():
    message = misfit({"a": (1,)}, file_of({"y" * 121: np.zeros(1, np.float32)}))
    assert f"({'y' * 120})" in message


def test_three_names_are_shown_and_the_rest_counted():
    file = file_of({"a": np.zeros(1, np.float32)})
    assert "4 missing (b, c, d, and 1 more)" in misfit({name: (1,) for name in "abcde"}, file)
    assert "3 missing (b, c, d)" in misfit({name: (1,) for name in "abcd"}, file)


def test_the_file_is_named_where_there_is_one():
    given = {"b": np.zeros(1, np.float32)}
    assert misfit({"a": (1,)}, WeightFile(given, path="mine.pth")).startswith("mine.pth does not fit the network: ")
    assert misfit({"a": (1,)}, WeightFile(given)).startswith("the weights does not fit the network: ")


def test_names_of_torchvision_are_told_with_ours():
    given = {
        "layer1.0.conv1.weight": np.ones((64, 64, 1, 1), np.float32), "bn1.running_var": np.ones(64, np.float32),
        "fc.bias": np.zeros(1000, np.float32),
    }  # fmt: skip
    expected = {"backbone.body.stem.bn1.running_var": (64,), "backbone.body.layer1.0.conv1.weight": (64, 64, 1, 1)}
    matched = interchange.match(expected, file_of(given))
    assert [(row.source, row.target, row.note) for row in matched.rows] == [
        ("fc.bias", None, "left out: the ImageNet classifier"),
        ("bn1.running_var", "backbone.body.stem.bn1.running_var", "+ 1e-05, the eps of torchvision's batch norm"),
        ("layer1.0.conv1.weight", "backbone.body.layer1.0.conv1.weight", ""),
    ]


def test_tensors_that_no_file_told_of_keep_their_names():
    matched = interchange.match({"a": (1,)}, WeightFile({"a": np.ones(1, np.float16)}))
    assert [(row.source, row.target, row.dtype) for row in matched.rows] == [("a", "a", "float16")]


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
