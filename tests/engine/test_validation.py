"""Which weights did best in the tests during training."""

import pytest

from jrdp.engine.validation import Best, better


def metrics(*aps):
    return {str(k): {"bbox": {"AP": 0.9}, "segm": {"AP": ap}} for k, ap in enumerate(aps)}


def test_the_best_is_the_largest_mean_over_the_test_sets_and_the_first_of_equals():
    best = Best()
    assert better(best, metrics(0.0), 1) is True
    assert better(best, metrics(0.2, 0.4), 2) and best.iteration == 2 and best.ap == pytest.approx(0.3)
    assert better(best, metrics(0.3), 3) is False and not better(best, None, 4)
    assert better(best, metrics(0.5, 0.2), 5) and best.iteration == 5


def test_nothing_is_best_where_no_instance_defines_an_ap():
    best = Best()
    assert not better(best, metrics(-1.0), 3) and best == Best(iteration=0, ap=-1.0)
