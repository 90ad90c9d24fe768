"""PyTorch's two formats without torch: files that torch wrote, and a reader of torch 1.1's format in plain Python."""

import io
import json
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

from jrdp import interchange
from jrdp.errors import UserError
from jrdp.interchange import BFloat16, WeightFile
from jrdp.interchange.tensors import raw_bytes

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture(scope="module")
def values():
    with np.load(FIXTURES / "values.npz") as stored:
        return {name: stored[name] for name in stored}


def assert_same(tensors, values):
    for name, tensor in tensors.items():
        expected = values[name]
        bits = tensor.bits if isinstance(tensor, BFloat16) else tensor
        assert (name == "bfloat16") == isinstance(tensor, BFloat16)
        assert bits.dtype == expected.dtype and bits.shape == expected.shape, name
        assert bits.tobytes() == expected.tobytes(), name


@pytest.mark.parametrize("name, form", [("torch_zip.pth", "pytorch"), ("torch_legacy.pth", "pytorch legacy")])
def test_reads_what_torch_wrote(name, form, values):
    file = interchange.read(FIXTURES / name)
    assert (file.format, file.wrapped, file.prefix, file.iteration) == (form, True, "module.", 7)
    assert list(file.tensors) == [key for key in values if key != "momentum_0"]
    assert_same(file.tensors, values)
    assert file.scheduler["last_epoch"] == 0 and dict(file.scheduler["milestones"]) == {3: 1, 4: 1}
    groups = file.optimizer["param_groups"]
    assert [group["params"] for group in groups] == [[0], [1], [2], [3]] and groups[0]["momentum"] == 0.9
    assert np.array_equal(file.optimizer["state"][0]["momentum_buffer"], values["momentum_0"])


def test_reads_a_bare_state_dict(values):
    file = interchange.read(FIXTURES / "torch_bare.pth")
    assert (file.wrapped, file.prefix, file.iteration, file.optimizer) == (False, "", None, None)
    assert_same(file.tensors, values)


@pytest.mark.parametrize("source", ["torch_zip.pth", "torch_legacy.pth"])
@pytest.mark.parametrize("legacy", [False, True])
def test_round_trip_keeps_every_bit(source, legacy, tmp_path, values):
    first = interchange.read(FIXTURES / source)
    interchange.write(tmp_path / "a.safetensors", first)
    middle = interchange.read(tmp_path / "a.safetensors")
    middle.optimizer, middle.scheduler = first.optimizer, first.scheduler
    assert interchange.write(tmp_path / "b.pth", middle, legacy=legacy) == []
    last = interchange.read(tmp_path / "b.pth")
    assert last.format == ("pytorch legacy" if legacy else "pytorch")
    assert list(last.tensors) == list(first.tensors) and last.iteration == 7
    assert_same(last.tensors, values)
    assert last.scheduler == first.scheduler
    assert type(last.scheduler["milestones"]) is type(first.scheduler["milestones"])
    assert last.optimizer["param_groups"] == first.optimizer["param_groups"]
    assert np.array_equal(last.optimizer["state"][0]["momentum_buffer"], values["momentum_0"])


def test_values_are_read_only_views():
    tensors = interchange.read(FIXTURES / "torch_zip.pth").tensors
    with pytest.raises(ValueError):
        tensors["float32"][0] = 1


def test_equal_contents_make_equal_files(tmp_path):
    for name in ("a.pth", "b.pth"):
        interchange.write(tmp_path / name, WeightFile({"x": np.arange(5, dtype=np.float32)}))
    assert (tmp_path / "a.pth").read_bytes() == (tmp_path / "b.pth").read_bytes()


def test_zip_entries_are_stored_and_aligned_so_that_torch_can_map_them(tmp_path):
    tensors = {f"layer{i}.weight": np.full((3, i + 1), i, np.float32) for i in range(5)}
    interchange.write(tmp_path / "a.pth", WeightFile(tensors))
    data = (tmp_path / "a.pth").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.pth") as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        assert names[0] == "archive/data.pkl" and archive.read("archive/version") == b"3\n"
        for i in range(5):
            entry = archive.getinfo(f"archive/data/{i}")
            assert entry.compress_type == zipfile.ZIP_STORED
            name_length, extra_length = struct.unpack_from("<HH", data, entry.header_offset + 26)
            begin = entry.header_offset + 30 + name_length + extra_length
            assert begin % 64 == 0
            assert data[begin : begin + entry.file_size] == raw_bytes(tensors[f"layer{i}.weight"])


