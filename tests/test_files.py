"""Files that are whole or absent, and JSON from outside."""

import errno
import gzip
import json
import os
import resource
import signal
import sys
from pathlib import Path

import pytest

from jrdp import files
from jrdp.errors import UserError
from jrdp.files import (
    atomic_write, check_target, make_folder, parse_json, protect, read_json, remove_leftovers, write_bytes, write_json
)


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "x.bin"
    path.write_bytes(b"before")
    with pytest.raises(RuntimeError):
        with atomic_write(path) as stream:
            stream.write(b"half")
            raise RuntimeError
    assert path.read_bytes() == b"before" and list(tmp_path.iterdir()) == [path]
    with atomic_write(path) as stream:
        stream.write(b"after")
    assert path.read_bytes() == b"after" and list(tmp_path.iterdir()) == [path]


def test_written_files_are_as_readable_as_any_other(tmp_path):
    write_bytes(tmp_path / "ours", b"")
    (tmp_path / "plain").touch()
    assert os.stat(tmp_path / "ours").st_mode == os.stat(tmp_path / "plain").st_mode


def test_json_goes_round_and_infinity_is_refused(tmp_path):
    write_json(tmp_path / "deep" / "x.json", {"a": [1, 2.5, None]}, indent=1)
    assert read_json(tmp_path / "deep" / "x.json", "thing") == {"a": [1, 2.5, None]}
    with pytest.raises(ValueError):
        write_json(tmp_path / "y.json", float("inf"))
    assert not (tmp_path / "y.json").exists()


def test_the_folder_of_a_file_is_made(tmp_path):
    with atomic_write(tmp_path / "new" / "deeper" / "x.bin") as stream:
        stream.write(b"x")
    assert (tmp_path / "new" / "deeper" / "x.bin").read_bytes() == b"x"
    check_target(tmp_path / "other" / "y.bin")
    assert (tmp_path / "other").is_dir() and not list((tmp_path / "other").iterdir())


def test_folders_and_files_in_the_way(tmp_path):
    (tmp_path / "file").touch()
    for call in (
        lambda: make_folder(tmp_path / "file"),
        lambda: make_folder(tmp_path / "file" / "below"),
        lambda: write_bytes(tmp_path / "file" / "x", b""),
        lambda: write_bytes(tmp_path, b""),
        lambda: check_target(tmp_path),
        lambda: check_target(tmp_path / "file" / "x"),
        lambda: read_json(tmp_path, "thing"),
        lambda: read_json(tmp_path / "none.json", "thing"),
    ):
        with pytest.raises(UserError, match=str(tmp_path)):
            call()


def test_nesting_is_bounded_however_far_recursion_may_go(tmp_path):
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(10**6)  # as Jittor leaves it
    try:
        with pytest.raises(ValueError, match="nested too deeply"):
            parse_json("[" * 5_000_000)
        assert sys.getrecursionlimit() == 10**6
        (tmp_path / "deep.json").write_text("[" * 100_000 + "]" * 100_000)
        with pytest.raises(UserError, match="nested too deeply"):
            read_json(tmp_path / "deep.json", "results file")
    finally:
        sys.setrecursionlimit(limit)
    assert parse_json(json.dumps({"a": [[[1]]]})) == {"a": [[[1]]]}


def test_only_errors_of_the_file_itself_are_called_so(tmp_path):
    for error in (BrokenPipeError(errno.EPIPE, "Broken pipe"), FileNotFoundError(errno.ENOENT, "no kernel", "k.so")):
        with pytest.raises(type(error)):
            with atomic_write(tmp_path / "x"):
                raise error
    assert list(tmp_path.iterdir()) == []
    if os.path.exists("/dev/full"):
        with pytest.raises(OSError, match="No space"):
            with open("/dev/full", "wb", buffering=0) as full, atomic_write(tmp_path / "x"):
                full.write(b"1")


