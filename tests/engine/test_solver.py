"""The solver against the released schedule and groups, and against SGD written out in NumPy."""

import json
from functools import partial

import jittor as jt
import numpy as np
import pytest

from jrdp.config import SolverConfig
from jrdp.engine import solver as solver_module
from jrdp.engine.solver import Solver
from jrdp.errors import UserError
from jrdp.ops import many
from jrdp.schedule import learning_rate


def test_schedule_as_released(golden):
    wanted = json.loads((golden / "keys_r50.json").read_text())["lr_of_group0_at_iteration"]
    config = SolverConfig()
    for iteration, rate in wanted.items():
        assert learning_rate(config, int(iteration)) == pytest.approx(rate, rel=1e-12), iteration


def test_schedule_edges():
    config = SolverConfig(base_lr=1.0, warmup_iterations=3, warmup_factor=0.5, steps=[5, 7], gamma=0.1)
    rates = [learning_rate(config, i) for i in range(1, 9)]
    assert rates == pytest.approx([0.5, 0.5, 1, 1, 0.1, 0.1, 0.01, 0.01])
    assert learning_rate(SolverConfig(warmup_iterations=0), 1) == 0.0025


def quadratic(seed, layers=0):
    """Parameters with a loss whose gradient is easy: sum(a * w^2) / 2 -> a * w."""
    rng = np.random.default_rng(seed)
    sizes = {"conv.weight": (3, 2), "conv.bias": 3}
    for k in range(layers):
        sizes = {**sizes, f"{k}.weight": 2, f"{k}.bias": (1, k + 1)}
    values = {name: rng.normal(size=size).astype("f4") for name, size in sizes.items()}
    slopes = {name: rng.uniform(0.5, 2, value.shape).astype("f4") for name, value in values.items()}
    parameters = {name: jt.array(value) for name, value in values.items()}

    def loss():
        return sum((0.5 * jt.array(slopes[name]) * parameters[name].sqr()).sum() for name in parameters)

    return values, slopes, parameters, loss


def reference(values, slopes, config, steps, momentum=None):
    """SGD in float64: v = m v + (g + d w); w -= lr v. Biases: lr x 2, no decay."""
    values = {name: value.astype("f8") for name, value in values.items()}
    momentum = momentum or {name: np.zeros_like(value) for name, value in values.items()}
    for iteration in steps:
        for name in values:
            bias = "bias" in name
            gradient = slopes[name] * values[name] + (0 if bias else config.weight_decay) * values[name]
            momentum[name] = config.momentum * momentum[name] + gradient
            values[name] = values[name] - learning_rate(config, iteration) * (2 if bias else 1) * momentum[name]
    return values, momentum


@pytest.fixture
def config():
    return SolverConfig(base_lr=0.1, weight_decay=0.05, warmup_iterations=2, steps=[3], max_iterations=5)


def test_steps_equal_sgd_written_out(config):
    values, slopes, parameters, loss = quadratic(0)
    solver = Solver(parameters, config)
    rates = []
    for iteration in (1, 2, 3):
        solver.backward(loss())
        rates.append(solver.step(iteration))
    wanted, momentum = reference(values, slopes, config, (1, 2, 3))
    for name in values:
        np.testing.assert_allclose(parameters[name].numpy(), wanted[name], rtol=1e-5)
        np.testing.assert_allclose(solver.momentum()[name], momentum[name], rtol=1e-5)
    assert rates == pytest.approx([0.1 / 3, 0.1, 0.01])


def test_steps_together_equal_sgd_written_out(config, where, monkeypatch):
    for operator in (many.sgd, many.report):
        monkeypatch.setattr(solver_module, operator.__name__, partial(operator, kernels=where(many.KERNELS)))
    monkeypatch.setattr(solver_module, "AT_ONCE", 2)
    values, slopes, parameters, loss = quadratic(0, layers=3)
    solver = Solver(parameters, config)
    if not jt.flags.use_cuda:
        solver._sgd.step = solver._step_together  # a CPU steps them one by one, unless it is made to do as a GPU does
    for iteration in (1, 2, 3):
        solver.backward(loss())
        total, broken = solver.read_report(solver.report([loss(), 2 * loss()]))
        assert broken == [] and total == [pytest.approx(float(loss().item()) * factor, rel=1e-5) for factor in (1, 2)]
        solver.step(iteration)
    wanted, momentum = reference(values, slopes, config, (1, 2, 3))
    for name in values:
        np.testing.assert_allclose(parameters[name].numpy(), wanted[name], rtol=1e-5)
        np.testing.assert_allclose(solver.momentum()[name], momentum[name], rtol=1e-5)
    solver.backward((parameters["1.weight"] * jt.array(np.float32([np.inf, 1]))).sum() + parameters["2.bias"].sum())
    assert solver.read_report(solver.report([loss()]))[1] == ["1.weight"]


