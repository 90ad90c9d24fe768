"""The head on a GPU, all levels on one canvas, against the same weights level by level, which is the definition."""

import jittor as jt
import numpy as np
import pytest

from jrdp.models.fcos import FcosHead, flatten
from jrdp.models.layers import watching_relus

pytestmark = pytest.mark.gpu
SIZES = [(8, 11), (4, 6), (2, 3), (2, 2), (1, 2)]


def test_canvas_and_levels_agree():
    random = np.random.default_rng(0)
    with jt.flag_scope(use_cuda=1):
        head = FcosHead(8, 32)
        for name, parameter in head.named_parameters():
            if "weight" in name and parameter.ndim == 4:
                parameter.assign(random.normal(0, 0.1, parameter.shape).astype(np.float32))
            else:
                parameter.assign(random.uniform(0.2, 0.8, parameter.shape).astype(np.float32))
        parameters = head.parameters()
        maps = [random.standard_normal((2, 8, *size)).astype(np.float32) for size in SIZES]
        given = [random.standard_normal((2, c, sum(h * w for h, w in SIZES))).astype(np.float32) for c in (1, 4, 1)]

        def run(execute):
            features = [jt.array(x) for x in maps]
            with watching_relus() as relus:
                output = execute(features)
            together = output.together or [flatten(levels) for levels in output[:3]]
            loss = sum((x * jt.array(weight)).sum() for x, weight in zip(together, given))
            gradients = jt.grad(loss, [*features, *parameters[:-1]])  # the last scale is not used
            found = [*sum(output[:3], []), *relus, *gradients]
            return [x.numpy() for x in found], len(relus)

        (plain, count), (canvas, same_count) = run(head._level_by_level), run(head.execute)
    assert count == same_count == 5 * 8
    assert len(plain) == len(canvas) > 15 + 40 + 5
    for one, other in zip(canvas, plain):
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-5 * max(np.abs(other).max(), 1))
    assert any(np.abs(x).max() > 1e-3 for x in plain[-10:])  # there are gradients to compare
