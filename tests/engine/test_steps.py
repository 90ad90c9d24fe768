"""The steps of training on a network so small that they can be written out: accumulation, clipping, loss scale."""

import jittor as jt
import numpy as np
import pytest
from jittor import nn

from jrdp.config import load_config
from jrdp.engine.loss_scale import FIXED, GROWTH_INTERVAL, LossScale
from jrdp.engine.solver import Solver
from jrdp.engine.steps import training_steps
from jrdp.errors import UserError
from jrdp.models.state import trainable_parameters
from jrdp.structures import ImageBatch

START = [1.0, -2.0]


class Point(nn.Module):
    """Two numbers that are pulled to the first two pixels of a picture: loss = |w - pixels|^2 / 2."""

    def __init__(self):
        self.weight = jt.array(np.float32(START))

    def execute(self, batch, targets, all_reduce):
        wanted = jt.array(batch.images[0, 0, 0, :2])
        return {"loss_pull": 0.5 * (self.weight - wanted).sqr().sum(), "loss_none": (self.weight * 0.0).sum()}


def batches(*pixels):
    """A loader of batches whose first two pixels are these."""
    made = []
    for number, pair in enumerate(pixels):
        images = np.zeros((1, 3, 1, 2), np.float32)
        images[0, 0, 0] = pair
        made.append((number, ImageBatch(images, [(1, 2)], [(1, 2)], [f"picture {number}"]), []))
    return made


def run(loader, iterations, *settings, **options):
    plain = ["solver.warmup_iterations=0", "solver.steps=[1000]", "solver.weight_decay=0", "solver.base_lr=0.5"]
    config = load_config(None, [*plain, f"solver.max_iterations={iterations}", *settings])
    network = Point()
    solver = Solver(trainable_parameters(network), config.solver)
    steps = list(training_steps(network, loader, config, solver=solver, **options))
    return steps, network.weight.numpy(), solver.momentum()["weight"]


def test_a_step_is_sgd_on_the_sum_of_the_losses():
    (step,), weight, _ = run(batches((0, 0)), 1)
    assert step.losses == {"loss": 2.5, "loss_pull": 2.5, "loss_none": 0.0}
    assert (step.iteration, step.rate, step.skipped) == (1, 0.5, False)
    assert weight.tolist() == [0.5, -1.0]


@pytest.mark.parametrize("on_gpu", [False, pytest.param(True, marks=pytest.mark.gpu)])
def test_running_statistics_do_not_pile_up_as_work_put_off(on_gpu):
    """Neither losses nor gradients need them; each step's would wait for the last one's, for ever."""

    class Running(Point):
        def __init__(self):
            super().__init__()
            self.mean = jt.array(np.zeros(2, np.float32)).stop_grad()

        def execute(self, batch, targets, all_reduce):
            self.mean.update(self.mean * 0.5 + jt.array(batch.images[0, 0, 0, :2]) * 0.5)
            return super().execute(batch, targets, all_reduce)

    settings = ["solver.warmup_iterations=0", "solver.steps=[1000]", "solver.max_iterations=12"]
    lived = []
    with jt.flag_scope(use_cuda=int(on_gpu)):
        network = Running()
        for _ in training_steps(network, batches(*[(8, 16)] * 12), load_config(None, settings)):
            lived.append(jt.liveness_info()["lived_ops"])
    assert lived[-1] <= lived[2], lived
    assert network.mean.numpy() == pytest.approx(np.array([8, 16]) * (1 - 0.5**12))


def test_accumulation_averages_gradients_and_losses():
    pulls = [(0, 0), (2, 1), (4, -2), (0, 0)]
    steps, weight, _ = run(batches(*pulls), 2, "solver.accumulate=2", "solver.momentum=0")
    expected = np.array(START)
    for first, second in (pulls[:2], pulls[2:]):
        expected = expected - 0.5 * ((expected - first) + (expected - second)) / 2
    assert weight == pytest.approx(expected)
    assert steps[0].losses["loss"] == pytest.approx((2.5 + 5) / 2)
    one, alone, _ = run(batches(pulls[0]), 1)
    same, twice, _ = run(batches(pulls[0], pulls[0]), 1, "solver.accumulate=2")
    assert np.array_equal(alone, twice) and one[0].losses == same[0].losses


