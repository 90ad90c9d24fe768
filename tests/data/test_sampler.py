"""Batches by aspect ratio as released; everything a pure function of seed and epoch."""

import json

import numpy as np
import pytest

from jrdp.data import sampler


def test_batches_equal_the_released_ones(golden):
    ops = json.loads((golden / "ops.json").read_text())
    case = ops["grouped_batches_sequential"]
    assert sampler.grouped_batches(range(11), case["group_ids"], 4) == case["batches"]
    assert sampler.batches_per_epoch(case["group_ids"], 4) == len(case["batches"])
    for ratio, group in ops["aspect_group(h/w) bisect_right([1])"].items():
        assert sampler.aspect_group(1000 * float(ratio), 1000) == group


def _in_plain_words(order, groups, batch_size):
    """Fill one open batch per group while walking along the order; a batch counts from when it was opened."""
    batches, open_batch = [], {}
    for index in order:
        batch = open_batch.get(groups[index])
        if batch is None or len(batch) == batch_size:
            batch = open_batch[groups[index]] = []
            batches.append(batch)
        batch.append(index)
    return batches


@pytest.mark.parametrize("count, batch_size", [(1, 4), (7, 1), (40, 4), (41, 3)])
def test_shuffled_batches_against_another_statement_of_the_rule(count, batch_size):
    random = np.random.default_rng(count)
    groups = random.integers(0, 2, count).tolist()
    order = random.permutation(count).tolist()
    batches = sampler.grouped_batches(order, groups, batch_size)
    assert batches == _in_plain_words(order, groups, batch_size)
    assert len(batches) == sampler.batches_per_epoch(groups, batch_size)
    assert sorted(sum(batches, [])) == list(range(count))


def test_epochs_differ_and_repeat_exactly():
    groups = [0, 1] * 20
    first = sampler.epoch_plan(groups, 4, 0.5, seed=1, epoch=0)
    assert first == sampler.epoch_plan(groups, 4, 0.5, seed=1, epoch=0)
    for other in (dict(seed=1, epoch=1), dict(seed=2, epoch=0)):
        assert sampler.epoch_plan(groups, 4, 0.5, **other) != first
    flips = [flip for epoch in range(50) for batch in sampler.epoch_plan(groups, 4, 0.5, 1, epoch) for _, flip in batch]
    assert 0.45 < np.mean(flips) < 0.55
    assert not any(flip for batch in sampler.epoch_plan(groups, 4, 0.0, 1, 0) for _, flip in batch)
    assert all(flip for batch in sampler.epoch_plan(groups, 4, 1.0, 1, 0) for _, flip in batch)


@pytest.mark.parametrize("length, world_size, shares", [(4, 2, [2, 2]), (3, 2, [1, 2]), (5, 3, [1, 2, 2])])
def test_ranks_share_a_batch_without_loss(length, world_size, shares):
    batch = list(range(length))
    parts = [sampler.share_of_rank(batch, rank, world_size) for rank in range(world_size)]
    assert sum(parts, []) == batch and [len(part) for part in parts] == shares


def test_no_rank_is_left_without_a_picture():
    assert [sampler.share_of_rank(["a", "b"], rank, 5) for rank in range(5)] == [["a"], ["b"], ["a"], ["b"], ["a"]]
