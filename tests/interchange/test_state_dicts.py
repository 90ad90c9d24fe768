"""The weights are found in whatever way people save them, or the line says what the file holds instead."""

import argparse
import collections
import datetime
import io
import pathlib
import pickle
import uuid
import zipfile

import numpy as np
import pytest

from jrdp import interchange
from jrdp.errors import UserError
from jrdp.interchange.layout import backbone_layout
from jrdp.interchange.state_dict import find_weights, without_prefixes
from jrdp.interchange.tensors import FormatError

NAMES = ("backbone.body.stem.conv1.weight", "rpn.head.scales.0.scale")


def tensors(prefix="", names=NAMES):
    return {f"{prefix}{name}": np.full((2,), number, np.float32) for number, name in enumerate(names)}


def saved(folder, value, name="x.pkl", protocol=4):
    path = folder / name
    path.write_bytes(pickle.dumps(value, protocol))
    return path


class Setting:
    def __init__(self):
        self.values = {"lr": 0.1}


EXTRAS = {
    "namespace": argparse.Namespace(lr=0.1),
    "path": pathlib.PurePosixPath("a/b"),
    "date": datetime.datetime(2024, 1, 1),
    "span": datetime.timedelta(days=1),
    "defaultdict": collections.defaultdict(list, loss=[1.0]),
    "deque": collections.deque([1.0]),
    "set": {1, 2},
    "frozenset": frozenset({1}),
    "complex": 1j,
    "object of a class": Setting(),
    "random state": np.random.RandomState(0),
    "nested": {"a": [argparse.Namespace(b={"c": {3}})]},
    "key": {1.5: 2, None: 3, b"x": 4},
    "keys that are tuples": {(1, (2, 3)): 4},
    "ordered keys that are tuples": collections.OrderedDict([((1, 2), 3)]),
    "identifier": uuid.UUID(int=(1 << 128) - 1),
    "state of a generator": np.random.default_rng(0).bit_generator.state,
    "text of NumPy": np.str_("x"),
    "bytes of NumPy": np.bytes_(b"x"),
    "date of NumPy": np.datetime64("2024-01-01"),
    "array of text": np.array(["a", "b"]),
    "array of objects": np.array([None, {"a": 1}, "x"], object),
    "array of complex numbers": np.ones((2, 2), np.complex64),
    "array of records": np.zeros(2, [("a", "f4"), ("b", "i8")]),
}


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("extra", EXTRAS)
def test_harmless_extras_are_left_out_unbuilt(extra, protocol, tmp_path):
    file = interchange.read(saved(tmp_path, {"model": tensors(), "extra": EXTRAS[extra]}, protocol=protocol))
    assert list(file.tensors) == list(NAMES) and file.tensors[NAMES[1]].tolist() == [1.0, 1.0]
    assert len(file.others) == 1 and file.others[0].startswith("extra")


def test_what_acts_is_refused_with_a_way_on(tmp_path):
    class Acts:
        def __reduce__(self):
            return (print, ("it ran",))

    with pytest.raises(UserError, match=r"asks for 'builtins.print'.*model.state_dict\(\)"):
        interchange.read(saved(tmp_path, {"model": tensors(), "x": Acts()}))


def test_a_whole_object_is_named(tmp_path):
    with pytest.raises(UserError, match=r"a whole object \(.*Setting\), not its weights.*state_dict"):
        interchange.read(saved(tmp_path, Setting()))
    with pytest.raises(UserError, match=r"'model' is a whole object \(.*Setting\)"):
        interchange.read(saved(tmp_path, {"model": Setting(), "epoch": 3}))
    with pytest.raises(UserError, match=r"'w' is .*Setting \(not built\), not a tensor"):
        interchange.read(saved(tmp_path, {"model": {**tensors(), "w": Setting()}}))
    with pytest.raises(UserError, match=r"'w' is an array of NumPy's type 'U1' \(not built\), not a tensor"):
        interchange.read(saved(tmp_path, {"model": {**tensors(), "w": np.array(["a"])}}))


