"""The batch that is uploaded while the GPU computes: the same batches, the same order, errors at their place."""

import jittor as jt
import numpy as np
import pytest

from jrdp.engine.steps import BatchesAhead
from jrdp.errors import UserError
from jrdp.structures import ImageBatch


class Loader:
    """Counts what is taken; its third batch is broken."""

    def __init__(self):
        self.taken = 0

    def __iter__(self):
        for number in range(10):
            if number == 2:
                raise UserError("cannot read image c.png")
            self.taken += 1
            pixels = np.full((1, 3, 32, 32), number, np.float32)
            yield number, ImageBatch(pixels, [(30, 31)], [(60, 62)], [number]), [number]


@pytest.mark.parametrize("ahead", [False, True])
def test_batches_come_in_order_whether_prepared_or_not(ahead):
    loader = Loader()
    batches = BatchesAhead(loader)
    for number in range(2):
        batch, targets = batches.take()
        assert loader.taken == number + 1, "nothing is read before it is asked for"
        assert batch.image_ids == targets == [number] and batch.sizes == [(30, 31)]
        assert isinstance(batch.images, jt.Var) == (ahead and number > 0)
        assert np.array_equal(np.asarray(batch.images), np.full((1, 3, 32, 32), number, np.float32))
        if ahead:
            batches.prepare()
    with pytest.raises(UserError, match="c.png"):
        batches.take()
