"""A backbone with tensors in odd places and of odd types is trained, saved, resumed and loaded as any other."""

import jittor as jt
import numpy as np
import pytest
from jittor import nn
from safetensors.numpy import load_file, save_file
from test_train_from_python import settings, train
from test_train_from_python import sample as small_sample

import jrdp
from jrdp.errors import UserError
from jrdp.models.layers import Conv, relu
from jrdp.models.rdpnet import RDPNet
from jrdp.models.state import named_tensors

BODY = "backbone.body."
sample = small_sample  # a fixture of this file, too


class Scaled(nn.Sequential):
    def __init__(self, *layers):
        super().__init__(*layers)
        self.gamma = jt.array(np.random.uniform(0.5, 1.5, 8).astype(np.float32))

    def execute(self, x):
        x = super().execute(x)
        return x * self.gamma.broadcast(x, [0, 2, 3])


class Odd(nn.Module):
    """C3, C4, C5 with 8, 8, 16 channels: those of C3 are put in an order drawn at random, and scaled."""

    def __init__(self, freeze_at: int = 0):
        self.out_channels = (8, 8, 16)
        self._mean = jt.array(np.full(3, 0.5, np.float32))
        with jt.flag_scope(auto_convert_64_to_32=0):
            self.counts = jt.array(np.array([2**40 + 1, 3], np.int64))
        self.order = jt.array(np.random.permutation(8).astype(np.int32))
        self.kept = jt.array(np.random.rand(8) < 0.7)
        self.first = Conv(3, 8, 3, stride=8)
        self.second = Scaled(Conv(8, 8, 3, stride=2))
        self.third = Conv(8, 16, 3, stride=2)

    def execute(self, images):
        c3 = relu(self.first(images - self._mean.broadcast(images, [0, 2, 3])))
        c3 = c3[:, self.order]
        c3 = c3 * self.kept.float32().broadcast(c3, [0, 2, 3])
        c4 = relu(self.second(c3))
        return [c3, c4, relu(self.third(c4))]


DTYPES = {"counts": np.int64, "order": np.int32, "kept": np.bool_, "second.gamma": np.float32}


def odd(sample, iterations, *more):
    return settings(sample, iterations, "model.backbone.name=test_own_tensors:Odd", "train.checkpoint_period=1", *more)


@pytest.fixture(scope="module")
def run(sample, tmp_path_factory):
    """A folder with a run of two iterations, and one that was made of one and resumed."""
    out = tmp_path_factory.mktemp("odd")
    train(odd(sample, 2), out / "whole")
    train(odd(sample, 1), out / "resumed")
    train(odd(sample, 2), out / "resumed", resume=True)
    return out


def test_its_tensors_are_saved_in_their_types_and_resumed(run):
    whole, resumed, momentum = [
        load_file(str(run / name))
        for name in ("whole/final.safetensors", "resumed/final.safetensors", "whole/last.state-2.safetensors")
    ]
    assert list(whole) == list(resumed)
    for name, tensor in whole.items():
        assert tensor.dtype == DTYPES.get(name[len(BODY) :], np.float32), name
        assert tensor.dtype == resumed[name].dtype and np.array_equal(tensor, resumed[name]), name
    assert whole[BODY + "counts"].tolist() == [2**40 + 1, 3]
    assert BODY + "_mean" not in whole
    assert BODY + "second.gamma" in momentum and np.abs(momentum[BODY + "second.gamma"]).max() > 0
    assert not any(BODY + name in momentum for name in ("_mean", "counts", "order", "kept"))


def test_a_loaded_network_computes_the_same(run, sample):
    model = jrdp.load(run / "whole" / "final.safetensors", device="cpu")
    kept = load_file(str(run / "whole" / "final.safetensors"))
    for name, tensor in named_tensors(model.network).items():
        assert tensor.numpy().dtype == kept[name].dtype and np.array_equal(tensor.numpy(), kept[name]), name
    model.save_weights(run / "again.safetensors")
    again = jrdp.load(run / "again.safetensors", device="cpu")
    images = jt.array(np.random.default_rng(1).random((1, 3, 64, 96), np.float32))
    one, other = [[x.numpy() for x in each.network.backbone.body(images)] for each in (model, again)]
    assert all(np.array_equal(a, b) for a, b in zip(one, other)) and one[0].any()
    picture = sorted((sample / "imgs").iterdir())[0]
    assert np.array_equal(model.predict(picture).boxes, again.predict(picture).boxes)
    further = train(odd(sample, 1, f"train.weights={run}/again.safetensors"), run / "further")
    assert further["iteration"] == 1
    assert load_file(str(run / "further" / "final.safetensors"))[BODY + "order"].dtype == np.int32


@pytest.mark.parametrize(
    "name, dtype, told",
    [
        ("order", np.float32, r"1 of another type \(backbone.body.order is float32, not int32\)"),
        ("second.gamma", np.int32, r"1 not floating-point \(backbone.body.second.gamma is int32\)"),
    ],
)
def test_another_type_is_refused_in_one_line(run, tmp_path, sample, name, dtype, told):
    kept = load_file(str(run / "whole" / "final.safetensors"))
    save_file({**kept, BODY + name: kept[BODY + name].astype(dtype)}, str(tmp_path / "other.safetensors"))
    with pytest.raises(UserError, match=told):
        jrdp.load(tmp_path / "other.safetensors", config=odd(sample, 1), device="cpu")


def test_a_network_that_would_lose_something_is_not_trained(sample, tmp_path):
    network = RDPNet(odd(sample, 1).model)
    network.backbone.body.second.extra = Conv(8, 8, 1)
    with pytest.raises(UserError, match=r"^the network given: Scaled\.extra is a module beside the layers"):
        train(odd(sample, 1), tmp_path / "run", model=network)
    assert not (tmp_path / "run").exists()