def test_gradients_are_shortened_together_and_only_when_too_long():
    _, weight, _ = run(batches((-2, -6)), 1, "solver.clip_norm=1")  # the gradient is (3, 4)
    assert weight == pytest.approx([1 - 0.5 * 0.6, -2 - 0.5 * 0.8])
    _, weight, _ = run(batches((-2, -6)), 1, "solver.clip_norm=5.1")
    assert weight.tolist() == [-0.5, -4.0]


def test_clipping_tells_the_norm():
    config = load_config(None, []).solver
    one, other = jt.array(np.float32([3, 0])), jt.array(np.float32([[4]]))
    solver = Solver({"one": one, "other": other}, config)
    solver.backward(0.5 * (one.sqr().sum() + other.sqr().sum()))
    assert solver.clip(10) == pytest.approx(5)
    assert solver.clip(1) == pytest.approx(5)
    assert solver.clip(9) == pytest.approx(1)
    assert {name: value.numpy().tolist() for name, value in solver.gradients().items()} == {
        "one": [pytest.approx(0.6), 0], "other": [[pytest.approx(0.8)]]
    }


MIXED = ["train.amp=true", "train.dynamic_loss_scale=true", "solver.momentum=0.5"]


def test_an_overflow_skips_the_step_and_halves_the_scale():
    scale = LossScale(value=2.0**120)  # times a pull of 1e9, more than float32 holds
    steps, weight, momentum = run(batches((0, 0), (-1e9, -1e9), (0, 0)), 3, *MIXED, scale=scale)
    assert [step.skipped for step in steps] == [False, True, False]
    assert scale.value == 2.0**119 and scale.steps == 1
    _, expected, kept = run(batches((0, 0), (0, 0)), 2, "solver.momentum=0.5")
    assert np.array_equal(weight, expected) and np.array_equal(momentum, kept)


def test_the_scale_changes_no_bit_of_what_fits():
    pulls = [(0.1, 0.3), (-0.7, 2.3)]
    _, scaled, _ = run(batches(*pulls), 2, *MIXED, scale=LossScale(2.0**10))
    _, plain, _ = run(batches(*pulls), 2, "solver.momentum=0.5")
    assert np.array_equal(scaled, plain)


def test_the_scale_grows_after_many_good_steps_and_ends_at_one():
    scale = LossScale(value=4.0)
    for _ in range(GROWTH_INTERVAL - 1):
        scale.went_well()
    assert scale.value == 4
    scale.went_well()
    assert (scale.value, scale.steps) == (8, 0)
    scale.went_well()
    scale.overflowed()
    assert (scale.value, scale.steps) == (4, 0)
    scale.overflowed()
    scale.overflowed()
    with pytest.raises(UserError, match="loss scale of 1"):
        scale.overflowed()


def test_what_the_scale_starts_from_is_as_documented():
    assert (LossScale(), GROWTH_INTERVAL) == (LossScale(value=65536.0, steps=0), 2000)


def test_the_scale_stays_a_power_of_two_below_its_limit():
    assert np.log2(FIXED) % 1 == np.log2(LossScale().value) % 1 == 0 and FIXED > 1
    scale = LossScale(value=2.0**23)
    for _ in range(3 * GROWTH_INTERVAL):
        scale.went_well()
    assert scale.value == 2.0**24


def test_without_a_dynamic_scale_an_overflow_ends_the_run():
    network = Point()
    config = load_config(None, ["solver.max_iterations=2", "solver.warmup_iterations=0"])
    steps = training_steps(network, batches((0, 0), (np.inf, 0)), config)
    next(steps)
    before = network.weight.numpy()
    with pytest.raises(UserError, match=r"loss, loss_pull not finite at iteration 2, pictures \['picture 1'\]"):
        next(steps)
    assert np.array_equal(network.weight.numpy(), before)


def test_settings_without_effect_are_refused():
    with pytest.raises(UserError, match="dynamic_loss_scale has no effect without amp"):
        load_config(None, ["train.dynamic_loss_scale=true"])
