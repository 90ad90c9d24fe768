"""Names from outside in plots."""

import io

import pytest
from matplotlib.cbook import is_math_text

from jrdp.evaluation.curves import new_figure, plain_text


@pytest.mark.parametrize("name", ["$\\frac{$", "a_$b_{$", "\ud800.png", "$x$"])
def test_no_name_is_taken_for_mathematics(name):
    figure = new_figure(3, 3)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], label=plain_text(name))
    axes.legend()
    figure.savefig(io.BytesIO(), format="png")
    assert not is_math_text(plain_text(name)), "drawn as a formula"