def load_as_torch_1_1(data: bytes):
    """The steps of torch 1.1's `_load`, with plain stand-ins for its classes; what it asserts is asserted here."""
    stream = io.BytesIO(data)
    storages = {}

    class Storage:
        def __init__(self, kind, count):
            self.kind, self.count, self.data = kind, count, None

    def rebuild(storage, offset, size, stride, requires_grad, hooks):
        assert isinstance(hooks, OrderedDict) and requires_grad is False
        return storage, offset, size, stride

    class Unpickler(pickle.Unpickler):
        def find_class(self, module, name):
            if module == "torch" and name.endswith("Storage"):
                return {"FloatStorage": np.float32, "LongStorage": np.int64, "DoubleStorage": np.float64}[name]
            if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
                return rebuild
            assert (module, name) == ("collections", "OrderedDict")
            return OrderedDict

        def persistent_load(self, identifier):
            typename, kind, root_key, location, count, view_metadata = identifier
            assert typename == "storage" and location == "cpu" and view_metadata is None
            return storages.setdefault(root_key, Storage(kind, count))

    assert pickle.load(stream) == 0x1950A86A20F9469CFC6C
    assert pickle.load(stream) == 1001
    assert pickle.load(stream) == {
        "protocol_version": 1001,
        "little_endian": True,
        "type_sizes": {"short": 2, "int": 4, "long": 4},
    }
    result = Unpickler(stream).load()
    for key in pickle.load(stream):
        storage = storages[key]
        (count,) = struct.unpack("<q", stream.read(8))
        assert count == storage.count
        storage.data = np.frombuffer(stream.read(count * np.dtype(storage.kind).itemsize), storage.kind)
    assert stream.read() == b""

    def value(item):
        if isinstance(item, dict):
            return type(item)((key, value(child)) for key, child in item.items())
        if isinstance(item, list):
            return [value(child) for child in item]
        if isinstance(item, tuple) and item and isinstance(item[0], Storage):
            storage, offset, size, stride = item
            strides = [step * storage.data.itemsize for step in stride]
            return np.lib.stride_tricks.as_strided(storage.data[offset:], size, strides)
        return item

    return value(result)


def test_legacy_files_follow_torch_1_1(tmp_path):
    rng = np.random.default_rng(0)
    tensors = {
        "b": rng.standard_normal((2, 3, 4)).astype(np.float32),
        "a": np.asfortranarray(rng.standard_normal((3, 5))),
        "scalar": np.asarray(3, np.int64),
    }
    optimizer = {
        "state": {140234567890123: {"momentum_buffer": tensors["b"]}},
        "param_groups": [{"lr": 0.1, "nesterov": False, "params": [140234567890123]}],
    }
    file = WeightFile(tensors, optimizer=optimizer, scheduler={"last_epoch": 3}, iteration=3)
    interchange.write(tmp_path / "x.pth", file, legacy=True)
    loaded = load_as_torch_1_1((tmp_path / "x.pth").read_bytes())
    assert list(loaded) == ["model", "optimizer", "scheduler", "iteration"]
    assert isinstance(loaded["model"], OrderedDict) and list(loaded["model"]) == list(tensors)
    for name, tensor in tensors.items():
        assert loaded["model"][name].dtype == tensor.dtype and np.array_equal(loaded["model"][name], tensor)
    assert loaded["optimizer"]["param_groups"] == optimizer["param_groups"] and loaded["iteration"] == 3
    momentum = loaded["optimizer"]["state"][140234567890123]["momentum_buffer"]
    assert np.array_equal(momentum, tensors["b"])


def test_the_seeded_network_keeps_names_order_and_bits_through_every_format(seeded, tmp_path):
    tensors = seeded("r50")
    file = WeightFile(tensors, iteration=9000, metadata={"preprocessing": {"channel_order": "bgr"}})
    for name, legacy in (("a.pth", False), ("b.pth", True), ("c.safetensors", False), ("d.pkl", False)):
        interchange.write(tmp_path / name, file, legacy=legacy)
        back = interchange.read(tmp_path / name)
        assert list(back.tensors) == list(tensors)
        assert all(np.array_equal(back.tensors[key], tensor) for key, tensor in tensors.items())
        if not name.endswith(".pkl"):
            assert back.iteration == 9000 and back.metadata["preprocessing"] == {"channel_order": "bgr"}
        (tmp_path / name).unlink()


