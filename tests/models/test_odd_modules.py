"""Tensors in odd places of a network: the names are Jittor's, what is trained floats, and nothing is lost in silence."""

from collections import OrderedDict

import jittor as jt
import numpy as np
import pytest
from jittor import nn

from jrdp.errors import UserError
from jrdp.models.layers import Conv
from jrdp.models.own_parts import refuse_hidden
from jrdp.models.state import assign_state, held_tensors, named_tensors, tensor_dtypes, tensor_info, trainable_names


def floats(*values):
    return jt.array(np.array(values, np.float32))


class Scaled(nn.Sequential):
    """Layers and factors of its own."""

    def __init__(self, *layers):
        super().__init__(*layers)
        self.gamma = floats(2)


class Early(nn.Sequential):
    def __init__(self, *layers):
        object.__setattr__(self, "before", floats(1))
        super().__init__(*layers)


class Holding(nn.Module):
    """A module with the attributes it is given."""

    def __init__(self, **members):
        for name, member in members.items():
            setattr(self, name, member)


def buffered(persistent):
    module = Holding(weight=floats(1))
    module.register_buffer("mean", floats(2), persistent=persistent)
    return module


def shared():
    same = Conv(2, 2, 1)
    return nn.Sequential(same, same)


ODD = {
    "a factor on a Sequential": lambda: Scaled(Conv(2, 2, 1), nn.ReLU()),
    "the same, nested": lambda: Holding(stage=nn.Sequential(Scaled(Conv(2, 2, 1)), Early(Scaled()))),
    "a factor before the layers": lambda: Early(Conv(2, 2, 1)),
    "a ModuleList": lambda: Holding(parts=nn.ModuleList([Conv(2, 2, 1), Conv(2, 2, 1)])),
    "a ParameterList": lambda: Holding(gammas=nn.ParameterList(floats(1), floats(2)), after=floats(3)),
    "a ParameterDict": lambda: Holding(gammas=nn.ParameterDict({"one": floats(1), "_two": floats(2)})),
    "lists in a Sequential": lambda: nn.Sequential(Holding(gammas=nn.ParameterList([floats(1)])), nn.ReLU()),
    "an underscore": lambda: Holding(_mean=floats(1), scale=floats(2)),
    "a module with an underscore": lambda: Holding(_norm=nn.BatchNorm(2)),
    "a kept buffer": lambda: buffered(True),
    "a buffer that is not kept": lambda: buffered(False),
    "a frozen tensor": lambda: Holding(mean=floats(1).stop_grad(), scale=floats(2)),
    "integers": lambda: Holding(index=jt.array(np.arange(3, dtype=np.int32)), scale=floats(2)),
    "a shared module": shared,
    "a name in a Sequential": lambda: nn.Sequential(OrderedDict(first=Conv(2, 2, 1))),
    "nothing": lambda: Holding(bias=None, layers=3, params="text"),
}


@pytest.mark.parametrize("make", ODD.values(), ids=ODD)
def test_the_names_are_those_of_jittor(make):
    module = make()
    found = named_tensors(module)
    theirs = dict(module.named_parameters())
    assert set(found) == set(theirs) == set(module.state_dict())
    assert all(found[name] is theirs[name] for name in found)
    assert list(named_tensors(make())) == list(found)
    refuse_hidden("here", module)


def test_the_order_is_that_of_the_attributes():
    assert list(named_tensors(Scaled(Conv(1, 1, 1)))) == ["0.weight", "0.bias", "gamma"]
    assert list(named_tensors(Early(Conv(1, 1, 1)))) == ["before", "0.weight", "0.bias"]
    assert list(named_tensors(Holding(conv=Conv(1, 1, 1, bias=False), gammas=nn.ParameterList([floats(1)] * 2), last=floats(2)))) == [
        "conv.weight", "gammas.0", "last",
    ]  # fmt: skip


def test_what_is_shared_is_trained_once():
    assert trainable_names(shared()) == ["0.weight", "0.bias"]
    conv = Conv(1, 1, 1, bias=False)
    assert trainable_names(Holding(conv=conv, _again=conv.weight, tied=conv.weight)) == ["conv.weight"]


def test_constants_are_held_but_have_no_name():
    module = Holding(_mean=floats(1), inner=Holding(_std=floats(2), scale=floats(3)))
    assert trainable_names(module) == list(named_tensors(module)) == ["inner.scale"]
    assert [float(tensor.numpy()[0]) for tensor in held_tensors(module)] == [1, 2, 3]
    assign_state(module, {"inner.scale": np.array([7], np.float32)})
    assert [float(tensor.numpy()[0]) for tensor in held_tensors(module)] == [1, 2, 7]


