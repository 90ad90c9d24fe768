"""The generated key lists against the released ones, and telling networks apart by their keys."""

import json

import pytest

from jrdp.interchange.layout import backbone_layout, likeness, network_layout


@pytest.mark.parametrize("backbone", ["r50", "r101", "x101"])
def test_keys_are_the_released_ones_in_order(backbone, golden):
    keys = json.loads((golden / f"keys_{backbone}.json").read_text())["keys"]
    found = [(entry.name, list(entry.shape), entry.trainable) for entry in network_layout(backbone)]
    assert found == [(key[0], key[1], bool(key[3])) for key in keys]


def shapes(entries):
    return {entry.name: entry.shape for entry in entries}


@pytest.mark.parametrize("backbone", ["r50", "r101", "x101"])
@pytest.mark.parametrize("enhancement", ["none", "progressive", "dense", "regularized", "pa", "nas_fpn", "bifpn"])
@pytest.mark.parametrize("levels", ["p3-p5", "p3-p7"])
@pytest.mark.parametrize("fusion", ["1x1_3x3", "3x3"])
@pytest.mark.parametrize("mask_head", ["multi_level", "single_level"])
def test_every_variant_is_recognised(backbone, enhancement, levels, fusion, mask_head):
    found = likeness(shapes(network_layout(backbone, enhancement, levels, fusion, 256, mask_head))).model_config()
    assert found["backbone"] == {"name": backbone} and found["fcos"] == {"channels": 256}
    assert found["mask"] == {"head": mask_head}
    if enhancement == "none":
        assert found["pyramid"] == {"enhancement": "none"}
    elif enhancement in ("pa", "bifpn"):
        assert found["pyramid"] == {"enhancement": enhancement, "levels": levels}
    elif enhancement == "nas_fpn":
        assert found["pyramid"] == {"enhancement": "nas_fpn", "levels": "p3-p7"}
    else:
        assert found["pyramid"] == {"enhancement": enhancement, "levels": levels, "fusion": fusion}


@pytest.mark.parametrize(
    "pyramid, mask_head, freeze_at",
    [
        ({"enhancement": "none"}, "single_level", 0),
        ({"enhancement": "progressive", "levels": "p3-p5", "fusion": "3x3"}, "multi_level", 1),
        ({"enhancement": "dense"}, "multi_level", 5),
        ({"enhancement": "top_down_regularized", "levels": "p3-p5"}, "multi_level", 2),
        ({"enhancement": "pa", "levels": "p3-p5"}, "multi_level", 2),
        ({"enhancement": "nas_fpn"}, "multi_level", 3),
        ({"enhancement": "bifpn"}, "multi_level", 2),
    ],
)
def test_keys_of_the_variants_are_those_of_the_network(pyramid, mask_head, freeze_at):
    pytest.importorskip("jittor")
    from jrdp.config import ModelConfig
    from jrdp.models.rdpnet import RDPNet
    from jrdp.models.state import tensor_info

    config = ModelConfig(backbone={"freeze_at": freeze_at}, pyramid=pyramid, mask={"head": mask_head})
    network = [(name, info.shape, info.trainable) for name, info in tensor_info(RDPNet(config)).items()]
    layout = network_layout("r50", **pyramid, mask_head=mask_head, freeze_at=freeze_at)
    assert [(entry.name, entry.shape, entry.trainable) for entry in layout] == network


def test_a_backbone_alone_and_strangers():
    look = likeness(shapes(backbone_layout("x101")))
    assert look.backbone_only and look.backbone == "x101" and str(look) == "ResNeXt-101 32x8d alone"
    assert likeness({"a": (1,)}).backbone == "" and str(likeness({"a": (1,)})) == "no part of RDPNet"
    short = [entry for entry in backbone_layout("r50") if "layer3.5" not in entry.name]
    assert likeness(shapes(short)).backbone is None
    assert likeness({**shapes(network_layout()), "backbone.fpn.own_idea.0.weight": (1,)}).enhancement is None


def test_freezing_decides_what_is_trainable():
    counts = [sum(entry.trainable for entry in network_layout(freeze_at=stage)) for stage in range(6)]
    # A convolution in the stem, then 10, 13, 19, 10 in the four stages of ResNet-50.
    assert counts == [counts[5] + n for n in (53, 52, 42, 29, 10, 0)]
