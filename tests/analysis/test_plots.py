"""The plots of the report: what is drawn where, of numbers written by hand."""

from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.colors import to_rgba

from jrdp.analysis.errors import KINDS
from jrdp.analysis.plots import plot_breakdown, plot_counts, plot_errors, plot_runs, run_color
from jrdp.analysis.runs import BREAKDOWN_IOUS, Breakdown
from jrdp.evaluation.coco_metrics import Curves

RECALLS = np.linspace(0, 1, 101)
THRESHOLDS = np.arange(50, 100, 5) / 100


def falling(start):
    """A precision curve that falls from `start` to nothing; its mean is `start` / 2."""
    return start * (1 - RECALLS)


def run_of(name, starts):
    """A system whose precision at the ten thresholds begins at `starts`."""
    precision = np.stack([falling(start) for start in starts])
    return SimpleNamespace(name=name, curves=Curves(THRESHOLDS, RECALLS, precision, np.zeros_like(precision), np.zeros(10)))


def test_colors_of_runs_are_different_and_come_again():
    assert len({run_color(k) for k in range(8)}) == 8 and run_color(8) == run_color(0) and run_color(17) == run_color(1)


def test_runs():
    first, second = [0.9, 0.8, 0.8, 0.8, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1], [1.0] + [0.0] * 9
    runs = [run_of("one$", first), run_of("two", second), *[run_of(f"more {k}", second) for k in range(2, 9)]]
    figure = plot_runs(runs)
    panels = figure.axes
    assert [axes.get_title(loc="left") for axes in panels] == ["IoU 0.50", "IoU 0.70", "mean of IoU 0.50 to 0.95"]
    assert [axes.get_ylabel() for axes in panels] == ["precision", "", ""]
    assert {axes.get_xlabel() for axes in panels} == {"recall"}
    assert all(axes.get_shared_y_axes().joined(axes, panels[0]) for axes in panels)
    expected = [(falling(0.9), falling(1.0)), (falling(0.6), falling(0.0)), (falling(0.54), falling(0.1))]
    areas = [("45.0", "50.0"), ("30.0", "0.0"), ("27.0", "5.0")]
    for axes, curves, (one, two) in zip(panels, expected, areas):
        assert len(axes.lines) == 9
        for line, curve in zip(axes.lines, curves):
            np.testing.assert_allclose(line.get_xdata(), RECALLS)
            np.testing.assert_allclose(line.get_ydata(), curve, atol=1e-12)
        texts = [text.get_text() for text in axes.get_legend().get_texts()]
        assert texts[:3] == [rf"one\$  {one}", f"two  {two}", f"more 2  {two}"] and len(texts) == 9
        assert [line.get_color() for line in axes.lines] == [run_color(k) for k in range(9)]
        styles = [line.get_linestyle() for line in axes.lines]
        assert set(styles[:8]) == {"-"} and styles[8] != "-"  # of two runs of one colour the second is dashed
        low, high = axes.get_ylim()
        assert low <= 0 and 1 <= high < 1.5 and axes.get_xlim()[0] <= 0 and 1 <= axes.get_xlim()[1] < 1.5


def counted(name, ap):
    """A system with an AP for each picture: one without an instance, 101 with one, two with three, two with five and seven."""
    instances = [0] + [1] * 101 + [3, 3] + [5, 7]
    return SimpleNamespace(name=name, pictures=[SimpleNamespace(instances=[0] * n) for n in instances], picture_ap=np.array(ap))