def test_factors_multiply_the_gradients(config):
    values, slopes, parameters, loss = quadratic(3)
    solver = Solver(parameters, config)
    solver.clear()
    solver.add(loss(), 2.0)
    solver.add(loss())
    solver.scale(2.0)
    for name, gradient in solver.gradients().items():
        np.testing.assert_allclose(gradient.numpy(), 6 * slopes[name] * values[name], rtol=1e-6)


def test_a_norm_whose_square_is_beyond_float32_is_shortened_too(config):
    one, other = jt.array(np.float32([1])), jt.array(np.float32([1]))
    solver = Solver({"one": one, "other": other}, config)
    solver.backward((1.5e19 * (one + other)).sum())
    assert solver.clip(1) == pytest.approx(1.5e19 * 2**0.5)
    assert [value.numpy().tolist() for value in solver.gradients().values()] == [[pytest.approx(0.5**0.5)]] * 2


def test_a_scaled_loss_gives_the_same_bits(config):
    _, _, parameters, loss = quadratic(7)
    solver = Solver(parameters, config)
    gradients = []
    for scale in (1.0, 1024.0):
        solver.backward(loss(), scale)
        gradients.append({name: value.numpy() for name, value in solver.gradients().items()})
    assert all(np.any(value) for value in gradients[0].values())
    for name, value in gradients[0].items():
        np.testing.assert_array_equal(value, gradients[1][name])


def test_decay_of_biases_would_be_noticed(config):
    values, slopes, parameters, loss = quadratic(0)
    solver = Solver(parameters, config.model_copy(update={"bias_weight_decay": 0.05}))
    solver.backward(loss())
    solver.step(1)
    wanted, _ = reference(values, slopes, config, (1,))
    assert np.abs(parameters["conv.bias"].numpy() - wanted["conv.bias"]).max() > 1e-4


def test_momentum_moves_to_another_solver(config):
    values, slopes, parameters, loss = quadratic(1)
    solver = Solver(parameters, config)
    solver.backward(loss())
    solver.step(1)
    saved = {name: parameter.numpy().copy() for name, parameter in parameters.items()}
    buffers = solver.momentum()
    fresh = {name: jt.array(value) for name, value in saved.items()}
    other = Solver(fresh, config)
    other.load_momentum(buffers)
    for name in buffers:
        assert np.array_equal(other.momentum()[name], buffers[name])
    other.backward(sum((0.5 * jt.array(slopes[name]) * fresh[name].sqr()).sum() for name in fresh))
    other.step(2)
    solver.backward(loss())
    solver.step(2)
    for name in values:
        assert np.array_equal(fresh[name].numpy(), parameters[name].numpy())


def test_momentum_kept_in_half_precision_is_widened(config):
    _, _, parameters, _ = quadratic(2)
    solver = Solver(parameters, config)
    solver.load_momentum({name: np.full(value.shape, 0.1, np.float16) for name, value in solver.momentum().items()})
    for value in solver.momentum().values():
        assert value.dtype == np.float32 and (value == np.float32(np.float16(0.1))).all()


def test_momentum_that_does_not_fit_is_refused(config):
    _, _, parameters, _ = quadratic(2)
    solver = Solver(parameters, config)
    buffers = solver.momentum()
    with pytest.raises(UserError, match="conv.bias"):
        solver.load_momentum({"conv.weight": buffers["conv.weight"]})
    with pytest.raises(UserError, match="shape"):
        solver.load_momentum({**buffers, "conv.bias": np.zeros(4, "f4")})
