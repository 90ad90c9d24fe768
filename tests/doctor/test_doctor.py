"""`jrdp doctor` here, and with things broken on purpose."""

from __future__ import annotations

import os
import re

import numpy as np
import pytest

from jrdp.doctor import report as doctor
from jrdp.machine import prepare, runtime
from jrdp.machine.cuda import CudaChoice
from jrdp.machine.onednn import OneDnn
from jrdp.doctor.report import run_doctor
from jrdp.errors import UserError


@pytest.fixture(scope="module")
def checks():
    runtime.start("cpu")
    from jrdp.doctor import checks as doctor_checks

    return doctor_checks


def test_everything_works_here(capsys):
    assert run_doctor("cpu") == 0
    told = capsys.readouterr().out
    assert "FAIL" not in told and "Everything works, on the CPU." in told
    for name in ("jittor", "compiler", "oneDNN", "convolution", "roi_align", "nms", "paste_masks", "numbers near zero"):
        assert f"ok    {name} " in told
    assert re.search(r"bfloat16 +(by (AMX|AVX512_BF16)|neither AMX nor AVX512_BF16)", told)


def test_a_problem_is_shown_with_its_fix(capsys, monkeypatch):
    none = CudaChoice(False, "nothing found", "buy one", ("CUDA 9 was passed over",))
    setup = runtime.Setup(("no g++ was found: install it",), OneDnn(None, "", "none for this machine"), none, None, "")
    monkeypatch.setattr(prepare, "_setup", setup)
    assert run_doctor() == 1
    told = capsys.readouterr().out
    for words in ("no g++ was found: install it", "buy one", "CUDA 9 was passed over", "none for this machine", "1 of the checks failed"):
        assert words in told


def test_a_device_that_cannot_be_had_fails(capsys, monkeypatch):
    def refuse(device, seed):
        raise UserError("--device cuda cannot be used: no GPU")

    monkeypatch.setattr(runtime, "start", refuse)
    assert run_doctor("cuda") == 1
    assert "--device cuda cannot be used" in capsys.readouterr().out


def test_one_broken_check_does_not_stop_the_others(capsys, monkeypatch, checks):
    def broken(device):
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr(checks, "CHECKS", (("one", broken), ("two", lambda device: "fine")))
    assert run_doctor("cpu") == 1
    told = capsys.readouterr().out
    assert "FAIL  one" in told and "first line" in told and "second line" not in told and "ok    two" in told


def test_a_compiler_whose_kernels_lose_numbers_is_named(capsys, monkeypatch, checks):
    monkeypatch.setattr(checks, "CHECKS", ())
    monkeypatch.setattr(checks, "small_numbers_are_kept", lambda device: False)
    assert run_doctor("cpu") == 0
    assert "note  numbers near zero      kernels by this compiler make them zero" in capsys.readouterr().out


def test_lost_numbers_are_noticed(checks, monkeypatch):
    assert checks.small_numbers_are_kept("cpu") and checks.small_numbers_are_kept("cuda")
    monkeypatch.setattr(checks.np, "full", lambda *_: np.zeros(4, np.float32))  # as they would be
    assert not checks.small_numbers_are_kept("cpu") and not checks.small_numbers_are_kept("cuda")


def test_a_wrong_operator_is_caught(checks, monkeypatch):
    """Each check fails when the operator it looks at is changed a little."""
    import jrdp.ops as ops

    align, levels, keep, paste = ops.roi_align, ops.multilevel_roi_align, ops.nms, ops.paste_masks

    def shifted(features, rois, *rest):
        return align(features, np.array(rois, np.float32) + np.float32([0, 2, 2, 2, 2]), *rest)

    monkeypatch.setattr(ops, "roi_align", shifted)
    monkeypatch.setattr(ops, "multilevel_roi_align", lambda f, r, sizes, scales: levels(f, r, sizes, scales[::-1]))
    monkeypatch.setattr(ops, "nms", lambda boxes, scores, threshold: keep(boxes, scores, 0.6))
    monkeypatch.setattr(ops, "paste_masks", lambda p, b, h, w: paste(p, b + np.float32(1), h, w))
    for check in (checks.check_roi_align, checks.check_multilevel_roi_align, checks.check_nms, checks.check_paste_masks):
        with pytest.raises(ArithmeticError):
            check("cpu")


def test_compare_catches_nan_and_shape(checks):
    import jittor as jt

    with pytest.raises(ArithmeticError, match="off by nan"):
        checks._compare("cpu", jt.array([float("nan"), 0.0]), np.zeros(2))
    with pytest.raises(ArithmeticError, match="shape"):
        checks._compare("cpu", jt.zeros((2, 1)), np.zeros(2))


def test_texts_for_an_unknown_machine(monkeypatch):
    monkeypatch.setattr(doctor.os, "sysconf", lambda name: (_ for _ in ()).throw(ValueError(name)))
    assert doctor._memory() == "memory unknown"
    assert doctor._first_line("/nowhere/g++", "--version") == "does not run"


def test_what_warming_up_says(checks, capfd, monkeypatch):
    import jittor as jt

    from jrdp.doctor import warm as doctor_warm

    def compute(folder, device):
        assert folder.is_dir() and device == "cpu"
        print("a line of the training")
        os.write(2, b"Compiling Operators(1/2)")
        # a kernel that nothing else loads: 13 sums
        jt.fetch_sync([sum((jt.ones((3, k + 2)) * 1.25 - 0.75).sum() for k in range(13))])

    monkeypatch.setattr(doctor_warm, "_train_and_predict", compute)
    first, second = doctor_warm.warm_up("cpu"), doctor_warm.warm_up("cpu")
    assert re.fullmatch(r"[1-9]\d* kernels compiled, \d+ were there|nothing to compile: all [1-9]\d* kernels .*", first)
    assert second == "nothing to compile: all 0 kernels are there"  # this process has loaded them
    os.write(2, b"after")
    assert capfd.readouterr() == ("", "after")  # no terminal, no bar


def test_a_failing_warm_up_gives_stderr_back(checks, capfd, monkeypatch):
    from jrdp.doctor import warm as doctor_warm

    def fail(folder, device):
        raise RuntimeError("broken")

    monkeypatch.setattr(doctor_warm, "_train_and_predict", fail)
    with pytest.raises(RuntimeError, match="broken"):
        doctor_warm.warm_up("cpu")
    os.write(2, b"after")
    assert capfd.readouterr().err == "after"


def test_a_device_that_does_not_exist_is_refused():
    with pytest.raises(UserError, match="unknown device 'tpu': choose auto, cpu or cuda"):
        run_doctor("tpu")