def test_safetensors_keep_the_header(tmp_path):
    file = WeightFile({"x": np.ones(2, np.float32)}, iteration=3, metadata={"config": {"a": [1, 2]}})
    interchange.write(tmp_path / "x.safetensors", file)
    data = (tmp_path / "x.safetensors").read_bytes()
    header = json.loads(data[8 : 8 + struct.unpack_from("<Q", data)[0]])
    assert json.loads(header["__metadata__"]["jrdp"]) == {"config": {"a": [1, 2]}, "iteration": 3}
    assert interchange.read(tmp_path / "x.safetensors").metadata["config"] == {"a": [1, 2]}


def test_safetensors_are_known_whatever_their_header_length(tmp_path):
    """The length's first byte may look like the start of a pickle or of another format."""
    first_bytes = set()
    for size in range(0, 2048, 8):
        interchange.write(tmp_path / "x.safetensors", WeightFile({"x" * (size + 1): np.ones(1, np.float32)}))
        first_bytes.add((tmp_path / "x.safetensors").read_bytes()[0])
        assert interchange.read(tmp_path / "x.safetensors").format == "safetensors"
    assert {0x80, ord("(")} <= first_bytes


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, np.int64, np.uint8, np.bool_, "bfloat16"])
def test_safetensors_agree_with_the_library(dtype, tmp_path):
    safetensors_numpy = pytest.importorskip("safetensors.numpy")
    small = np.arange(6).reshape(2, 3) % 2
    values = {"z": small.astype(np.float64), "a": small.astype(np.uint8), "s": np.asarray(1.5, np.float32)}
    values["x"] = BFloat16(small.astype(np.uint16)) if dtype == "bfloat16" else small.astype(dtype)
    interchange.write(tmp_path / "a.safetensors", WeightFile(values))
    if dtype == "bfloat16":  # the library gives NumPy no bfloat16: look at the bytes that it finds
        from safetensors import deserialize

        entries = dict(deserialize((tmp_path / "a.safetensors").read_bytes()))
        assert entries["x"]["dtype"] == "BF16" and bytes(entries["x"]["data"]) == values["x"].bits.tobytes()
        return
    theirs = safetensors_numpy.load_file(tmp_path / "a.safetensors")
    safetensors_numpy.save_file(values, tmp_path / "b.safetensors")
    ours = interchange.read(tmp_path / "b.safetensors").tensors
    for name, value in values.items():
        for found in (theirs[name], ours[name]):
            assert found.dtype == value.dtype and found.shape == value.shape and np.array_equal(found, value)


def test_bfloat16_widens_exactly():
    bits = np.array([0x3F80, 0xC000, 0x7F80, 0x0001, 0x8000], np.uint16)
    # 1, -2, infinity, 2 ** -133, -0: as bits, since arithmetic may flush the denormal one to zero.
    expected = np.array([0x3F800000, 0xC0000000, 0x7F800000, 0x00010000, 0x80000000], np.uint32)
    found = BFloat16(bits).float32()
    assert found.dtype == np.float32 and np.array_equal(found.view(np.uint32), expected)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".pkl"])
def test_writing_is_all_or_nothing(suffix, tmp_path):
    target = tmp_path / f"x{suffix}"
    target.write_bytes(b"before")
    bad = WeightFile({"fine": np.ones(3, np.float32), "bad": np.array(["text"])})
    with pytest.raises(UserError, match=f"cannot write .*x{suffix}"):
        interchange.write(target, bad)
    assert target.read_bytes() == b"before" and list(tmp_path.iterdir()) == [target]


def test_writing_elsewhere_says_why(tmp_path):
    (tmp_path / "file").touch()
    file = WeightFile({"x": np.ones(3, np.float32)})
    for target, word in (
        (tmp_path / "x.npz", "suffix"),
        (tmp_path / "file" / "x.pth", "file is a file, not a folder"),
        (tmp_path, "suffix"),
    ):
        with pytest.raises(UserError, match=word):
            interchange.write(target, file)
    with pytest.raises(UserError, match="legacy"):
        interchange.write(tmp_path / "x.pkl", file, legacy=True)
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]
