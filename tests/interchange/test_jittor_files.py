"""Jittor's .pkl: read by Jittor what we wrote, and the reverse."""

import pickle

import numpy as np
import pytest

from jrdp import interchange
from jrdp.interchange import BFloat16, WeightFile

VALUES = {
    "float32": np.arange(6, dtype=np.float32).reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
    "large": np.arange(5000, dtype=np.float32),
    "scalar": np.asarray(2.5, np.float32),
    "empty": np.zeros((0, 3), np.float32),
    "int32": np.array([1, -(2**31)], np.int32),
    "bool": np.array([True, False]),
    "float16": np.array([0.5, 2], np.float16),
}


def same(found, expected):
    found, expected = np.asarray(found), np.asarray(expected)
    return found.dtype == expected.dtype and found.shape == expected.shape and np.array_equal(found, expected)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_pickles_of_arrays_of_every_protocol(protocol, tmp_path):
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(VALUES, protocol))
    file = interchange.read(tmp_path / "x.pkl")
    assert file.format == "pickle" and list(file.tensors) == list(VALUES)
    assert all(same(file.tensors[name], value) for name, value in VALUES.items())


def test_big_endian_arrays_and_wrapped_models(tmp_path):
    arrays = {"a": np.arange(4, dtype=">f4"), "b": np.arange(4, dtype=">i8").reshape(2, 2)}
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"model": arrays, "__author__": "someone"}, 4))
    file = interchange.read(tmp_path / "x.pkl")
    assert file.wrapped and file.others == ["__author__"]
    assert same(file.tensors["a"], np.arange(4, dtype=np.float32))
    assert same(file.tensors["b"], np.arange(4, dtype=np.int64).reshape(2, 2))


def test_our_files_are_plain_pickles_with_jittors_ending(tmp_path):
    interchange.write(tmp_path / "x.pkl", WeightFile(VALUES))
    data = (tmp_path / "x.pkl").read_bytes()
    assert data.endswith(b"HCAJSLHD")
    loaded = pickle.loads(data[:-28])
    assert list(loaded) == list(VALUES) and all(same(loaded[name], value) for name, value in VALUES.items())
    assert interchange.read(tmp_path / "x.pkl").format == "jittor"


def test_bfloat16_becomes_float32_and_is_said(tmp_path):
    notes = interchange.write(tmp_path / "x.pkl", WeightFile({"x": BFloat16(np.array([0x3FC0], np.uint16))}))
    assert len(notes) == 1 and "bfloat16" in notes[0]
    assert same(interchange.read(tmp_path / "x.pkl").tensors["x"], np.array([1.5], np.float32))


def test_jittor_itself(tmp_path):
    jt = pytest.importorskip("jittor")
    interchange.write(tmp_path / "ours.pkl", WeightFile(VALUES))
    loaded = jt.load(str(tmp_path / "ours.pkl"))
    assert list(loaded) == list(VALUES) and all(same(loaded[name], value) for name, value in VALUES.items())
    layer = jt.nn.Module()
    layer.weight = jt.array(VALUES["float32"])
    jt.save(layer.state_dict(), str(tmp_path / "vars.pkl"))
    jt.save(layer.state_dict(to="numpy"), str(tmp_path / "arrays.pkl"))
    layer.save(str(tmp_path / "module.pkl"))
    for name in ("vars.pkl", "arrays.pkl", "module.pkl"):
        assert same(interchange.read(tmp_path / name).tensors["weight"], VALUES["float32"])