def test_a_weight_that_is_no_plain_tensor_is_named_in_a_whole_file_too(tmp_path):
    """Not as one that is missing; what has no name of a module's beside the weights may be anything."""
    with pytest.raises(UserError, match=r"'head.weight' is an array of NumPy's type 'U1' \(not built\), not a tensor"):
        interchange.read(saved(tmp_path, {**tensors(), "head.weight": np.array(["a"])}))
    assert interchange.read(saved(tmp_path, {**tensors(), "classes": np.array(["a"])})).others[0].startswith("classes")


@pytest.mark.parametrize(
    "value, path, others",
    [
        ({"net": tensors(), "epoch": 3}, ("net",), ["epoch"]),
        ({"checkpoint": {"weights": tensors()}}, ("checkpoint", "weights"), []),
        ({"model": {"state_dict": tensors(), "name": "x"}}, ("model", "state_dict"), []),
        ({"model": tensors(), "ema": tensors(names=("a",))}, ("model",), ["ema"]),
        ({"ema": tensors(), "loss": {"history": np.zeros(3)}}, ("ema",), ["loss"]),
        ({"net": tensors(), "loss": np.float32(0.3) + np.zeros(()), "epoch": 3}, ("net",), ["loss", "epoch"]),
        ({"weights": tensors("module."), "step": np.zeros(1, np.int64)}, ("weights",), ["step"]),
        ({**tensors(), "ema": tensors(names=("a",))}, (), ["ema"]),
        ({**tensors(), "epoch": 3, "meta": {"a": 1}}, (), ["epoch", "meta"]),
        ({"model": {**tensors(), "version": 2}}, ("model",), ["version"]),
        ({"params": tensors(), "optimizer": {"state": {0: {"m": np.zeros(2)}}, "param_groups": []}}, ("params",), ["optimizer"]),
    ],
)
def test_the_one_dictionary_of_tensors_is_found(value, path, others):
    found = find_weights(value)
    assert list(without_prefixes(found.tensors)[0]) == list(NAMES) and found.path == path and found.others == others


@pytest.mark.parametrize(
    "value, words",
    [
        ({"a": tensors(), "b": tensors()}, r"several dictionaries of tensors \(a, b\)"),
        ({"optimizer": {"state": {}, "param_groups": []}, "epoch": 1}, "an optimizer and no weights.*optimizer, epoch"),
        ({"state": {0: {"exp_avg": np.zeros(2)}}, "param_groups": [{"lr": 0.1}]}, "an optimizer and no weights"),
        ({"epoch": 1, "note": "x"}, "no dictionary of tensors .looked for: model, state_dict.*its entries: epoch, note"),
        ([tensors()], "it holds a list, not a dictionary"),
        ({"model": {**tensors(), "w": [1.0]}}, "'w' is a list, not a tensor"),
        ({}, "no tensors"),
    ],
)
def test_what_holds_no_weights_is_described(value, words):
    with pytest.raises(FormatError, match=words):
        find_weights(value)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "model.", "net.model.", "a.b.c."])
def test_shared_prefixes_are_taken_off(prefix):
    names, taken, left_out = without_prefixes(tensors(prefix))
    assert list(names) == list(NAMES) and not left_out and set(taken.split(".")) == set(prefix.split("."))


def test_prefixes_that_are_not_shared_or_are_the_network_s_own_stay():
    backbone = {entry.name: np.zeros(1) for entry in backbone_layout("r50")[:20]}
    assert without_prefixes(backbone) == (backbone, "", [])  # all of it begins with backbone.body.
    mixed = {**tensors("model."), "loss.weight": np.zeros(1)}
    assert without_prefixes(mixed) == (mixed, "", [])
    other = {"encoder.a": np.zeros(1), "encoder.b": np.zeros(1)}
    assert without_prefixes(other) == (other, "", [])
    inside = {"backbone._orig_mod.body.stem.conv1.weight": 1, "rpn.head._fsdp_wrapped_module.scales.0.scale": 2}
    assert list(without_prefixes(inside)[0]) == list(NAMES)
    average = {"n_averaged": np.array(3), **tensors("module.")}
    assert without_prefixes(average)[0].keys() == set(NAMES) and without_prefixes(average)[2] == ["n_averaged"]
    torchvision = {"backbone.conv1.weight": 1, "backbone.layer1.0.conv1.weight": 2}
    assert list(without_prefixes(torchvision)[0]) == ["conv1.weight", "layer1.0.conv1.weight"]
    with pytest.raises(FormatError, match="the same"):
        without_prefixes({"_orig_mod.a": 1, "a": 2})


