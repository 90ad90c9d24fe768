"""Files that are whole or absent, and JSON from outside."""

import json
import os
import sys

import pytest

from jrdp.errors import UserError
from jrdp.files import atomic_write, make_folder, parse_json, read_json, write_bytes, write_json


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


def test_folders_and_files_in_the_way(tmp_path):
    (tmp_path / "file").touch()
    for call in (
        lambda: make_folder(tmp_path / "file"),
        lambda: make_folder(tmp_path / "file" / "below"),
        lambda: write_bytes(tmp_path / "file" / "x", b""),
        lambda: write_bytes(tmp_path, b""),
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
