"""Backbones and pyramids of one's own: what fits is used as it is, what does not is named in one line."""

import importlib

import jittor as jt
import numpy as np
import pytest
from golden_pictures import picture_batch

from jrdp.config import load_config, parse_config
from jrdp.engine.weights import config_of
from jrdp.errors import UserError
from jrdp.interchange import WeightFile
from jrdp.models.rdpnet import RDPNet
from jrdp.models.state import named_tensors

PARTS = '''
import jittor as jt
from jittor import nn
from jrdp.models.fpn import FPN
from jrdp.models.layers import Conv

class Small(nn.Module):
    def __init__(self, freeze_at=2):
        self.out_channels = [3, 5, 7]
        self.one, self.two, self.three = Conv(3, 3, 3, stride=8), Conv(3, 5, 3, stride=2), Conv(5, 7, 3, stride=2)
    def execute(self, images):
        c3 = self.one(images)
        c4 = self.two(c3)
        return [c3, c4, self.three(c4)]

class WithNorm(Small):
    def __init__(self, freeze_at=2):
        super().__init__(freeze_at)
        self.norm = nn.BatchNorm(7)
    def execute(self, images):
        *finer, c5 = super().execute(images)
        return [*finer, self.norm(c5)]

class WrongChannels(Small):
    def __init__(self, freeze_at=2):
        super().__init__(freeze_at)
        self.out_channels = [3, 5, 8]

class WrongStride(Small):
    def __init__(self, freeze_at=2):
        super().__init__(freeze_at)
        self.three = Conv(5, 7, 3)

class Untold(Small):
    def __init__(self, freeze_at=2):
        super().__init__(freeze_at)
        del self.out_channels

class OneMap(Small):
    def execute(self, images):
        return self.one(images)

class NoArgument(nn.Module):
    def __init__(self):
        pass

class Hidden(Small):
    def __init__(self, freeze_at=2):
        super().__init__(freeze_at)
        self.extra = [Conv(3, 3, 3)]

class Broken(Small):
    def execute(self, images):
        return images.no_such_method()

class Unfit(Small):
    def execute(self, images):
        return self.one(self.one(images) + images)

class Misspelt(FPN):
    def enhanced(self, levels):
        return levels

class Nothing(FPN):
    def enhance(self, levels):
        levels.reverse()

class Twice(FPN):
    def build_enhancement(self):
        self.mix = Conv(self.channels, self.channels, 3)
    def enhance(self, levels):
        return [self.mix(levels[0]), *levels[1:]]

class Half(FPN):
    def enhance(self, levels):
        return [level[:, :128] for level in levels]

class Fewer(FPN):
    def enhance(self, levels):
        return levels[:3]

number = 5
'''


@pytest.fixture
def parts(tmp_path, monkeypatch):
    """The name of a module, new for each test, that holds `PARTS`."""
    name = f"parts_of_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(PARTS)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    return name


def model_of(**settings):
    return load_config(None, [f"model.{key}={value}" for key, value in settings.items()]).model


def test_a_backbone_and_a_pyramid_of_ones_own_make_a_network(parts, golden):
    config = load_config(None, [f"model.backbone.name={parts}:Small", f"model.pyramid.enhancement={parts}:Twice"]).model
    network = RDPNet(config)
    names = named_tensors(network)
    assert names["backbone.body.two.weight"].shape == (5, 3, 3, 3)
    assert names["backbone.fpn.fpn_inner4.weight"].shape == (256, 7, 1, 1)
    assert names["backbone.fpn.mix.weight"].shape == (256, 256, 3, 3)
    batch = picture_batch(golden, "a_480x320")
    stages = network.stages(batch)
    plain, own = stages["P3"], stages["RP3"]
    assert np.array_equal(stages["RP4"].numpy(), stages["P4"].numpy())
    assert np.allclose(own.numpy(), network.backbone.fpn.mix(plain).numpy(), atol=1e-5)
    assert not np.allclose(own.numpy(), plain.numpy())
    assert len(network(batch)) == 1 and network(batch)[0].size == batch.sizes[0]


def test_its_batch_norm_learns_in_training_only(parts, golden):
    network = RDPNet(load_config(None, [f"model.backbone.name={parts}:WithNorm"]).model)
    batch = picture_batch(golden, "a_480x320")
    before = network.backbone.body.norm.running_mean.numpy()
    assert (before == 0).all(), "checking the backbone's shapes has moved its statistics"
    network(batch)
    assert np.array_equal(network.backbone.body.norm.running_mean.numpy(), before)
    from jrdp.structures import Targets

    nothing = Targets(np.zeros((0, 4), np.float32), [], [], batch.sizes[0])
    losses = network(batch, [nothing])
    assert list(losses) == ["loss_cls", "loss_reg", "loss_centerness", "loss_mask"]
    jt.sync(list(losses.values()))
    assert not np.array_equal(network.backbone.body.norm.running_mean.numpy(), before)


