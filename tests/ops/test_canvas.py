"""Levels on one canvas against the same level by level in NumPy, value and gradients, the CUDA kernels in the shim and
on a GPU."""

import jittor as jt
import numpy as np
import pytest
from test_group_norm import EPS, reference as group_norm_reference

from jrdp.ops import canvas

PYRAMIDS = [
    [(10, 15), (5, 8), (3, 4), (2, 2), (1, 1)],
    [(4, 4), (2, 2), (1, 1), (1, 1), (1, 1)],  # the others, one below the other, are higher than the first
    [(15, 10), (8, 5), (4, 3), (2, 2), (1, 1)],
    [(3, 7)],  # nothing beside it
]


def normal(random, *shape):
    return random.standard_normal(shape).astype(np.float32)


def on_canvas(maps, layout, between=0.0):
    n, c = maps[0].shape[:2]
    whole = np.full((n, c, layout.height, layout.width), between, np.float32)
    for x, region in zip(maps, layout.regions):
        whole[:, :, region.top : region.top + region.height, region.left : region.left + region.width] = x
    return whole


def from_canvas(whole, layout):
    return [whole[:, :, r.top : r.top + r.height, r.left : r.left + r.width] for r in layout.regions]


def close(found, expected, scale=3e-6):
    np.testing.assert_allclose(found, expected, rtol=0, atol=scale * max(np.abs(expected).max(), 1))


