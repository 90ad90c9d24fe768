"""Detectron's, torchvision's and Keras' backbones under our names, against loops of their own."""

import pickle

import numpy as np
import pytest

from jrdp import interchange
from jrdp.errors import UserError
from jrdp.interchange.backbones import from_caffe2, from_torchvision
from jrdp.interchange.imagenet import from_keras
from jrdp.interchange.layout import backbone_layout
from jrdp.interchange.tensors import FormatError
from jrdp.interchange.weight_file import named

BLOCKS = {"r50": (3, 4, 6, 3), "r101": (3, 4, 23, 3), "x101": (3, 4, 23, 3)}


def expected(backbone):
    return {entry.name: entry.shape for entry in backbone_layout(backbone)}


def left_out(matched):
    return {row.source for row in matched.rows if row.target is None}


def value(name, shape):
    """A small constant that tells every tensor from every other."""
    return np.full(shape, (hash_of(name) % 9973) / 9973 + 0.5, np.float32)


def hash_of(name):
    return sum((index + 1) * ord(letter) * 31**(index % 5) for index, letter in enumerate(name))


def detectron_blobs(backbone):
    """(blobs as in Detectron's files, what each of our names must hold)."""
    blobs, ours = {}, {}
    sizes = expected(backbone)

    def put(blob, name):
        blobs[blob] = ours[name] = value(blob, sizes[name])

    put("conv1_w", "backbone.body.stem.conv1.weight")
    put("res_conv1_bn_s", "backbone.body.stem.bn1.weight")
    put("res_conv1_bn_b", "backbone.body.stem.bn1.bias")
    for stage, blocks in enumerate(BLOCKS[backbone]):
        for block in range(blocks):
            branches = [("2a", "conv1", "bn1"), ("2b", "conv2", "bn2"), ("2c", "conv3", "bn3")]
            if block == 0:
                branches.append(("1", "downsample.0", "downsample.1"))
            for branch, conv, norm in branches:
                theirs, mine = f"res{stage + 2}_{block}_branch{branch}", f"backbone.body.layer{stage + 1}.{block}"
                put(f"{theirs}_w", f"{mine}.{conv}.weight")
                put(f"{theirs}_bn_s", f"{mine}.{norm}.weight")
                put(f"{theirs}_bn_b", f"{mine}.{norm}.bias")
    for name, shape in sizes.items():
        if name.endswith("running_mean"):
            ours[name] = np.zeros(shape, np.float32)
        elif name.endswith("running_var"):
            ours[name] = np.ones(shape, np.float32)
    return blobs, ours


class Python2Writer(pickle._Pickler):
    """Pickles arrays as Python 2 did: bytes as its `str` (opcodes T and U), names of its modules."""

    def save_bytes(self, data):
        size = len(data)
        self.write(b"U" + bytes([size]) + data if size < 256 else b"T" + size.to_bytes(4, "little") + data)
        self.memoize(data)

    def save_text(self, text):
        self.save_bytes(text.encode("latin-1"))

    dispatch = dict(pickle._Pickler.dispatch)
    dispatch[bytes] = save_bytes
    dispatch[str] = save_text


def write_python2(path, value):
    with open(path, "wb") as stream:
        Python2Writer(stream, 2).dump(value)


@pytest.mark.parametrize("backbone", ["r50", "r101", "x101"])
def test_detectron_pickles_of_python_2(backbone, tmp_path):
    blobs, ours = detectron_blobs(backbone)
    extra = {
        "fc1000_w": np.zeros((1000, 8), np.float32),
        "fc1000_b": np.zeros(1000, np.float32),
        "conv1_w_momentum": np.zeros((64, 3, 7, 7), np.float32),
        "lr": np.zeros(1, np.float32),
        "weight_order": "RGB",
    }
    if backbone == "r50":
        write_python2(tmp_path / "R.pkl", {"blobs": {**blobs, **extra}})
        data = (tmp_path / "R.pkl").read_bytes()
        assert pickle.loads(data, encoding="latin1").keys() == {"blobs"}  # a sound file for Python too
        file = interchange.read(tmp_path / "R.pkl")
    else:  # without writing hundreds of megabytes
        extra.pop("weight_order")
        file = named({**blobs, **extra}, "pickle")
    assert (file.format, file.naming, file.likeness.backbone) == ("caffe2", "caffe2", backbone)
    matched = interchange.match(expected(backbone), file)
    assert list(matched.tensors) == list(expected(backbone))
    for name, tensor in matched.tensors.items():
        assert tensor.dtype == np.float32 and np.array_equal(tensor, ours[name]), name
    assert left_out(matched) == set(extra) - {"weight_order"}
    assert {row.source for row in matched.rows if row.target is not None} == {*blobs, None}
    preprocessing = file.metadata["preprocessing"]
    assert preprocessing["channel_order"] == "bgr" and preprocessing["mean"] == [102.9801, 115.9465, 122.7717]
    assert preprocessing["stride_in_1x1"] == (backbone != "x101")
    assert interchange.infer_model(file)["backbone"]["name"] == backbone


