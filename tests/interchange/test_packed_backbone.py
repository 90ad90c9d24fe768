"""The backbone start that comes with the package: what is in it, what becomes of it, and that it can be trained from."""

import json
import os

import numpy as np
import pytest

from jrdp import interchange
from jrdp.files import sha256_of
from jrdp.interchange import packed_backbone, published
from jrdp.interchange.layout import BACKBONE, backbone_layout
from jrdp.interchange.safetensors_file import write_safetensors


@pytest.fixture(scope="module")
def file():
    return interchange.read(published.locate(packed_backbone.NAME))


def test_it_is_small_and_a_whole_backbone(file):
    assert os.path.getsize(packed_backbone.PATH) < 3_000_000
    expected = {entry.name: entry.shape for entry in backbone_layout("r50")}
    assert list(interchange.match(expected, file).tensors) == list(expected)
    assert all(np.isfinite(values).all() for values in file.tensors.values())
    assert file.metadata["preprocessing"]["channel_order"] == "bgr"
    again = interchange.read(packed_backbone.PATH)
    assert all(np.array_equal(again.tensors[name], values) for name, values in file.tensors.items())


def test_what_was_trained_is_kept_to_a_127th_of_a_channels_largest(tmp_path):
    random = np.random.default_rng(0)
    trained = {
        name[len(BACKBONE) :]: random.standard_normal(shape).astype(np.float32)
        for name, shape in ((entry.name, entry.shape) for entry in backbone_layout("r50"))
        if ".layer2.1." in name and ("conv" in name or name.endswith((".weight", ".bias")))
    }
    assert len(trained) == 9
    with open(tmp_path / "packed.safetensors", "wb") as stream:
        write_safetensors(stream, packed_backbone.pack(trained), {"jrdp": json.dumps({"packed": packed_backbone.NAME})})
    read = interchange.read(tmp_path / "packed.safetensors").tensors
    for name, values in trained.items():
        apart = np.abs(read[f"{BACKBONE}{name}"] - values)
        if values.ndim == 4:
            assert (apart.max((1, 2, 3)) <= np.abs(values).max((1, 2, 3)) / 254 * 1.001).all(), name
        else:
            assert apart.max() <= np.abs(values).max() * 2**-11, name


def test_blocks_that_were_not_trained_begin_as_the_identity(file):
    for layer, kept in {"layer2": 3, "layer3": 1}.items():
        assert file.tensors[f"{BACKBONE}{layer}.{kept - 1}.conv3.weight"].std() > 1e-3
        assert not file.tensors[f"{BACKBONE}{layer}.{kept}.conv3.weight"].any()
        assert file.tensors[f"{BACKBONE}{layer}.{kept}.conv2.weight"].std() > 1e-3  # so that it can be trained
    widening = file.tensors[f"{BACKBONE}layer4.0.downsample.0.weight"][:, :, 0, 0]
    c4 = np.arange(1024, dtype=np.float32)
    assert np.array_equal(widening @ c4, np.concatenate([c4, c4]))
    assert (file.tensors[f"{BACKBONE}layer4.0.downsample.1.running_var"] == 1).all()


def test_a_file_of_the_users_with_its_name_comes_first(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert published.locate(packed_backbone.NAME) == packed_backbone.PATH
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / f"{packed_backbone.NAME}.safetensors").write_bytes(packed_backbone.PATH.read_bytes())
    assert sha256_of(published.locate(packed_backbone.NAME)) == sha256_of(packed_backbone.PATH)
    assert published.locate(packed_backbone.NAME) != packed_backbone.PATH
