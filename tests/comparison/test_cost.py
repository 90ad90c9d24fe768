import json

import pytest

from jrdp.comparison.timing.cost import Cost, cost_table, count_cost
from jrdp.config import ModelConfig


def test_parameters_are_the_released_ones_and_multiplications_follow_from_shapes(golden):
    costs = {cost.stage: cost for cost in count_cost(ModelConfig(), 64, 96, rois=10)}
    released = json.loads((golden / "keys_r50.json").read_text())["n_parameters"]
    assert sum(cost.parameters for cost in costs.values()) == released

    h, w = 8, 12  # P3 of 64x96; its levels halve, rounded up: 8x12, 4x6, 2x3, 1x2, 1x1
    pixels = [8 * 12, 4 * 6, 2 * 3, 1 * 2, 1 * 1]
    tower = 9 * (256 * 128 + 3 * 128 * 128)
    assert costs["head"].multiply_adds == sum(pixels) * (2 * tower + 9 * 128 * (1 + 4 + 1))
    decoder = 9 * 128 * 128 * (4**2 + 8**2 + 16**2 + 32**2) + 2 * 128 * 32**2
    assert costs["masks"].multiply_adds == 256 * 128 * sum(pixels) + 10 * decoder
    inner = 256 * (512 * pixels[0] + 1024 * pixels[1] + 2048 * pixels[2])
    layers = 9 * 256 * 256 * sum(pixels)  # fpn_layer2..4 and, each computed at its output, P6 and P7
    refine = 9 * 256 * 256 * sum(pixels) + 256 * 256 * sum(k * p for k, p in zip((2, 3, 4, 5), pixels[1:]))
    attend = 9 * 256 * 256 * sum(pixels[1:])
    assert costs["pyramid"].multiply_adds == inner + layers + refine + attend
    assert (h, w) == (64 // 8, 96 // 8)


def test_cost_scales_with_rois_and_pixels():
    small, more = count_cost(ModelConfig(), 64, 64, rois=1), count_cost(ModelConfig(), 64, 64, rois=2)
    assert small[0] == more[0] and small[3].multiply_adds < more[3].multiply_adds
    large = count_cost(ModelConfig(), 128, 128, rois=1)
    assert large[0].multiply_adds == 4 * small[0].multiply_adds


@pytest.mark.parametrize("lines", [["backbone"], ["backbone", "masks"]])
def test_table_ends_with_the_sums(lines):
    text = cost_table([Cost(stage, 1000, 2_000_000_000) for stage in lines]).splitlines()
    assert len(text) == len(lines) + 2
    assert text[-1].split() == ["total", f"{1000 * len(lines):,}", f"{2.0 * len(lines):.2f}", "G"]