def test_a_full_disk_names_the_file(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(UserError, match="cannot write .*x.bin"):
            with atomic_write(tmp_path / "x.bin") as stream:
                stream.write(b"1" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(tmp_path.iterdir()) == []


def test_inputs_are_not_replaced_under_any_of_their_names(tmp_path):
    photo = tmp_path / "photo.png"
    photo.write_bytes(b"precious")
    (tmp_path / "soft.png").symlink_to(photo)
    os.link(photo, tmp_path / "hard.png")
    protect(tmp_path / "soft.png")
    for name in ("photo.png", "soft.png", "hard.png", "../" + tmp_path.name + "/photo.png"):
        with pytest.raises(UserError, match="would replace the input"):
            write_bytes(tmp_path / name, b"new")
    assert photo.read_bytes() == b"precious"
    write_bytes(tmp_path / "other.png", b"new")


def test_the_number_of_an_input_that_was_saved_anew_is_free(tmp_path):
    """Editors rename a new file over the old one; the file system then gives the old one's number to another file."""
    config, result, saved = tmp_path / "my.yaml", tmp_path / "last.safetensors", tmp_path / "saved"
    config.write_text("a: 1")
    os.link(config, result)  # as if the number had been given away
    protect(config)
    saved.write_text("a: 2")
    os.replace(saved, config)
    check_target(result)
    write_bytes(result, b"weights")
    assert config.read_text() == "a: 2" and result.read_bytes() == b"weights"


def test_an_input_named_in_several_ways_stays_protected_by_those_that_still_lead_to_it(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    photo = tmp_path / "in" / "photo.png"
    photo.write_bytes(b"precious")
    (tmp_path / "soft.png").symlink_to(photo)
    monkeypatch.chdir(tmp_path / "in")
    protect("../soft.png", "photo.png")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "soft.png").unlink()
    for name in ("in/photo.png", "in/../in/photo.png", photo):
        with pytest.raises(UserError, match="would replace the input photo.png"):
            write_bytes(name, b"new")
    protected_there = files.protected_there()
    monkeypatch.setattr(files, "_inputs", {})
    protected_there()  # in another process
    with pytest.raises(UserError, match="would replace the input photo.png"):
        write_bytes(photo, b"new")


def test_leftovers_are_removed_and_nothing_else(tmp_path):
    for name in (".last.safetensors.ab12_cd3", ".last.safetensors.short", ".other.safetensors.ab12_cd3", "last.safetensors"):
        (tmp_path / name).touch()
    remove_leftovers(tmp_path, "last.safetensors")
    assert len(list(tmp_path.iterdir())) == 3 and not (tmp_path / ".last.safetensors.ab12_cd3").exists()


def test_a_name_as_long_as_the_system_allows_can_be_written(tmp_path):
    write_bytes(tmp_path / ("ü" * 127), b"1")
    assert len(list(tmp_path.iterdir())) == 1


def test_pipes_devices_and_addresses_are_no_files(tmp_path):
    """Opening a pipe waits for ever, /dev/zero never ends, and an address would become a folder called `s3:`."""
    pipe = tmp_path / "pipe.jpg"
    os.mkfifo(pipe)
    for path, words in ((pipe, "a named pipe"), ("/dev/zero", "a device")):
        with pytest.raises(UserError, match=f"cannot read .*{words}"):
            files.read_json(path, "annotations")
        with pytest.raises(UserError, match=f"cannot write .*{words}"):
            files.write_text(path, "x")
    for address in ("http://host/a.json", "s3://bucket/a.json", "file:///a.json", "rtsp://camera/1"):
        with pytest.raises(UserError, match=f"{address.partition(':')[0]}://.* is an address"):
            files.read_json(Path(address), "annotations")
        with pytest.raises(UserError, match="is an address"):
            files.write_text(address, "x")
        with pytest.raises(UserError, match="is an address"):
            files.make_folder(Path(address))
    (tmp_path / "a:").mkdir()
    files.write_text(tmp_path / "a:" / "b", "x")  # a name with a colon is a name
    read, write = os.pipe()
    os.write(write, b"[1]"), os.close(write)
    assert files.read_json(f"/dev/fd/{read}", "annotations") == [1]  # what the shell makes of <(command)
    os.close(read)


def test_every_reader_refuses_a_pipe(tmp_path):
    from jrdp import interchange
    from jrdp.config import load_config
    from jrdp.data.catalog import locate
    from jrdp.data.transforms import read_image
    from jrdp.dataset_tools.matfile import read_mat
    from jrdp.engine.pictures import list_pictures

    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for reader in (interchange.read, load_config, read_image, read_mat, lambda path: list_pictures([path])):
        with pytest.raises(UserError, match="a named pipe"):
            reader(pipe)
    with pytest.raises(UserError, match="http://host/imgs:http://host/a.json is an address"):
        locate("http://host/imgs:http://host/a.json", tmp_path)


@pytest.mark.parametrize(
    "data, words",
    [
        (b"", "it is empty"), (b"\n<!DOCTYPE html>", "web page"), (gzip.compress(b"{}"), "gzip: unpack"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"), (b"{'a': 1}", "double quotes"),
        (b'{"a": 1}\n{"a": 2}\n', "JSON lines.*one list"), (b"[1]\r\n[2]", "JSON lines"), (b'{"a": 1}\n}', "Extra data: line 2"),
        ('{"a": "é"}'.encode("latin-1"), "not UTF-8"), (b"PK\x03\x04\xff\xfe", "zip file: unpack"),
    ],
)  # fmt: skip
def test_what_is_taken_for_json_is_named(tmp_path, data, words):
    (tmp_path / "a.json").write_bytes(data)
    with pytest.raises(UserError, match=words):
        files.read_json(tmp_path / "a.json", "annotations")


def test_json_in_any_unicode_encoding_is_read(tmp_path):
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"):
        (tmp_path / "a.json").write_bytes('{"a": "é"}'.encode(encoding))
        assert read_json(tmp_path / "a.json", "thing") == {"a": "é"}