def test_buffers_and_integers_are_not_trained():
    module = Holding(index=jt.array(np.arange(3, dtype=np.int32)), mask=jt.array(np.array([True, False])), kept=buffered(True))
    assert trainable_names(module) == ["kept.weight"]
    assert {name: info.kind for name, info in tensor_info(module).items()} == {
        "index": "buffer", "mask": "buffer", "kept.weight": "parameter", "kept.mean": "buffer",
    }  # fmt: skip
    assign_state(module, {name: tensor.numpy() for name, tensor in named_tensors(module).items()})
    assert trainable_names(module) == ["kept.weight"]


TYPES = ["int8", "uint8", "int16", "int32", "int64", "bool", "float16", "float32", "float64"]


@pytest.mark.parametrize("dtype", TYPES)
def test_a_tensor_keeps_its_type(dtype):
    with jt.flag_scope(auto_convert_64_to_32=0):
        module = Holding(odd=jt.array(np.zeros(2, dtype)), scale=floats(1))
    assert tensor_dtypes(module) == {"odd": dtype, "scale": "float32"}
    largest = np.finfo(dtype).max if dtype.startswith("float") else 1 if dtype == "bool" else np.iinfo(dtype).max
    values = np.array([largest, 1], dtype)
    assign_state(module, {"odd": values, "scale": np.ones(1, np.float64)})
    found = module.odd.numpy()
    assert tensor_dtypes(module) == {"odd": dtype, "scale": "float32"}
    assert found.dtype == values.dtype and np.array_equal(found, values)


@pytest.mark.parametrize("given, told", [(np.float32, "float32"), (np.int64, "int64"), (bool, "bool")])
def test_integers_are_filled_with_the_same_type_alone(given, told):
    module = Holding(index=jt.array(np.arange(3, dtype=np.int32)), scale=floats(2))
    with pytest.raises(UserError, match=f"of another type: index {told} instead of int32$"):
        assign_state(module, {"index": np.ones(3, given), "scale": np.ones(1, np.float32)})
    with pytest.raises(UserError, match="of another type: scale int32 instead of float32$"):
        assign_state(module, {"index": np.ones(3, np.int32), "scale": np.ones(1, np.int32)})
    assert np.array_equal(module.index.numpy(), [0, 1, 2]) and module.scale.numpy() == 2


class Gated(nn.ParameterList):
    def __init__(self):
        super().__init__([floats(1)])
        self.own = floats(1)


def beside_layers():
    scaled = Scaled(nn.ReLU())
    scaled.norm = nn.BatchNorm(2)
    return Holding(stage=scaled)


def unstorable():
    return Holding(stage=Holding(index=jt.array(np.ones(2), dtype="uint32")))


def endless():
    module = Holding()
    module.child = Holding(parent=module)
    return module


@pytest.mark.parametrize(
    "make, told",
    [
        (beside_layers, r"Scaled\.norm is a module beside the layers of an nn\.Sequential, .*: derive Scaled from nn\.Module$"),
        (Gated, r"Gated\.own is a tensor beside those in an nn\.ParameterList, which would be neither trained nor saved"),
        (lambda: Holding(layers=[Conv(1, 1, 1)]), r"Holding\.layers is a list of modules, .*: use nn\.Sequential$"),
        (lambda: Holding(parts=[[nn.ReLU()], [3, {"a": Conv(1, 1, 1)}]]), r"Holding\.parts is a list of modules"),
        (lambda: Holding(parts={Conv(1, 1, 1)}), r"Holding\.parts is a set of modules"),
        (lambda: Holding(shifts=(floats(1), floats(2))), r"Holding\.shifts is a tuple of tensors, .*: use nn\.ParameterList, or "),
        (unstorable, r"its tensor stage\.index is uint32, which weight files do not hold; use one of float64, "),
        (endless, r"Holding holds a module that holds it in turn"),
    ],
)
def test_what_would_be_lost_is_refused_in_one_line(make, told):
    with pytest.raises(UserError, match=f"^here: {told}") as caught:
        refuse_hidden("here", make())
    assert "\n" not in str(caught.value)


def test_a_list_of_what_is_found_elsewhere_is_no_loss():
    conv = Conv(1, 1, 1)
    layers = Scaled(conv)
    layers.first, layers.rows = conv, [conv, conv.weight]
    refuse_hidden("here", layers)
    assert list(named_tensors(layers)) == ["0.weight", "0.bias", "gamma"]
