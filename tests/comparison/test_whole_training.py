"""`compare training --evaluate` end to end, on a few small pictures."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from twin_python import TWIN_PYTHON

from jrdp import interchange
from jrdp.comparison import whole_training
from jrdp.comparison.measures import relative
from jrdp.comparison.pair import Options, open_pair
from jrdp.comparison.whole_training import compare_whole_training
from jrdp.dataset_tools.sample import write_sample
from jrdp.errors import UserError
from jrdp.files import make_folder



def options(sample, *more):
    settings = [
        "input.min_size=64", "input.max_size=96", "solver.batch_size=2", "train.checkpoint_period=1",
        f"data.test=[{json.dumps(f'{sample.images}:{sample.val}')}]", *more,
    ]
    return Options(settings=settings, twin_python=TWIN_PYTHON)


def test_it_trains_evaluates_and_goes_on(both_frameworks, tmp_path):
    sample = write_sample(tmp_path / "sample", train=8, val=2)
    datasets = [f"{sample.images}:{sample.train}"]
    lines = []
    compare_whole_training(options(sample), datasets, tmp_path / "out", steps=2, seeds=[7], print_line=lines.append)
    folder = tmp_path / "out" / "seed7"
    history = json.loads((folder / "history.json").read_text())
    assert [entry["step"] for entry in history] == [1, 2]
    assert history[0]["jittor"] == pytest.approx(history[0]["torch"], rel=1e-4)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    common = report["common"]
    assert [row["step"] for row in common] == [3, 4, 5, 6, 7]
    assert common[0]["losses"] < 1e-4 and common[0]["apart"] < 1e-2  # one step from one state, momentum included
    assert json.loads((folder / "common_2.json").read_text())[0]["losses"] == common[0]["losses"]
    metrics = report["metrics"]["7"]
    assert set(metrics) == set(metrics["jittor"]) == {"jittor", "torch"}
    trained = interchange.read(folder / "jittor_2.pth").tensors
    twin = interchange.read(folder / "torch_2.pth").tensors
    assert set(trained) == set(twin)

    # An interrupted training goes on with the batches that come next, from the same weights and momentum.
    with open_pair(replace(options(sample), seed=7)) as pair:
        whole_training._train(pair, datasets, make_folder(tmp_path / "again"), 1, 7, lines.append)
    with open_pair(replace(options(sample), seed=7)) as pair:
        again = whole_training._train(pair, datasets, tmp_path / "again", 2, 7, lines.append)
        with pytest.raises(UserError, match="--steps 2 or more"):
            whole_training._train(pair, datasets, tmp_path / "again", 1, 7, lines.append)
    assert any("goes on after step 1" in line for line in lines)
    for side in ("jittor", "torch"):
        assert again[1][side] == pytest.approx(history[1][side], rel=1e-4)
        other = interchange.read(tmp_path / "again" / f"{side}_2.pth").tensors
        name = "rpn.head.cls_tower.0.weight"
        assert np.allclose(other[name], {"jittor": trained, "torch": twin}[side][name], rtol=0, atol=1e-5)
    with open_pair(replace(options(sample, "solver.base_lr=0.001"), seed=7)) as pair:
        with pytest.raises(UserError, match="another configuration"):
            whole_training._train(pair, datasets, tmp_path / "again", 2, 7, lines.append)


def test_it_starts_from_weights_that_the_configuration_names(monkeypatch, tmp_path):
    """`train.weights` may be a name, as in configs/quickstart.yaml, for `jrdp train` and so for this."""
    chosen = []

    def stop(options):
        chosen.append(options.weights)
        raise UserError("seen")

    monkeypatch.setattr(whole_training, "open_pair", stop)
    for named, path in (("generated_r50", interchange.packed_backbone.PATH), (str(tmp_path / "mine.pth"), tmp_path / "mine.pth")):
        with pytest.raises(UserError, match="seen"):
            compare_whole_training(Options(settings=[f"train.weights={named}"]), [], tmp_path, steps=1, seeds=[1])
        assert chosen[-1] == path


@pytest.mark.parametrize("apart, instances, wrong", [(0.0, 50, False), (0.015, 50, False), (0.025, 50, True), (0.0015, 5000, True)])
def test_the_return_trip_may_be_apart_by_one_instance(apart, instances, wrong):
    def metrics(value):
        return {"val": {kind: {"AP": 0.5, "AP50": 0.75, "AP70": value, "instances": instances} for kind in ("bbox", "segm")}}

    both = {"jittor": metrics(0.5), "torch": metrics(0.5 + apart)}
    found = whole_training._wrong_trips({1: {"jittor": both, "torch": {side: metrics(0.5) for side in both}}}, 0.001)
    assert found == [wrong, wrong, False, False]


def test_a_loss_that_is_zero_has_no_relative_difference():
    assert relative(3.0, 2.0) == 0.5 and relative(0.25, 0.0) == 0.25
