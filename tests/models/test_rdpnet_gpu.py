"""The network on a GPU: against the released network's numbers and against the same step on the CPU."""

import json
import os

import jittor as jt
import numpy as np
import pytest
from golden_pictures import PICTURES, picture_batch, run
from test_rdpnet_inference import stage_errors
from test_rdpnet_training import LOSSES, golden_targets

from jrdp.config import Config
from jrdp.engine.solver import Solver
from jrdp.engine.loss_scale import FIXED
from jrdp.models.layers import use_half_convolutions
from jrdp.models.rdpnet import RDPNet
from jrdp.models.state import assign_state, trainable_parameters

pytestmark = pytest.mark.gpu

# TF32 is off; kernels have fast exponentials and divisions unless JRDP_PRECISE=1 asks for the CPU's tolerances.
PRECISE = os.environ.get("JRDP_PRECISE") == "1"
STAGES, BOXES, SCORES = (1e-4, 0.01, 1e-4) if PRECISE else (1e-3, 0.1, 1e-3)
LOSS, GRADIENT = (1e-5, 5e-3) if PRECISE else (1e-3, 2e-2)  # gradient: relative L2 of each parameter's


def on(device: str):
    return jt.flag_scope(use_cuda=int(device == "cuda"))


def network(device: str, state: dict) -> RDPNet:
    with on(device):
        model = RDPNet(Config().model)
        assign_state(model, state)
        return model


@pytest.fixture(scope="module")
def on_gpu(seeded) -> RDPNet:
    return network("cuda", seeded("r50"))


def inference_errors(model: RDPNet, device: str, golden, name: str) -> dict:
    """The worst stage (relative L2), and boxes (network pixels), scores and mask probabilities (absolute)."""
    expected = np.load(golden / "r50" / f"infer_{name}.npz")
    with on(device):
        result = run(model, picture_batch(golden, name))
    found = result.instances
    assert len(found) == len(expected["det/scores"])
    sample = expected["det/mask_prob/sample"]
    picks = (np.arange(len(sample)) * found.mask_probabilities.size) // len(sample)
    return {
        "stages": max(stage_errors(result.stages, expected).values()),
        "boxes": np.abs(found.boxes - expected["det/boxes_net"]).max(),
        "scores": np.abs(found.scores - expected["det/scores"]).max(),
        "masks": np.abs(found.mask_probabilities.reshape(-1)[picks] - sample).max(),
    }


@pytest.mark.parametrize("name", PICTURES)
def test_stages_and_detections_are_the_released_ones(name, on_gpu, golden, record_property):
    errors = inference_errors(on_gpu, "cuda", golden, name)
    for key, value in errors.items():
        record_property(key, float(value))
    limits = {"stages": STAGES, "boxes": BOXES, "scores": SCORES, "masks": SCORES}
    assert all(errors[key] <= limit for key, limit in limits.items()), errors


def training_step(device: str, state: dict, golden, half: bool = False) -> tuple[dict, dict]:
    """The four losses and the gradients by name, of the goldens' batch of four; half: in mixed precision, as trained."""
    model = network(device, state)
    record = json.loads((golden / "r50" / "train.json").read_text())
    batch = picture_batch(golden, *[name[: -len(".png")] for name in record["files"]])
    targets = golden_targets(np.load(golden / "r50" / "train.npz"))
    with on(device):
        use_half_convolutions(model, half)
        solver = Solver(trainable_parameters(model), Config().solver)
        losses = model.losses(batch, targets)
        solver.backward(sum(losses[name] for name in LOSSES), FIXED if half else 1.0)
        gradients = solver.gradients()
        values = jt.fetch_sync([*[losses[name] for name in LOSSES], *gradients.values()])
    return dict(zip(LOSSES, [float(v[0]) for v in values[:4]])), dict(zip(gradients, values[4:]))


def relative_l2(found: dict, expected: dict) -> dict:
    """By name; a gradient that is all zero (a level without a positive) must be zero on both sides."""
    errors = {}
    for name, value in expected.items():
        norm = np.linalg.norm(value.astype(np.float64))
        difference = np.linalg.norm(found[name].astype(np.float64) - value)
        errors[name] = difference / norm if norm else (0.0 if difference == 0 else np.inf)
    return errors


@pytest.fixture(scope="module")
def gpu_step(seeded, golden):
    return training_step("cuda", seeded("r50"), golden)


def check_step(found: tuple, expected: tuple, loss: float, gradient: float) -> dict:
    for name in LOSSES:
        assert found[0][name] == pytest.approx(expected[0][name], rel=loss), name
    errors = relative_l2(found[1], expected[1])
    wrong = {name: error for name, error in errors.items() if not error <= gradient}
    assert not wrong, wrong
    return errors


def test_a_training_step_is_the_cpus(gpu_step, seeded, golden, record_property):
    cpu_step = training_step("cpu", seeded("r50"), golden)
    errors = check_step(gpu_step, cpu_step, LOSS, GRADIENT)
    record_property("median", float(np.median(list(errors.values()))))
    record_property("worst", float(max(errors.values())))
    name = "backbone.body.layer3.0.conv2.weight"
    wrong = {**gpu_step[1], name: gpu_step[1][name] * (1 + 2 * GRADIENT)}
    with pytest.raises(AssertionError, match=name):
        check_step((gpu_step[0], wrong), cpu_step, LOSS, GRADIENT)


def test_the_losses_are_the_released_ones(gpu_step, golden):
    record = json.loads((golden / "r50" / "train.json").read_text())
    for name, value in record["steps"][0]["losses"].items():
        assert gpu_step[0][name] == pytest.approx(value, rel=LOSS), name


def test_a_step_repeats(gpu_step, seeded, golden, record_property):
    """Jittor's reductions and some of cuDNN's algorithms add in an order that varies: how many bits do, is noted."""
    again = training_step("cuda", seeded("r50"), golden)
    errors = check_step(again, gpu_step, 1e-5, 1e-3)
    record_property("gradients with the same bits", sum(error == 0 for error in errors.values()))
    record_property("gradients", len(errors))


def check_mixed_precision(mixed: tuple, exact: tuple) -> float:
    """Losses within 5 %, finite gradients that point the same way; returns the cosine between the two gradients."""
    for name in LOSSES:
        assert mixed[0][name] == pytest.approx(exact[0][name], rel=0.05), name
    assert all(np.isfinite(grad).all() for grad in mixed[1].values())
    steps = (mixed[1].values(), exact[1].values())
    one, other = (np.concatenate([grad.reshape(-1).astype(np.float64) for grad in grads]) for grads in steps)
    cosine = float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))
    assert cosine > 0.95
    return cosine


def test_a_step_in_mixed_precision_is_finite_and_near(gpu_step, seeded, golden, record_property):
    mixed = training_step("cuda", seeded("r50"), golden, half=True)
    record_property("cosine", check_mixed_precision(mixed, gpu_step))
    assert mixed[0] != gpu_step[0], "the option changed nothing"
