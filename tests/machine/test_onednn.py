"""Putting oneDNN where Jittor looks for it."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys

import pytest

from jrdp.machine import onednn
from jrdp.machine.onednn import expected_home, prepare_onednn

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="the oneDNN wheels are for x86_64")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("JITTOR_HOME", str(tmp_path))
    return expected_home()


@pytest.fixture
def wheels(tmp_path, monkeypatch):
    """`wheels(version, folder)` makes these pretend wheels the installed ones."""

    def install(version: str, folder: str = "venv"):
        top = tmp_path / folder
        for name in ("include/dnnl.hpp", "include/oneapi/dnnl/dnnl.hpp", "lib/libdnnl.so", "lib/libdnnl.so.2"):
            (top / name).parent.mkdir(parents=True, exist_ok=True)
            (top / name).write_text(version)
        headers = [top / "include" / "dnnl.hpp", top / "include" / "oneapi"]
        libraries = [top / "lib" / "libdnnl.so", top / "lib" / "libdnnl.so.2"]
        monkeypatch.setattr(onednn, "_wheels", lambda: (version, headers, libraries))
        return top

    return install


def test_the_installed_wheels(home):
    found = prepare_onednn()
    assert found.home == home and not found.problem and found.version.startswith("2022.2.1-")
    assert (home / "include" / "dnnl.hpp").is_file() and (home / "include" / "oneapi" / "dnnl" / "dnnl.hpp").is_file()
    # Jittor's linked operators ask for the versioned name in this folder.
    assert (home / "lib" / "libdnnl.so.2").is_file() and (home / "lib" / "libmkldnn.so").is_file()
    assert [name for name in os.listdir(home.parent) if name.startswith("dnnl")] == [home.name]


def test_a_second_time_changes_nothing(home, wheels):
    wheels("1")
    prepare_onednn()
    target = os.readlink(home)
    prepare_onednn()
    assert os.readlink(home) == target


def test_another_environment_with_the_same_release_shares_the_links(home, wheels):
    wheels("1", "first")
    identity = prepare_onednn().identity
    target = os.readlink(home)
    wheels("1", "second")
    assert prepare_onednn().identity == identity and os.readlink(home) == target


def test_deleting_the_environment_it_came_from_breaks_nothing(home, wheels):
    top = wheels("1", "first")
    prepare_onednn()
    shutil.rmtree(top)
    for name in ("lib/libmkldnn.so", "lib/libdnnl.so.2", "include/dnnl.hpp", "include/oneapi/dnnl/dnnl.hpp"):
        assert (home / name).read_text() == "1"


def test_links_into_an_environment_become_a_copy(home, wheels):
    """As an earlier release left them: a folder of ours full of links."""
    top = wheels("1", "first")
    folder = onednn.own_folder() / "onednn-links"
    (folder / "lib").mkdir(parents=True)
    (folder / "VERSION").write_text("1")
    (folder / "lib" / "libmkldnn.so").symlink_to(top / "lib" / "libdnnl.so")
    home.parent.mkdir(parents=True)
    home.symlink_to(folder)
    prepare_onednn()
    shutil.rmtree(top)
    assert (home / "lib" / "libmkldnn.so").read_text() == "1"


def test_another_release_is_put_in_its_place_and_has_another_identity(home, wheels):
    wheels("1", "first")
    before = prepare_onednn()
    wheels("2", "second")
    after = prepare_onednn()
    assert before.identity != after.identity and (home / "lib" / "libmkldnn.so").read_text() == "2"


def test_a_folder_of_links_from_other_tools_is_replaced(home, wheels):
    (home / "lib").mkdir(parents=True)
    (home / "lib" / "libmkldnn.so").symlink_to("/nowhere/libdnnl.so")
    wheels("1")
    prepare_onednn()
    assert home.is_symlink() and (home / "lib" / "libmkldnn.so").read_text() == "1"


def test_a_folder_that_jittor_downloaded_is_left_alone(home, wheels):
    (home / "lib").mkdir(parents=True)
    (home / "lib" / "libmkldnn.so").write_text("downloaded")
    wheels("1")
    found = prepare_onednn()
    assert found.home == home and not home.is_symlink() and (home / "lib" / "libmkldnn.so").read_text() == "downloaded"
    assert found.identity != "1"


def test_missing_wheels_are_a_problem_with_a_fix(monkeypatch):
    monkeypatch.setattr(onednn, "_wheels", lambda: None)
    found = prepare_onednn()
    assert found.home is None and "pip install onednn-cpu-gomp==2022.2.1" in found.problem


def test_other_processors_do_without(monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    found = prepare_onednn()
    assert found.home is None and not found.problem and "aarch64" in found.note


def test_many_processes_at_once(home):
    code = "from jrdp.machine.onednn import prepare_onednn as p; h = p().home; assert (h / 'lib/libmkldnn.so').is_file()"
    running = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(6)]
    assert [process.wait() for process in running] == [0] * 6
    left = [name for folder in (home.parent, home.parent.parent / "jrdp") for name in os.listdir(folder)]
    assert not [name for name in left if name.startswith((".new-", ".old-"))]
