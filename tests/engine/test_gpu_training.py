"""Trainings of the whole network on a GPU: beside the CPU's, and in mixed precision through an overflow."""

from dataclasses import replace

import jittor as jt
import numpy as np
import pytest

from jrdp.comparison.synthetic import synthetic_state
from jrdp.config import load_config
from jrdp.data.catalog import load_dataset
from jrdp.data.loader import TrainLoader
from jrdp.dataset_tools.sample import write_sample
from jrdp.engine.loss_scale import LossScale
from jrdp.engine.solver import Solver
from jrdp.engine.steps import training_steps
from jrdp.models.rdpnet import RDPNet
from jrdp.models.state import assign_state, named_tensors, trainable_parameters

pytestmark = [pytest.mark.gpu, pytest.mark.gpu_once]

SETTINGS = [
    "input.min_size=64", "input.max_size=96", "solver.batch_size=2", "solver.base_lr=0.0005", "solver.warmup_iterations=5",
    "solver.steps=[20]", "model.fcos.post_nms_top_n=10",
]  # fmt: skip
ITERATIONS = 30
EXACT, FIRST = 5, 1e-5  # so many iterations agree so well, relative, of the loss
TIMES_FLOOR = 5  # how many times the spread of the CPU's own trainings, whose batches are added up in two orders
LEAST = 0.02  # what that spread counts for at least


@pytest.fixture(scope="module")
def batches(tmp_path_factory):
    """Of generated pictures of several sizes, in the loader's order, one more than is trained with."""
    folder = tmp_path_factory.mktemp("sample")
    write_sample(folder, train=6, val=1, seed=3)
    config = load_config(None, [*SETTINGS, f"data.train=[{folder}/imgs:{folder}/train.json]"])
    dataset = load_dataset(config.data.train, config, training=True)
    with TrainLoader(dataset, batch_size=2, seed=1, workers=0) as loader:
        return [item for item, _ in zip(loader, range(ITERATIONS + 1))]


def other_way_round(item):
    """The same batch with its pictures in the other order: the same losses, but for the order of additions."""
    number, batch, targets = item
    turned = {name: getattr(batch, name)[::-1] for name in ("sizes", "original_sizes", "image_ids")}
    return number, replace(batch, images=np.ascontiguousarray(batch.images[::-1]), **turned), targets[::-1]


class Training:
    """From weights that depend on names and shapes alone."""

    def __init__(self, iterations: int, *settings: str):
        self.config = load_config(None, [*SETTINGS, f"solver.max_iterations={iterations}", *settings])
        self.network = RDPNet(self.config.model)
        shapes = {name: list(value.shape) for name, value in named_tensors(self.network).items()}
        assign_state(self.network, synthetic_state(shapes, 1))
        self.solver = Solver(trainable_parameters(self.network), self.config.solver)
        self.start = self.parameters()

    def steps(self, batches, scale=None):
        return training_steps(self.network, batches, self.config, solver=self.solver, scale=scale)

    def parameters(self) -> dict[str, np.ndarray]:
        return {name: value.numpy() for name, value in trainable_parameters(self.network).items()}


def trained(device: str, batches) -> tuple[np.ndarray, dict, dict]:
    """The loss of every iteration, and the parameters before and after."""
    with jt.flag_scope(use_cuda=int(device == "cuda")):
        training = Training(ITERATIONS)
        losses = [step.losses["loss"] for step in training.steps(batches)]
        return np.array(losses), training.start, training.parameters()


def way_apart(one: dict, other: dict, start: dict) -> float:
    """Distance of two networks' parameters over the distance that the first has come from `start`."""
    apart = sum(np.square(one[name].astype(np.float64) - other[name]).sum() for name in one)
    travelled = sum(np.square(one[name].astype(np.float64) - start[name]).sum() for name in one)
    return float(np.sqrt(apart / travelled))


def check(floor: np.ndarray, off: np.ndarray, floor_way: float, way: float) -> None:
    assert off[:EXACT].max() <= FIRST, off
    assert off.max() <= TIMES_FLOOR * max(floor.max(), LEAST), (off, floor)
    assert way <= TIMES_FLOOR * max(floor_way, LEAST), (way, floor_way)


def test_thirty_iterations_stay_beside_the_cpus(batches, record_property):
    """The CPU's own training goes another way too, once the last bits have changed which boxes are chosen."""
    expected, start, end = trained("cpu", batches)
    again, _, again_end = trained("cpu", [other_way_round(item) for item in batches])
    found, _, found_end = trained("cuda", batches)
    floor, off = (np.abs(losses - expected) / expected for losses in (again, found))
    floor_way, way = (way_apart(end, other, start) for other in (again_end, found_end))
    for name, value in (("floor", floor.max()), ("loss", off.max()), ("floor of the way", floor_way), ("way", way)):
        record_property(name, float(value))
    check(floor, off, floor_way, way)
    assert expected[-5:].mean() < 0.7 * expected[:5].mean(), "nothing was learned"
    with pytest.raises(AssertionError):
        check(floor, np.abs(found[::-1] - expected) / expected, floor_way, way)


def test_an_overflow_is_skipped_and_training_goes_on(batches):
    """In mixed precision, from a loss scale that no float16 gradient survives."""
    scale = LossScale(value=2.0**24)
    with jt.flag_scope(use_cuda=1):
        training = Training(20, "train.amp=true", "train.dynamic_loss_scale=true")
        skipped, good = 0, 0
        for step in training.steps(batches, scale):
            assert np.isfinite(step.losses["loss"])
            if step.skipped:
                assert good == 0, "it overflowed after it had fitted"
                skipped += 1
                assert scale.value == 2.0 ** (24 - skipped) and scale.steps == 0
            else:
                good += 1
            if good == 0 and skipped == 1:
                kept = training.parameters()
                assert all(np.array_equal(value, training.start[name]) for name, value in kept.items())
            if good == 2:
                break
        end = training.parameters()
    assert skipped >= 1 and scale.steps == 2
    assert all(np.isfinite(value).all() for value in end.values())
    assert all(not np.array_equal(end[name], training.start[name]) for name in end if name.startswith("backbone.body.layer4"))
