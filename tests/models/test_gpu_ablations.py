"""One training step of every network of `configs/ablations` on a GPU, beside the CPU's."""

import pathlib

import pytest
from test_gpu_networks import BOXES, check
from test_rdpnet_training import LOSSES

from jrdp.config import load_config

pytestmark = [pytest.mark.gpu, pytest.mark.gpu_once]

FILES = sorted((pathlib.Path(__file__).parents[2] / "configs" / "ablations").glob("*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])
def test_a_step_of_an_ablation_is_the_cpus(file, record_property):
    losses, gradients = check(load_config(file, []), [BOXES, []], record_property)
    assert all(losses[name] > 0 for name in LOSSES)
    without = [name for name, gradient in gradients.items() if not gradient.any()]
    assert len(without) < 0.1 * len(gradients), without