def test_counts():
    first = [-1, *np.linspace(0, 1, 101), 0.2, 0.4, 0.7, 0.9]
    runs = [counted("one", first), counted("two", [-1, *[0.5] * 101, 1, 1, 0, 0])]
    (axes,) = plot_counts(runs).axes
    assert axes.get_xticks().tolist() == [0, 1, 2]
    labels = ["1\n(101 pictures)", "3\n(2 pictures)", "5+\n(2 pictures)"]
    assert [label.get_text() for label in axes.get_xticklabels()] == labels
    assert axes.get_xlabel() == "salient instances in the picture" and axes.get_ylabel() == "AP of the picture (%)"
    low, high = axes.get_xlim()
    assert -1 < low < -0.5 and 2.5 < high < 3

    boxes = [patch.get_path().get_extents() for patch in axes.patches]
    dots = [line for line in axes.lines if line.get_marker() == "."]
    means = [line for line in axes.lines if line.get_marker() == "D"]
    assert len(boxes) == len(dots) == len(means) == 6
    assert not any(line.get_marker() == "o" for line in axes.lines)  # every picture is a dot already
    one, two = to_rgba(run_color(0)), to_rgba(run_color(1))
    assert [to_rgba(line.get_color()) for line in dots] == [one] * 3 + [two] * 3
    assert [to_rgba(patch.get_facecolor())[:3] for patch in axes.patches] == [one[:3]] * 3 + [two[:3]] * 3
    # Beside one another over their number: neither in each other nor in their neighbours', and as far to the left as right.
    middles = [(box.x0 + box.x1) / 2 for box in boxes]
    np.testing.assert_allclose([(a + b) / 2 for a, b in zip(middles[:3], middles[3:])], [0, 1, 2], atol=1e-12)
    for k in range(3):
        assert k - 0.5 < boxes[k].x0 < boxes[k].x1 < boxes[k + 3].x0 < boxes[k + 3].x1 < k + 0.5
    for box, line in zip(boxes, dots):
        assert (box.x0 < line.get_xdata()).all() and (line.get_xdata() < box.x1).all()
        assert (line.get_xdata() < (box.x0 + box.x1) / 2).any() or len(line.get_xdata()) < 5
    # In percent: each picture; the quartiles; the mean.
    np.testing.assert_allclose(dots[0].get_ydata(), np.arange(101))
    assert [line.get_ydata().tolist() for line in dots[1:]] == [
        pytest.approx([20, 40]), pytest.approx([70, 90]), pytest.approx([50] * 101), [100] * 2, [0] * 2
    ]  # fmt: skip
    np.testing.assert_allclose([(box.y0, box.y1) for box in boxes[:3]], [(25, 75), (25, 35), (75, 85)])
    np.testing.assert_allclose([line.get_ydata()[0] for line in means], [50, 30, 80, 50, 100, 0])
    pairs = [line for line in axes.lines if len(line.get_ydata()) == 2 and line.get_marker() not in (".", "D")]
    first = [line for line in pairs if boxes[0].x0 <= line.get_xdata()[0] <= boxes[0].x1]
    ends = {round(float(y), 6) for line in first for y in line.get_ydata()}
    assert ends == {5, 25, 50, 75, 95}  # whiskers between the 5th and the 95th percentile, and the median
    low, high = axes.get_ylim()
    assert low < 0 and 100 < high
    assert not any(line.get_visible() for line in axes.get_xgridlines())
    assert all(line.get_visible() for line in axes.get_ygridlines())
    (alone,) = plot_counts(runs[:1]).axes
    middles = [patch.get_path().get_extents() for patch in alone.patches]
    np.testing.assert_allclose([(box.x0 + box.x1) / 2 for box in middles], [0, 1, 2], atol=1e-12)
    assert all(0.5 < box.x1 - box.x0 < 0.8 for box in middles)  # alone it has the room of all


def broken_down(instances, starts, background):
    curves = dict(zip(BREAKDOWN_IOUS, (falling(start) for start in starts)))
    return Breakdown(curves, np.full(101, background), instances)


def test_breakdown():
    starts = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    nothing = Breakdown({iou: np.full(101, -1.0) for iou in BREAKDOWN_IOUS}, np.full(101, -1.0), 0)
    run = SimpleNamespace(
        curves=SimpleNamespace(recalls=RECALLS), breakdown={"all": broken_down(7, starts, 0.95), "large": nothing}
    )
    full, empty = plot_breakdown(run).axes
    assert full.get_title(loc="left") == "All instances: 7"
    assert empty.get_title(loc="left") == "Large instances (area above 64 × 64): 0"
    assert [text.get_text() for text in empty.texts] == ["no such instance"] and not empty.lines and not empty.collections
    assert [text.get_position() for text in empty.texts] == [(0.5, 0.5)] and not full.texts
    assert full.get_shared_y_axes().joined(full, empty)

    curves = [falling(start) for start in starts] + [np.full(101, 0.95), np.ones(101)]
    assert len(full.lines) == len(full.collections) == 11
    below = np.zeros(101)
    for line, band, curve in zip(full.lines, full.collections, curves):
        np.testing.assert_allclose(line.get_xdata(), RECALLS)
        np.testing.assert_allclose(line.get_ydata(), curve, atol=1e-12)
        corners = band.get_paths()[0].vertices  # all around it
        for recall in (0.0, 0.5):
            heights = corners[np.isclose(corners[:, 0], recall), 1]
            index = int(recall * 100)
            np.testing.assert_allclose([heights.min(), heights.max()], [below[index], curve[index]], atol=1e-12)
        below = curve
    shades = {tuple(band.get_facecolor()[0]) for band in full.collections}
    assert len(shades) == 11
    texts = [text.get_text().split() for text in full.get_legend().get_texts()]  # from above, as the bands lie
    assert texts[:3] == [["FN", "100.0"], ["BG", "95.0"], ["IoU", "0.1", "45.0"]] and texts[-1] == ["IoU", "0.9", "5.0"]
    assert len({len(text.get_text()) for text in full.get_legend().get_texts()}) == 1
    of_legend = [tuple(handle.get_facecolor()) for handle in full.get_legend().legend_handles]
    assert of_legend == [tuple(band.get_facecolor()[0]) for band in full.collections][::-1]
    run.breakdown = {"large": nothing, "all": broken_down(1, starts, 0.95)}
    first, second = plot_breakdown(run).axes
    assert first.texts and not first.lines and len(second.lines) == 11