@pytest.mark.parametrize("sizes", PYRAMIDS)
def test_cells_cover_the_canvas_once_and_levels_do_not_touch(sizes):
    layout = canvas.Layout.of(sizes)
    covered, held = np.zeros((2, layout.height, layout.width), int)
    for number, region in enumerate(layout.regions, 1):
        covered[region.top : region.top + region.cell_height, region.left : region.left + region.cell_width] += 1
        held[region.top : region.top + region.height, region.left : region.left + region.width] = number
        assert (region.height, region.width) == sizes[number - 1]
        assert region.height <= region.cell_height and region.width <= region.cell_width
    assert (covered == 1).all()
    for row, column in np.argwhere(held):
        near = held[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
        assert set(near[near > 0]) == {held[row, column]}
    assert layout.locations == sum(h * w for h, w in sizes)


def test_a_canvas_is_no_larger_than_it_has_to_be():
    # Beside the first and a column of zeros: the widest of the others; they and the rows of zeros between them are so high.
    expected = [(5 + 3 + 2 + 1 + 3, 15 + 1 + 8), (2 + 1 + 1 + 1 + 3, 4 + 1 + 2), (8 + 4 + 2 + 1 + 3, 10 + 1 + 5), (3, 7)]
    layouts = [canvas.Layout.of(sizes) for sizes in PYRAMIDS]
    assert [(layout.height, layout.width) for layout in layouts] == expected
    two = canvas.Layout.of([(3, 7), (4, 2)])
    assert (two.height, two.width) == (4, 10) and two.regions[0][2:] == (3, 7, 4, 8)
    assert len(canvas.Layout.of([(1, 1)] * 8).regions) == 8


@pytest.mark.parametrize("sizes", PYRAMIDS)
def test_placing(sizes, where):
    random, layout = np.random.default_rng(0), canvas.Layout.of(sizes)
    maps = [normal(random, 2, 3, *size) for size in sizes]
    variables = [jt.array(x) for x in maps]
    whole = canvas.place(variables, layout, where(canvas.KERNELS))
    weight = normal(random, *whole.shape)
    gradients = jt.grad((whole * jt.array(weight)).sum(), variables)
    np.testing.assert_array_equal(whole.numpy(), on_canvas(maps, layout))
    for number, expected in enumerate(maps):
        np.testing.assert_array_equal(layout.level(whole, number).numpy(), expected)
    for found, expected in zip(gradients, from_canvas(weight, layout)):
        np.testing.assert_array_equal(found.numpy(), expected)


@pytest.mark.parametrize("sizes", PYRAMIDS)
@pytest.mark.parametrize("images, channels, groups", [(2, 6, 3), (1, 4, 1)])
def test_norm(sizes, images, channels, groups, where):
    random, layout = np.random.default_rng(1), canvas.Layout.of(sizes)
    maps = [3 + normal(random, images, channels, *size) for size in sizes]
    given = [normal(random, images, channels, *size) for size in sizes]
    shift, weight, bias = (normal(random, channels) for _ in range(3))
    # What convolutions leave between the levels, and what comes back from there, must not count.
    variables = [jt.array(value) for value in (on_canvas(maps, layout, 1e3), shift, weight, bias)]
    y = canvas.norm_relu(*variables, groups, EPS, layout, where(canvas.KERNELS))
    gradients = jt.grad((y * jt.array(on_canvas(given, layout, 1e3))).sum(), variables)
    levels = [
        group_norm_reference(x + shift[:, None, None], weight, bias, dy, groups, relu=True) for x, dy in zip(maps, given)
    ]
    close(y.numpy(), on_canvas([level[0] for level in levels], layout))
    close(gradients[0].numpy(), on_canvas([level[1] for level in levels], layout), 1e-5)
    close(gradients[1].numpy(), sum(level[1].sum((0, 2, 3)) for level in levels), 2e-4)  # differences that all but cancel
    close(gradients[2].numpy(), sum(level[2] for level in levels), 1e-5)
    close(gradients[3].numpy(), sum(level[3] for level in levels), 1e-5)


def test_memory_of_the_norm(allocated):
    layout, kernels = canvas.Layout.of([(4, 5), (2, 3)]), canvas.KERNELS.shimmed()
    variables = [jt.ones((3, 6, layout.height, layout.width)), *[jt.ones(6) for _ in range(3)]]
    y = canvas.norm_relu(*variables, 2, EPS, layout, kernels)
    jt.grad(y.sum(), variables)
    # Mean and scale of each image, level and group; three sums of each image, level and channel.
    size = 3 * 6 * 4 * 9
    assert allocated == [[size, 2 * (3 * 2 * 2)], [size, 6, 6, 6, 3 * (3 * 2 * 6)]]


@pytest.mark.parametrize("part", range(3))
def test_answers_of_which_one_alone_is_asked_back(part, where):
    random, layout = np.random.default_rng(3), canvas.Layout.of([(4, 5), (2, 3)])
    variables = [jt.array(normal(random, 3, c, layout.height, layout.width)) for c in (1, 4, 1)]
    numbers = [jt.array(normal(random, c)) for c in (1, 4, 1, 1, 1)]
    found = canvas.answers(*variables, numbers[:3], numbers[3:], layout, where(canvas.KERNELS))
    gradients = [value.numpy() for value in jt.grad(found.together[part].sum(), [*variables, *numbers])]
    asked = [gradient.any() for gradient in gradients]
    assert asked[:6] == [k == part for k in range(3)] * 2 and asked[6:] == [part == 1] * 2
    if part != 1:
        assert gradients[3 + part].tolist() == [3 * (4 * 5 + 2 * 3)]  # a bias of this: each location counts once


@pytest.mark.parametrize("sizes", PYRAMIDS)
def test_answers(sizes, where):
    random, layout = np.random.default_rng(2), canvas.Layout.of(sizes)
    cls, box, center = ([normal(random, 2, c, *size) for size in sizes] for c in (1, 4, 1))
    biases, scales = [normal(random, c) for c in (1, 4, 1)], [normal(random, 1) for _ in sizes]
    variables = [jt.array(on_canvas(maps, layout, 1e3)) for maps in (cls, box, center)]
    numbers = [jt.array(value) for value in (*biases, *scales)]
    found = canvas.answers(*variables, numbers[:3], numbers[3:], layout, where(canvas.KERNELS))

    cls_bias, box_bias, center_bias = (bias[:, None, None] for bias in biases)
    logits, centerness = [x + cls_bias for x in cls], [x + center_bias for x in center]
    distances = [np.exp(scale * (x + box_bias).astype(np.float64)) for x, scale in zip(box, scales)]
    for part, expected in zip(found[:3], (logits, distances, centerness)):
        assert len(part) == len(sizes)
        for one, other in zip(part, expected):
            np.testing.assert_allclose(one.numpy(), other, rtol=3e-6, atol=1e-6)
            assert one.is_stop_grad()
    for one, other in zip(found.together, (logits, distances, centerness)):
        expected = np.concatenate([level.reshape(2, level.shape[1], -1) for level in other], axis=2)
        np.testing.assert_allclose(one.numpy(), expected, rtol=3e-6, atol=1e-6)

    given = [normal(random, *x.shape) for x in found.together]
    loss = sum((x * jt.array(weight)).sum() for x, weight in zip(found.together, given))
    gradients = [value.numpy() for value in jt.grad(loss, [*variables, *numbers])]
    areas = np.cumsum([h * w for h, w in sizes])[:-1]
    dcls, ddist, dcenter = (
        [part.reshape(2, -1, *size) for part, size in zip(np.split(weight, areas, axis=2), sizes)] for weight in given
    )
    before = [d * distance for d, distance in zip(ddist, distances)]
    for one, other in zip(gradients, (dcls, [d * s for d, s in zip(before, scales)], dcenter)):
        close(one, on_canvas(other, layout), 1e-5)
    close(gradients[3], sum(d.sum() for d in dcls), 1e-5)
    close(gradients[4], sum((d * s).sum((0, 2, 3)) for d, s in zip(before, scales)), 1e-5)
    close(gradients[5], sum(d.sum() for d in dcenter), 1e-5)
    for one, d, x in zip(gradients[6:], before, box):
        close(one, (d * (x + box_bias)).sum(), 1e-5)


def test_bad_arguments():
    layout = canvas.Layout.of([(4, 5), (2, 3)])
    with pytest.raises(ValueError, match="1 to 8 levels, got 9"):
        canvas.Layout.of([(1, 1)] * 9)
    with pytest.raises(ValueError, match="are not those of the canvas"):
        canvas.place([jt.ones((1, 2, 4, 5)), jt.ones((1, 2, 2, 2))], layout)
    for wrong in (jt.ones((1, 2, 2, 3), "int32"), jt.ones((1, 3, 2, 3)), jt.ones((2, 2, 2, 3))):
        with pytest.raises(ValueError, match=r"maps: expected float32 \[N, C, h, w\] of one N and C"):
            canvas.place([jt.ones((1, 2, 4, 5)), wrong], layout)
    whole, ones = jt.ones((1, 6, layout.height, layout.width)), jt.ones(6)
    with pytest.raises(ValueError, match="groups: 0 does not divide 6 channels"):
        canvas.norm_relu(whole, ones, ones, ones, 0, EPS, layout)
    with pytest.raises(ValueError, match="groups: 4 does not divide 6 channels"):
        canvas.norm_relu(whole, ones, ones, ones, 4, EPS, layout)
    with pytest.raises(ValueError, match=r"shift: expected float32 \[6\]"):
        canvas.norm_relu(whole, jt.ones(5), ones, ones, 3, EPS, layout)
    one, four = jt.ones((1, 1, layout.height, layout.width)), jt.ones((1, 4, layout.height, layout.width))
    number, biases = jt.ones(1), [jt.ones(1), jt.ones(4), jt.ones(1)]
    for scales in ([number], [number, jt.ones(2)]):
        with pytest.raises(ValueError, match="scales: expected 2 Vars"):
            canvas.answers(one, four, one, biases, scales, layout)
    with pytest.raises(ValueError, match=r"biases: expected shapes \[1\], \[4\], \[1\], got \[\[1\], \[1\], \[1\]\]"):
        canvas.answers(one, four, one, [number] * 3, [number] * 2, layout)
    with pytest.raises(ValueError, match=r"box: expected float32 \[1, 4, 4, 9\], got float32 \[1, 1, 4, 9\]"):
        canvas.answers(one, one, one, biases, [number] * 2, layout)
