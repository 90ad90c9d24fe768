"""Names, order, shapes and kinds of the tensors against the released checkpoints'."""

import json

import jittor as jt
import numpy as np
import pytest

from jrdp.config import Config, ModelConfig
from jrdp.errors import UserError
from jrdp.models.layers import Conv, FrozenBatchNorm, GroupNorm
from jrdp.models.rdpnet import RDPNet
from jrdp.models.resnet import ResNet
from jrdp.models.state import (
    UNUSED_PARAMETERS,
    assign_state,
    named_tensors,
    tensor_info,
    trainable_names,
    trainable_parameters,
)


def check_keys(model, golden, backbone: str) -> None:
    keys = json.loads((golden / f"keys_{backbone}.json").read_text())["keys"]
    found = [(name, list(info.shape), info.kind, info.trainable) for name, info in tensor_info(model).items()]
    assert found == [(name, shape, kind, bool(trainable)) for name, shape, kind, trainable, *_ in keys]


def test_r50_has_the_released_tensors(r50, golden):
    check_keys(r50, golden, "r50")


@pytest.mark.parametrize("backbone", ["r101", "x101"])
def test_deeper_networks_have_the_released_tensors(backbone, golden):
    check_keys(RDPNet(ModelConfig(backbone={"name": backbone})), golden, backbone)


def test_the_key_check_notices_a_layer_out_of_order(golden):
    model = RDPNet(ModelConfig())
    conv = model.backbone.body.layer2[0].conv1
    del model.backbone.body.layer2[0].conv1
    model.backbone.body.layer2[0].conv1 = conv
    with pytest.raises(AssertionError):
        check_keys(model, golden, "r50")


def test_what_training_moves(r50, golden):
    names = trainable_names(r50)
    assert len(names) == 157 and set(UNUSED_PARAMETERS) < set(names)
    assert list(trainable_parameters(r50)) == [name for name in names if name not in UNUSED_PARAMETERS]
    grad_norms = json.loads((golden / "r50" / "train.json").read_text())["grad_l2"]
    assert set(grad_norms) == set(names)


@pytest.mark.parametrize(
    "freeze_at, first", [(0, "stem.conv1.weight"), (1, "layer1.0.downsample.0.weight"), (5, None)]
)
def test_freezing(freeze_at, first):
    body = ResNet(freeze_at=freeze_at)
    assert next(iter(trainable_names(body)), None) == first


def test_state_goes_in_and_out():
    layers = jt.nn.Sequential(Conv(3, 2, 1), FrozenBatchNorm(2), jt.nn.ReLU(), GroupNorm(2, 1))
    layers[0].weight.stop_grad()
    state = {name: np.full(value.shape, k, np.float64) for k, (name, value) in enumerate(named_tensors(layers).items())}
    before = tensor_info(layers)
    with jt.no_grad():
        assign_state(layers, state)
    assert tensor_info(layers) == before
    assert trainable_names(layers) == ["0.bias", "3.weight", "3.bias"]
    for k, value in enumerate(named_tensors(layers).values()):
        assert value.dtype == "float32" and (value.numpy() == k).all()
    state["0.bias"][:] = 99
    assert (named_tensors(layers)["0.bias"].numpy() == 1).all(), "the array given and the tensor share memory"


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda state: state.pop("3.bias"), "missing: 3.bias$"),
        (lambda state: state.update(extra=np.zeros(1)), "unexpected: extra$"),
        (lambda state: state.update({"3.bias": np.zeros(3)}), r"another shape: 3.bias \(3,\) instead of \(2,\)"),
        (lambda state: state.clear(), "missing: 0.weight, 0.bias, 1.weight and 5 more"),
    ],
)
def test_a_state_that_does_not_fit_changes_nothing(change, message):
    layers = jt.nn.Sequential(Conv(3, 2, 1), FrozenBatchNorm(2), jt.nn.ReLU(), GroupNorm(2, 1))
    before = {name: value.numpy() for name, value in named_tensors(layers).items()}
    state = {name: value + 1 for name, value in before.items()}
    change(state)
    with pytest.raises(UserError, match=message):
        assign_state(layers, state)
    for name, value in named_tensors(layers).items():
        assert (value.numpy() == before[name]).all()


def test_initial_weights_are_as_released_and_repeatable():
    def tensors():
        jt.set_global_seed(3)
        return {name: value.numpy() for name, value in named_tensors(RDPNet(Config().model)).items()}

    first, second = tensors(), tensors()
    assert all((first[name] == second[name]).all() for name in first)

    def spread(name):
        return float(first[name].std())

    fan_in, fan_out = 256 * 9, 256 * 9
    assert np.abs(first["backbone.fpn.fpn_layer2.weight"]).max() <= np.sqrt(3 / fan_in)
    assert spread("backbone.fpn.top_blocks.p6.weight") == pytest.approx(np.sqrt(1 / fan_in), rel=0.01)
    assert spread("backbone.fpn.att_block_1.weight") == pytest.approx(np.sqrt(2 / fan_out), rel=0.01)
    assert spread("backbone.fpn.refine_block_5.0.weight") == pytest.approx(np.sqrt(2 / 256), rel=0.01)
    mask = "roi_heads.mask.feature_extractor.conv_maskdecoder_1.0.weight"
    assert spread(mask) == pytest.approx(np.sqrt(2 / (128 * 9)), rel=0.01)
    assert spread("roi_heads.mask.predictor.mask_fcn_logits.weight") == pytest.approx(1, rel=0.15)
    assert spread("rpn.head.cls_tower.3.weight") == pytest.approx(0.01, rel=0.01)
    assert first["rpn.head.cls_logits.bias"] == pytest.approx(-np.log(99))
    for name, value in first.items():
        if name.endswith(".scale") or name.endswith((".1.weight", "bn1.weight", "running_var")) and value.ndim == 1:
            assert (value == 1).all(), name
        elif name.endswith(("bias", "running_mean")) and name != "rpn.head.cls_logits.bias":
            assert (value == 0).all(), name
