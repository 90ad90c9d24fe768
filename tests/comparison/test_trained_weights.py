"""`jrdp compare` on trained weights and photographs: nothing wrong is reported as wrong, and every mistake is caught.

All comparisons share two processes, one of each framework; only what the twin holds changes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json

import numpy as np
import pytest
from twin_python import TWIN_PYTHON

from jrdp.comparison import layers
from jrdp.comparison.exchange import load_arrays, save_arrays
from jrdp.comparison.pair import NEGATIVE_CONTROLS, Options, open_pair

PHOTOGRAPHS = 4  # scripts/parity.sh takes as many as it is given
NOTICED = {
    "rgb": "first stage over tolerance: stem ",
    "aligned": "first stage over tolerance: mask_roi_1 ",
    "nms-without-one": "not explained by close decisions: IoU against the NMS threshold",
    "sqrt-score": "scores 0.",
    "group-norm-eps": "first stage over tolerance: cls_logits_P3 ",
}


@pytest.fixture(scope="module")
def photographs(shared):
    """Spread over both sets; the first is one where suppression without the +1 makes a difference."""
    found = sorted((shared / "data").glob("*/imgs/*.jpg"))
    return [found[i * len(found) // PHOTOGRAPHS] for i in range(PHOTOGRAPHS)]


@pytest.fixture(scope="module")
def pair(shared, both_frameworks):
    weights = shared / "weights" / "small_cpu_half.safetensors"
    if not weights.exists():
        pytest.skip(f"needs the trained weights {weights}")
    with open_pair(Options(weights=weights, twin_python=TWIN_PYTHON)) as opened:
        yield opened


@pytest.fixture
def compare(pair, tmp_path, monkeypatch):
    """`compare(pictures, change=None, **options)` -> (whether it passed, the content of report.json)."""

    def run(pictures, change=None, **values):
        @contextlib.contextmanager
        def reopened(options):
            mistake = NEGATIVE_CONTROLS[options.negative_control] if options.negative_control else {}
            config = pair.config.model_dump(mode="json")
            pair.torch.ask("build", config=config, device="cpu", precision=options.precision, variant=mistake)
            state = load_arrays(pair.folder / "start.npz")
            if change is not None:
                change(state)
            save_arrays(pair.folder / "twin_start.npz", state)
            pair.torch.ask("load", state=str(pair.folder / "twin_start.npz"))
            yield dataclasses.replace(pair, options=options)

        monkeypatch.setattr(layers, "open_pair", reopened)
        passed = layers.compare_layers(Options(**values), pictures, tmp_path / "out", print_line=lambda line: None)
        return passed, json.loads((tmp_path / "out/report.json").read_text())

    return run


def test_photographs_agree_within_the_noise_floor(compare, photographs):
    passed, report = compare(photographs)
    assert passed, report["failures"]
    assert report["noise_floor"]["factor"] == 24 and len(report["stages"]) >= 48
    for picture in report["pictures"]:
        assert picture["counts"][0] == picture["counts"][2] or picture["explained"]
        # A real distance was measured on both sides, and ours is far inside the fixed tolerance.
        assert 0 < picture["box"]["theirs"] < 0.005 and 0 < picture["box"]["ours"] < 0.005
    stages = {stage["stage"]: stage["verdicts"] for stage in report["stages"]}
    assert all(0 < verdict["theirs"] < 1e-5 for verdicts in stages.values() for verdict in verdicts)


@pytest.mark.parametrize("control", sorted(NEGATIVE_CONTROLS))
def test_every_mistake_is_noticed_on_trained_weights(compare, photographs, control):
    passed, report = compare(photographs[:1], negative_control=control)
    assert not passed
    assert any(NOTICED[control] in failure for failure in report["failures"]), report["failures"]
    if "first stage" not in NOTICED[control]:
        assert not any(stage["over"] for stage in report["stages"])


def test_a_small_change_of_one_tensor_is_named(compare, photographs):
    def change(state):
        weight = state["backbone.fpn.refine_block_3.1.weight"]
        weight[7] *= np.float32(1.002)

    passed, report = compare(photographs[:1], change)
    assert not passed and report["failures"][0].startswith("first stage over tolerance: RP5 ")


def test_against_float64_alone_the_tolerances_decide(compare, photographs):
    passed, report = compare(photographs[:1], precision="float64")
    assert passed and report["noise_floor"] is None
    assert all(stage["verdicts"][0]["theirs"] is None for stage in report["stages"])
