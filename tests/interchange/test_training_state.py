"""Momentum and iteration: PyTorch's dictionaries and ours."""

import json

import numpy as np
import pytest

from jrdp import interchange
from jrdp.config import SolverConfig
from jrdp.errors import UserError
from jrdp.interchange import TrainingState, WeightFile, from_pytorch, to_pytorch
from jrdp.interchange.layout import LAST_SCALE, network_layout


@pytest.fixture(scope="module")
def trainable():
    return {entry.name: entry.shape for entry in network_layout("r50") if entry.trainable}


@pytest.fixture(scope="module")
def momentum(trainable):
    names = [name for name in trainable if name != LAST_SCALE]
    return {name: np.broadcast_to(np.float32(index), trainable[name]) for index, name in enumerate(names)}


def file_of(optimizer, scheduler=None, iteration=None):
    return WeightFile({}, optimizer=optimizer, scheduler=scheduler, iteration=iteration)


def test_groups_are_as_released(trainable, momentum, golden):
    optimizer, scheduler = to_pytorch(TrainingState(momentum, 100), list(trainable))
    keys = json.loads((golden / "keys_r50.json").read_text())["keys"]
    released = [key for key in keys if key[3]]
    assert len(optimizer["param_groups"]) == len(released) == len(trainable)
    for index, (group, key) in enumerate(zip(optimizer["param_groups"], released)):
        assert group["params"] == [index] and group["initial_lr"] == key[4] and group["weight_decay"] == key[5]
        assert group["lr"] == pytest.approx(key[4] / 3)  # iteration 100: warm-up
        assert (index in optimizer["state"]) == (key[0] != LAST_SCALE)
    assert scheduler["last_epoch"] == 100


def test_learning_rates_follow_the_released_schedule(trainable, momentum, golden):
    rates = json.loads((golden / "keys_r50.json").read_text())["lr_of_group0_at_iteration"]
    for iteration, rate in rates.items():
        optimizer, _ = to_pytorch(TrainingState(momentum, int(iteration)), list(trainable))
        assert optimizer["param_groups"][0]["lr"] == pytest.approx(rate)


@pytest.mark.parametrize("legacy", [False, True])
def test_there_and_back(legacy, trainable, tmp_path):
    small = {name: shape for name, shape in trainable.items() if np.prod(shape) < 10_000}
    rng = np.random.default_rng(0)
    buffers = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in small.items()}
    buffers.pop(LAST_SCALE)
    optimizer, scheduler = to_pytorch(TrainingState(buffers, 4321), list(small))
    file = WeightFile({"x": np.zeros(1, np.float32)}, optimizer=optimizer, scheduler=scheduler, iteration=4321)
    interchange.write(tmp_path / "x.pth", file, legacy=legacy)
    state = from_pytorch(interchange.read(tmp_path / "x.pth"), small)
    assert state.iteration == 4321 and list(state.momentum) == list(buffers)
    assert all(np.array_equal(state.momentum[name], buffer) for name, buffer in buffers.items())
    defaults = SolverConfig()
    for name, value in state.solver.items():
        assert value == pytest.approx(getattr(defaults, name)), name


def released_checkpoint(trainable, momentum):
    """As torch 1.1 saves it: parameters named by their addresses, the scheduler with all its settings."""
    address = {name: 140_000_000_000_000 + 4096 * ((7919 * i) % 977) for i, name in enumerate(trainable)}
    groups = [
        {
            "params": [address[name]],
            "lr": 0.00025,
            "initial_lr": 0.02 if "bias" in name else 0.01,
            "weight_decay": 0 if "bias" in name else 0.0005,
            "momentum": 0.8,
            "dampening": 0,
            "nesterov": False,
        }
        for name in trainable
    ]
    state = {address[name]: {"momentum_buffer": buffer} for name, buffer in sorted(momentum.items())}
    scheduler = {
        "milestones": (6000, 8000), "gamma": 0.5, "warmup_factor": 0.25, "warmup_iters": 300,
        "warmup_method": "constant", "base_lrs": [0.01], "last_epoch": 700,
    }  # fmt: skip
    return {"state": state, "param_groups": groups}, scheduler


def test_addresses_of_torch_1_1_are_resolved_by_order(trainable, momentum):
    state = from_pytorch(file_of(*released_checkpoint(trainable, momentum)), trainable)
    assert state.iteration == 700
    assert all(np.array_equal(state.momentum[name], buffer) for name, buffer in momentum.items())
    assert state.solver == {
        "base_lr": 0.01, "bias_lr_factor": 2.0, "momentum": 0.8, "weight_decay": 0.0005, "bias_weight_decay": 0.0,
        "steps": [6000, 8000], "gamma": 0.5, "warmup_iterations": 300, "warmup_factor": 0.25,
    }  # fmt: skip
    SolverConfig(**state.solver)


def test_the_last_scale_may_have_a_buffer_or_none(trainable, momentum):
    optimizer, scheduler = released_checkpoint(trainable, {**momentum, LAST_SCALE: np.zeros(1, np.float32)})
    assert LAST_SCALE not in from_pytorch(file_of(optimizer, scheduler), trainable).momentum
    optimizer["state"] = {}
    assert from_pytorch(file_of(optimizer, scheduler), trainable).momentum == {}  # saved before the first step


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda o: o["param_groups"].pop(), "parameters, the network has"),
        (lambda o: o["state"].pop(next(iter(o["state"]))), "no momentum for 1 parameters"),
        (lambda o: o["state"].update({5: {}}), "belong to no parameter group"),
        (lambda o: next(iter(o["state"].values())).update(exp_avg=0), "not that of SGD with momentum .it has exp_avg"),
        (lambda o: next(iter(o["state"].values())).update(momentum_buffer=np.zeros((1, 2, 3))), "shape .1, 2, 3."),
        (lambda o: next(iter(o["state"].values())).update(momentum_buffer="x"), "has shape str"),
        (lambda o: o.pop("state"), "not one of PyTorch's optimizers"),
        (lambda o: o["param_groups"][0].pop("params"), "damaged"),
        (lambda o: o["param_groups"][1].update(params=o["param_groups"][0]["params"]), "parameters, the network has"),
    ],
)
def test_what_does_not_fit_is_refused(change, words, trainable, momentum):
    optimizer, scheduler = released_checkpoint(trainable, momentum)
    change(optimizer)
    with pytest.raises(UserError, match=words):
        from_pytorch(file_of(optimizer, scheduler), trainable)