def test_errors():
    gains = [{"localisation": 0.1, "duplicate": 0.0, "background": 0.25, "missed": -0.05}, dict.fromkeys(KINDS, 0.01)]
    counts = [dict(zip(KINDS, (1, 2, 3, 4))), dict(zip(KINDS, (5, 6, 7, 8)))]
    strict = dict.fromkeys(KINDS, 0.5)
    runs = [
        SimpleNamespace(errors={0.5: SimpleNamespace(gains=g, counts=c), 0.7: SimpleNamespace(gains=strict, counts=c)})
        for g, c in zip(gains, counts)
    ]
    loose, other = plot_errors(runs).axes
    assert [axes.get_title(loc="left") for axes in (loose, other)] == ["IoU 0.50", "IoU 0.70"]
    assert loose.get_xlabel() == "AP gained if fixed (points)" and loose.get_ylabel() == ""
    assert [label.get_text() for label in loose.get_yticklabels()] == list(KINDS) == ["localisation", "duplicate", "background", "missed"]
    assert loose.get_yticks().tolist() == [0, 1, 2, 3]
    low, high = loose.get_ylim()
    assert high < low and other.get_ylim() == (low, high)  # the first kind is on top
    assert loose.get_xlim()[0] == other.get_xlim()[0] == 0 and loose.get_xlim() == other.get_xlim()
    bars = loose.patches
    np.testing.assert_allclose([bar.get_width() for bar in bars], [10, 0, 25, -5, 1, 1, 1, 1])
    np.testing.assert_allclose([bar.get_width() for bar in other.patches], [50] * 8)
    assert [text.get_text() for text in loose.texts] == [
        " 10.0  (1)", " 0.0  (2)", " 25.0  (3)", " -5.0  (4)", " 1.0  (5)", " 1.0  (6)", " 1.0  (7)", " 1.0  (8)",
    ]  # fmt: skip
    np.testing.assert_allclose([text.get_position()[0] for text in loose.texts], [10, 0, 25, 0, 1, 1, 1, 1])
    middles = [bar.get_y() + bar.get_height() / 2 for bar in bars]
    np.testing.assert_allclose([text.get_position()[1] for text in loose.texts], middles)
    for k in range(4):  # of each kind both bars, the first system's above, and none of another kind between them
        first, second = bars[k], bars[k + 4]
        assert k - 0.5 < first.get_y() < first.get_y() + first.get_height() < second.get_y()
        assert second.get_y() + second.get_height() < k + 0.5 and (middles[k] + middles[k + 4]) / 2 == pytest.approx(k)
    assert [to_rgba(bar.get_facecolor()) for bar in bars] == [to_rgba(run_color(0))] * 4 + [to_rgba(run_color(1))] * 4
    assert not any(line.get_visible() for line in loose.get_ygridlines())
    assert all(line.get_visible() for line in loose.get_xgridlines())
    (alone,) = plot_errors([SimpleNamespace(errors={0.5: runs[1].errors[0.5]})]).axes
    assert [bar.get_width() for bar in alone.patches] == pytest.approx([1] * 4)
    longest = max(bar.get_width() for bar in other.patches)
    assert longest < loose.get_xlim()[1]  # room for what is written behind it