def test_convert_reports_prefix_and_extras(tmp_path, seeded):
    state = {f"module._orig_mod.{name}": value for name, value in seeded("r50").items()}
    path = saved(tmp_path, {"model": state, "args": argparse.Namespace(lr=0.1)})
    table = str(interchange.convert(path, tmp_path / "x.safetensors"))
    assert "_orig_mod.module. was taken off the names" in table and "args (argparse.Namespace, not built)" in table
    assert interchange.read(tmp_path / "x.safetensors").tensors.keys() == seeded("r50").keys()


def archive(names, compression=zipfile.ZIP_STORED):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as file:
        for name in names:
            file.writestr(name, b"x" * 100)
    return stream.getvalue()


@pytest.mark.parametrize(
    "content, words",
    [
        (archive(["m/data.pkl", "m/constants.pkl"], zipfile.ZIP_DEFLATED), "TorchScript .*state_dict"),
        (archive(["m/code/__torch__.py", "m/data.pkl"]), "TorchScript"),
        (archive(["a.npy", "b.npy"]), "npz"),
        (archive(["x/weights.pth"]), "not one that torch.save wrote: unpack it and name x/weights.pth"),
        (archive(["serialized_exported_program.json"]), "exported program"),
        (b"PK\x05\x06" + bytes(18), "empty zip"),
        (b"\x1f\x8b\x08" + bytes(20), "gzip"),
        (b"\x89HDF\r\n\x1a\n" + bytes(20), "HDF5"),
        (b"\x93NUMPY" + bytes(20), "one NumPy array"),
        (b"weights.txt".ljust(257, b"\0") + b"ustar" + bytes(250), "tar archive"),
        (b'{"images": []}', "JSON"),
    ],
)
def test_other_files_are_named(content, words, tmp_path):
    path = tmp_path / "x.pth"
    path.write_bytes(content)
    with pytest.raises(UserError, match=words):
        interchange.read(path)


def resnet18():
    shapes = {"conv1.weight": (64, 3, 7, 7), "fc.weight": (1000, 512)}
    for layer, width in enumerate((64, 128, 256, 512), 1):
        for block in range(2):
            shapes[f"layer{layer}.{block}.conv1.weight"] = (width, width, 3, 3)
            shapes[f"layer{layer}.{block}.conv2.weight"] = (width, width, 3, 3)
    return {name: np.zeros(shape, np.float16) for name, shape in shapes.items()}


def test_another_backbone_is_said_first(tmp_path):
    from jrdp.config import load_config
    from jrdp.engine.start import read_start

    path = saved(tmp_path, resnet18())
    with pytest.raises(UserError, match="looks like ResNet-18"):
        interchange.convert(path, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=r"ResNet-50 is needed \(model.backbone.name=r50\), it looks like ResNet-18"):
        read_start(load_config(None, [f"train.weights={path}"]))
    r101 = {entry.name: np.zeros(entry.shape, np.float16) for entry in backbone_layout("r101")}
    with pytest.raises(UserError, match="its backbone is ResNet-101.*--set model.backbone.name=r101"):
        read_start(load_config(None, [f"train.weights={saved(tmp_path, r101)}"]))
    with pytest.raises(UserError, match="it has no backbone; its tensors are encoder.weight"):
        read_start(load_config(None, [f"train.weights={saved(tmp_path, {'encoder.weight': np.zeros(2)})}"]))