def test_detectron_protocol_0_and_a_bias_of_the_stem(tmp_path):
    blobs, ours = detectron_blobs("r50")
    small = {name: blob for name, blob in blobs.items() if blob.size < 5000}
    (tmp_path / "R.pkl").write_bytes(pickle.dumps({"blobs": {**small, "conv1_w": blobs["conv1_w"]}}, 0))
    file = interchange.read(tmp_path / "R.pkl")
    assert file.format == "caffe2"
    for row in file.rows:
        if row.source in blobs:
            assert np.array_equal(file.tensors[row.target], blobs[row.source])
    bias = np.arange(64, dtype=np.float32)
    folded = from_caffe2({**blobs, "conv1_b": bias}).tensors["backbone.body.stem.bn1.bias"]
    assert np.array_equal(folded, blobs["res_conv1_bn_b"] + blobs["res_conv1_bn_s"] * bias)


def test_detectron_strangers_are_refused():
    blobs, _ = detectron_blobs("r50")
    for stranger in ("res2_0_branch2a_bn_rm", "rpn_conv_w", "res6_0_branch2a_w"):
        with pytest.raises(UserError, match=f"1 unexpected .{stranger}"):
            interchange.match(expected("r50"), named({**blobs, stranger: np.zeros(1, np.float32)}, "pickle"))
    with pytest.raises(FormatError, match="two of its tensors"):
        from_caffe2({**blobs, "conv1_bn_s": blobs["res_conv1_bn_s"]})


def torchvision_state(backbone):
    state = {}
    for name, shape in expected(backbone).items():
        theirs = name[len("backbone.body.") :].replace("stem.", "")
        state[theirs] = value(theirs, shape)
        if theirs.endswith("running_var"):
            state[theirs] = np.geomspace(1e-8, 10, shape[0]).astype(np.float32)
            state[theirs.replace("running_var", "num_batches_tracked")] = np.asarray(3, np.int64)
    state["fc.weight"], state["fc.bias"] = np.zeros((1000, 2048), np.float32), np.zeros(1000, np.float32)
    return state


@pytest.mark.parametrize("backbone", ["r50", "r101", "x101"])
def test_torchvision_folds_eps_and_records_its_preprocessing(backbone, tmp_path):
    state = torchvision_state(backbone)
    if backbone == "r50":
        interchange.write(tmp_path / "x.pth", interchange.WeightFile(state))
        file = interchange.read(tmp_path / "x.pth")
    else:
        file = named(state, "pytorch")
    matched = interchange.match(expected(backbone), file)
    for name, tensor in matched.tensors.items():
        theirs = state[name[len("backbone.body.") :].replace("stem.", "")]
        if name.endswith("running_var"):
            # In float32, as batch norm adds it: the scale w / sqrt(var) is then bit for bit torchvision's.
            assert np.array_equal(tensor, theirs + np.float32(1e-5)) and not np.array_equal(tensor, theirs)
        else:
            assert np.array_equal(tensor, theirs)
    counters = [name for name in state if name.endswith("num_batches_tracked")]
    assert left_out(matched) == {"fc.weight", "fc.bias", *counters}
    assert file.metadata["preprocessing"] == {
        "channel_order": "rgb",
        "scale": 1.0,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "stride_in_1x1": False,
    }
    config = interchange.infer_config(file)
    assert config["model"]["backbone"] == {"name": backbone, "stride_in_1x1": False}
    assert config["input"]["channel_order"] == "rgb"