@pytest.mark.parametrize(
    "name, words",
    [
        ("no_such_package.parts:Thing", ["there is no module no_such_package", "is looked for"]),
        ("{}:Missing", ["has no Missing"]),
        ("{}:number", ["of type int", "not a class derived from jittor"]),
        ("{}:FPN", ["FPN(freeze_at=2) raised TypeError"]),
        ("{}:NoArgument", ["NoArgument(freeze_at=2) raised TypeError"]),
        ("{}:Untold", ["out_channels must be the channels of its maps"]),
        ("{}:OneMap", ["Var, but must give a list of 3 maps"]),
        ("{}:WrongChannels", ["its C5 is [1, 7, 2, 3], not [1, 8, 2, 3]", "8 channels at stride 32"]),
        ("{}:WrongStride", ["its C5 is [1, 7, 4, 6], not [1, 7, 2, 3]"]),
        ("{}:Broken", ["Broken()(images [1, 3, 64, 96]) raised AttributeError in {}.py, line 54: "]),
        ("{}:Unfit", ["raised RuntimeError in {}.py, line 58: Check failed xshape(12) == yshape(96)"]),
        ("{}:Hidden", ["Hidden.extra is a list of modules"]),
        ("os:system", ["not a class derived from jittor"]),
    ],
)
def test_a_backbone_that_does_not_fit_is_named(parts, name, words):
    name = name.format(parts)
    config = load_config(None, [f"model.backbone.name={name}"]).model
    with pytest.raises(UserError) as caught:
        RDPNet(config)
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)
    for word in ["model.backbone.name", name, *words]:
        assert word.format(parts) in str(caught.value)


@pytest.mark.parametrize(
    "name, words",
    [
        ("{}:Small", ["the class Small, not a class derived from jrdp.models.fpn.FPN"]),
        ("{}:Half", ["P'3 is [1, 128, 8, 12], not [1, 256, 8, 12]"]),
        ("{}:Fewer", ["enhance gives 3 values"]),
        ("{}:Misspelt", ["has no method enhance(levels): it would be the plain FPN, which is called none"]),
        ("{}:Nothing", ["enhance gives a NoneType, but must give the list of P'3..P'7"]),
    ],
)
def test_a_pyramid_that_does_not_fit_is_named(parts, name, words):
    name = name.format(parts)
    config = load_config(None, [f"model.pyramid.enhancement={name}"]).model
    with pytest.raises(UserError) as caught:
        RDPNet(config)
    for word in ["model.pyramid.enhancement", name, *words]:
        assert word in str(caught.value)


@pytest.mark.parametrize("value", ["r18", "a.b.c", "a b:C", "a:b:c", ":C", "a:", "../a:C", "a:C.d"])
def test_what_is_no_name_and_no_import_path_is_refused_by_the_configuration(value):
    for key in ("model.backbone.name", "model.pyramid.enhancement"):
        with pytest.raises(UserError, match="package.module:Class"):
            load_config(None, [f"{key}='{value}'"])


def test_the_stride_of_a_backbone_of_ones_own_is_its_own_affair(parts):
    with pytest.raises(UserError, match="stride_in_1x1 is for r50"):
        load_config(None, [f"model.backbone.name={parts}:Small", "model.backbone.stride_in_1x1=true"])


def test_weights_do_not_choose_what_code_is_run(parts):
    """A file may name any module of this machine; only what was asked for, or runs already, is imported."""
    name = f"{parts}:Small"
    stored = load_config(None, [f"model.backbone.name={name}"]).model_dump(mode="json")
    file = WeightFile({}, metadata={"config": stored}, path="w.safetensors")
    with pytest.raises(UserError, match=f"code of its own, {name}: to run that code, add --set model.backbone.name={name}"):
        config_of(file, None, [])
    assert config_of(file, None, [f"model.backbone.name={name}"]).model.backbone.name == name
    assert config_of(file, parse_config(stored, "given"), []).model.backbone.name == name
    both = load_config(None, [f"model.pyramid.enhancement={parts}:Mine"], base=config_of(file, None, [f"model.backbone.name={name}"]))
    file.metadata["config"] = both.model_dump(mode="json")
    with pytest.raises(UserError, match=f"add --set model.backbone.name={name} --set model.pyramid.enhancement={parts}:Mine or"):
        config_of(file, None, [])
    file.metadata["config"] = stored
    importlib.import_module(parts)
    assert config_of(file, None, []).model.backbone.name == name


def test_the_other_engines_say_that_they_do_not_know_it(parts):
    from jrdp.comparison.pair import Options, resolve_config
    from jrdp.export.onnx_file import unsupported as not_exported
    from jrdp.fast.network import unsupported

    config = load_config(None, [f"model.backbone.name={parts}:Small"])
    assert f"model.backbone.name: {parts}:Small" in unsupported(config.model)
    assert f"model.backbone.name: {parts}:Small" in not_exported(config.model)
    with pytest.raises(UserError, match="the PyTorch twin has only the released network"):
        resolve_config(None, Options(settings=[f"model.backbone.name={parts}:Small"]))
