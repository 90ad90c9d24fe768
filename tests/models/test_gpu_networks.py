"""Beside the CPU's: a training step of batches without ground truth, and predictions of the larger backbones."""

import jittor as jt
import numpy as np
import pytest
from test_rdpnet_gpu import BOXES as BOX
from test_rdpnet_gpu import GRADIENT, LOSS, SCORES, STAGES, on, relative_l2
from test_rdpnet_training import LOSSES, small_batch

from jrdp.comparison.synthetic import synthetic_state
from jrdp.config import load_config
from jrdp.engine.solver import Solver
from jrdp.models.rdpnet import RDPNet
from jrdp.models.state import assign_state, named_tensors, trainable_parameters

pytestmark = pytest.mark.gpu

BOXES = [[10, 8, 90, 60], [20, 20, 50, 62]]
WHOLE = 5e-3  # relative L2 of all gradients together


def step(device: str, config, boxes: list) -> tuple[dict, dict]:
    """Losses and gradients by name of one step, from weights that depend on names and shapes alone."""
    with on(device):
        model = RDPNet(config.model)
        shapes = {name: list(value.shape) for name, value in named_tensors(model).items()}
        assign_state(model, synthetic_state(shapes, 1))
        solver = Solver(trainable_parameters(model), config.solver)
        losses = model.losses(*small_batch(boxes))
        solver.backward(sum(losses.values()))
        gradients = solver.gradients()
        values = jt.fetch_sync([*[losses[name] for name in LOSSES], *gradients.values()])
        solver.step(1)
        jt.sync_all(True)
    return dict(zip(LOSSES, [float(v[0]) for v in values[:4]])), dict(zip(gradients, values[4:]))


def check(config, boxes: list, record_property) -> tuple[dict, dict]:
    found, expected = step("cuda", config, boxes), step("cpu", config, boxes)
    for name in LOSSES:
        assert found[0][name] == pytest.approx(expected[0][name], rel=LOSS), name
    assert list(found[1]) == list(expected[1])
    errors = relative_l2(found[1], expected[1])
    together = relative_l2(*({"all": np.concatenate([g.reshape(-1) for g in side[1].values()])} for side in (found, expected)))
    record_property("worst gradient", max(errors.values()))
    record_property("all gradients", together["all"])
    wrong = {name: error for name, error in errors.items() if not error <= GRADIENT}
    assert not wrong and together["all"] <= WHOLE, (wrong, together)
    return found


@pytest.mark.parametrize("boxes", [[[]], [[], []], [BOXES, []]], ids=["none", "none-none", "some-none"])
def test_a_step_without_ground_truth_is_the_cpus(boxes, record_property):
    losses, _ = check(load_config(None, []), boxes, record_property)
    if not any(boxes):
        assert losses["loss_cls"] > 0 and all(losses[name] == 0 for name in LOSSES[1:])


@pytest.mark.gpu_once
@pytest.mark.parametrize("backbone", ["r101", "x101"])
def test_the_larger_backbones_predict_as_on_the_cpu(backbone, seeded, record_property):
    """X-101's convolutions are in 32 groups."""
    config = load_config(None, [f"model.backbone.name={backbone}"])
    batch, _ = small_batch([[]])
    found, expected = (detected(device, config, seeded(backbone), batch) for device in ("cuda", "cpu"))
    assert list(found[0]) == list(expected[0]) and len(found[0]) >= 48
    errors = relative_l2(found[0], expected[0])
    record_property("worst stage", max(errors.values()))
    assert max(errors.values()) <= STAGES, errors
    found, expected = found[1], expected[1]
    assert len(found) == len(expected) > 0
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=BOX)
    np.testing.assert_allclose(found.scores, expected.scores, atol=SCORES)
    np.testing.assert_allclose(found.mask_probabilities, expected.mask_probabilities, atol=SCORES)


def detected(device: str, config, state: dict, batch) -> tuple[dict, object]:
    """Every stage as an array, and the instances."""
    with on(device):
        model = RDPNet(config.model)
        assign_state(model, state)
        stages: dict = {}
        (instances,) = model.detect(batch, stages)
        return {name: value.numpy() for name, value in stages.items()}, instances