def test_torchvision_strangers_are_refused():
    state = torchvision_state("r50")
    with pytest.raises(UserError, match="1 unexpected .layer5.0.conv1.weight"):
        interchange.match(expected("r50"), named({**state, "layer5.0.conv1.weight": np.zeros(1, np.float32)}, "pytorch"))
    assert from_torchvision(state).tensors["backbone.body.stem.conv1.weight"] is state["conv1.weight"]


def keras_arrays():
    """Random weights of Keras' first ResNet50, and one convolution with its batch norm computed in float64 loops."""
    rng = np.random.default_rng(0)
    arrays = {}
    letters = "abcdef"

    def add(layer, norm, shape):
        outputs, inputs, height, width = shape
        arrays[f"{layer}/kernel"] = rng.standard_normal((height, width, inputs, outputs)).astype(np.float32)
        arrays[f"{layer}/bias"] = rng.standard_normal(outputs).astype(np.float32)
        for part in ("gamma", "beta", "moving_mean"):
            arrays[f"{norm}/{part}"] = rng.standard_normal(outputs).astype(np.float32)
        arrays[f"{norm}/moving_variance"] = rng.uniform(1e-6, 1, outputs).astype(np.float32)

    sizes = expected("r50")
    add("conv1", "bn_conv1", sizes["backbone.body.stem.conv1.weight"])
    for stage, blocks in enumerate(BLOCKS["r50"]):
        for block in range(blocks):
            for branch, module in (("2a", "conv1"), ("2b", "conv2"), ("2c", "conv3"), ("1", "downsample.0")):
                shape = sizes.get(f"backbone.body.layer{stage + 1}.{block}.{module}.weight")
                if shape is not None:
                    place = f"{stage + 2}{letters[block]}_branch{branch}"
                    add(f"res{place}", f"bn{place}", shape)
    arrays["fc1000/kernel"] = np.zeros((2048, 1000), np.float32)
    arrays["fc1000/bias"] = np.zeros(1000, np.float32)
    return arrays


def test_keras_resnet_is_folded_and_transposed():
    arrays = keras_arrays()
    renamed = from_keras(arrays)
    matched = interchange.match(expected("r50"), interchange.WeightFile(renamed.tensors))
    patch = np.random.default_rng(1).standard_normal((3, 3, 64))  # height, width, channels
    layer, norm, ours = "res2b_branch2b", "bn2b_branch2b", "backbone.body.layer1.1"
    for channel in (0, 17, 63):
        total = float(arrays[f"{layer}/bias"][channel])
        for y in range(3):
            for x in range(3):
                for k in range(64):
                    total += patch[y, x, k] * float(arrays[f"{layer}/kernel"][y, x, k, channel])
        spread = (float(arrays[f"{norm}/moving_variance"][channel]) + 1e-5) ** 0.5
        theirs = (total - float(arrays[f"{norm}/moving_mean"][channel])) / spread
        theirs = theirs * float(arrays[f"{norm}/gamma"][channel]) + float(arrays[f"{norm}/beta"][channel])
        kernel = matched.tensors[f"{ours}.conv2.weight"][channel].astype(np.float64)  # input channel, height, width
        mine = (kernel * patch.transpose(2, 0, 1)).sum() * matched.tensors[f"{ours}.bn2.weight"][channel]
        mine += matched.tensors[f"{ours}.bn2.bias"][channel]
        assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-4 / spread)
    assert all((matched.tensors[name] == 1).all() for name in matched.tensors if name.endswith("running_var"))
    assert [row.source for row in renamed.rows if row.target is None] == ["fc1000/kernel", "fc1000/bias"]


def test_keras_strangers_and_gaps_are_refused():
    arrays = keras_arrays()
    with pytest.raises(FormatError, match="res9a_branch2a/kernel is unexpected"):
        from_keras({**arrays, "res9a_branch2a/kernel": np.zeros(1, np.float32)})
    arrays.pop("bn4c_branch2b/beta")
    with pytest.raises(FormatError, match="bn4c_branch2b/beta is missing"):
        from_keras(arrays)