def test_swapped_groups_are_caught_by_their_shapes(trainable, momentum):
    optimizer, scheduler = released_checkpoint(trainable, momentum)
    groups = optimizer["param_groups"]
    groups[0], groups[1] = groups[1], groups[0]
    with pytest.raises(UserError, match="the momentum of"):
        from_pytorch(file_of(optimizer, scheduler), trainable)


def reordered(trainable):
    """As a network written anew may define its modules: the tower of boxes before that of classes, which has its shapes."""
    towers = {"cls_tower": "bbox_tower", "bbox_tower": "cls_tower"}
    return [next((name.replace(one, other) for one, other in towers.items() if one in name), name) for name in trainable]


def with_order(optimizer, order, trainable):
    """The same optimizer of a network whose parameters come in another order."""
    number = {name: index for index, name in enumerate(trainable)}
    groups = [{**optimizer["param_groups"][number[name]], "params": [index]} for index, name in enumerate(order)]
    state = {index: optimizer["state"][number[name]] for index, name in enumerate(order) if number[name] in optimizer["state"]}
    return {"state": state, "param_groups": groups}


def same(found, momentum):
    return list(found) == list(momentum) and all(np.array_equal(found[name], buffer) for name, buffer in momentum.items())


def test_momentum_goes_to_the_parameter_that_the_order_of_the_file_means(trainable, momentum):
    """Two towers have the same shapes: nothing but the order, or a name, tells their buffers apart."""
    optimizer, scheduler = to_pytorch(TrainingState(momentum, 300), list(trainable))
    order = reordered(trainable)
    assert order != list(trainable)
    turned = with_order(optimizer, order, trainable)

    def read(names, optimizer):
        tensors = {name: np.broadcast_to(np.float32(0), trainable[name]) for name in names}
        file = WeightFile(tensors, prefix="module.", optimizer=optimizer, scheduler=scheduler, iteration=300)
        return from_pytorch(file, trainable).momentum

    assert same(read(order, turned), momentum)
    assert same(read(list(trainable), optimizer), momentum)
    assert same(read(sorted(trainable), optimizer), momentum)  # sorted by a program: the order of the modules is lost
    assert not same(read(list(trainable), turned), momentum)  # what the order is for
    for group, name in zip(turned["param_groups"], order):
        group["param_names"] = [f"module.{name}"]
    assert same(read(sorted(trainable), turned), momentum)


def test_a_network_without_the_unused_scale_has_its_momentum(trainable, momentum):
    names = [name for name in trainable if name != LAST_SCALE]
    optimizer, scheduler = to_pytorch(TrainingState(momentum, 300), names)
    tensors = {name: np.broadcast_to(np.float32(0), trainable[name]) for name in names}
    file = WeightFile(tensors, optimizer=optimizer, scheduler=scheduler, iteration=300)
    assert same(from_pytorch(file, trainable).momentum, momentum)


def test_recipes_that_a_run_here_does_not_have_are_told(trainable, momentum):
    optimizer, scheduler = to_pytorch(TrainingState(momentum, 300), list(trainable))
    assert from_pytorch(file_of(optimizer, scheduler, 300), trainable).notes == []
    for group, name in zip(optimizer["param_groups"], trainable):
        if name.startswith("backbone.body.layer4"):
            group["initial_lr"] *= 0.1
        group["nesterov"] = True
    state = from_pytorch(file_of(optimizer, scheduler, 300), trainable)
    assert state.solver["base_lr"] == 0.0025 and state.solver["bias_lr_factor"] == 2.0  # those of most
    first, second = state.notes
    assert first.startswith("its optimizer has 2 learning rates for weights (0.00025 to 0.0025), a run here has one: 0.0025, that of ")
    assert second == "its optimizer has Nesterov's momentum (nesterov), a run here goes on without"


def test_one_group_for_all_parameters_is_one_rate_for_all(trainable, momentum):
    optimizer, scheduler = to_pytorch(TrainingState(momentum, 300), list(trainable))
    group = {"params": list(range(len(trainable))), "lr": 0.01, "momentum": 0.8, "weight_decay": 5e-4}
    state = from_pytorch(file_of({"state": optimizer["state"], "param_groups": [group]}, scheduler, 300), trainable)
    assert same(state.momentum, momentum) and state.notes == []
    assert state.solver == {
        "base_lr": 0.01, "bias_lr_factor": 1.0, "momentum": 0.8, "weight_decay": 5e-4, "bias_weight_decay": 5e-4
    }  # fmt: skip


def test_without_optimizer_or_iteration(trainable, momentum):
    with pytest.raises(UserError, match="no optimizer state"):
        from_pytorch(file_of(None), trainable)
    optimizer, _ = released_checkpoint(trainable, momentum)
    with pytest.raises(UserError, match="how many iterations"):
        from_pytorch(file_of(optimizer), trainable)
    with pytest.raises(UserError, match="does not fit the network: 1 parameters differ"):
        to_pytorch(TrainingState({**momentum, "x": np.zeros(1, np.float32)}, 1), list(trainable))
