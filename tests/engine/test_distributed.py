"""Two ranks over MPI on one machine give the losses and gradients of one rank with the whole batch."""

import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

from jrdp.dataset_tools.sample import write_sample

WORKER = pathlib.Path(__file__).parent / "distributed_worker.py"


def run(prefix, sample, out):
    done = subprocess.run(
        [*prefix, sys.executable, str(WORKER), str(sample), str(out)], capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(np.load(out))


@pytest.mark.skipif(not (shutil.which("mpirun") and shutil.which("mpicc")), reason="needs mpirun and mpicc (Open MPI)")
def test_two_ranks_equal_one_rank_with_the_whole_batch(tmp_path):
    write_sample(tmp_path / "sample", train=2, val=1, seed=1)
    launch = ["mpirun", "--allow-run-as-root", "--oversubscribe", "-np", "2"]
    two = run(launch, tmp_path / "sample", tmp_path / "two.npz")
    one = run([], tmp_path / "sample", tmp_path / "one.npz")
    assert two.pop("pictures") == 1 and one.pop("pictures") == 2
    np.testing.assert_allclose(two.pop("losses"), one.pop("losses"), rtol=1e-5)
    assert set(one) == set(two) and len(one) > 100
    largest = 0.0
    for name, wanted in one.items():
        scale = np.abs(wanted).max()
        assert np.abs(two[name] - wanted).max() <= 1e-3 * scale + 1e-9, name
        largest = max(largest, float(scale))
    assert largest > 1e-3  # the gradients are not all zero
