"""The plot of precision over recall that a test writes, and figures as files."""

import io

import numpy as np
import pytest
from matplotlib import rc_context
from PIL import Image

from jrdp.evaluation import curves as module
from jrdp.evaluation.coco_metrics import Curves
from jrdp.evaluation.curves import new_figure, plain_text, png_bytes, style_axes, svg_bytes, write_pr_curves

RECALLS = np.linspace(0, 1, 101)


def curves_of(starts, thresholds):
    precision = np.stack([start * (1 - RECALLS) for start in starts])
    return Curves(np.array(thresholds), RECALLS, precision, np.zeros_like(precision), np.zeros(len(starts)))


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """Draw these curves -> the figure, and the picture that was written."""
    figures = []
    monkeypatch.setattr(module, "new_figure", lambda *size: figures.append(new_figure(*size)) or figures[-1])

    def draw(curves):
        write_pr_curves(tmp_path / "curves.png", curves)
        with Image.open(tmp_path / "curves.png") as picture:
            picture.load()
        return figures.pop(), picture

    return draw


def test_a_panel_for_each_kind_and_a_line_for_each_threshold(drawn):
    figure, picture = drawn({"bbox": curves_of([1.0, 0.5, 0.0], [0.5, 0.7, 0.9]), "segm": curves_of([0.4], [0.5])})
    boxes, masks = figure.axes
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["Boxes", "Masks"]
    assert boxes.get_xlabel() == "recall" and boxes.get_ylabel() == "precision"
    assert len(boxes.lines) == 4 and len(masks.lines) == 2
    for line, start in zip(boxes.lines, (1.0, 0.5, 0.0, 0.5)):  # the last is their mean
        np.testing.assert_allclose(line.get_xdata(), RECALLS)
        np.testing.assert_allclose(line.get_ydata(), start * (1 - RECALLS), atol=1e-12)
    texts = [text.get_text().split() for text in boxes.get_legend().get_texts()]
    assert texts == [["IoU", "0.50", "50.0"], ["IoU", "0.70", "25.0"], ["IoU", "0.90", "0.0"], ["mean", "AP", "25.0"]]
    assert len({len(text.get_text()) for text in boxes.get_legend().get_texts()}) == 1
    assert len({line.get_color() for line in boxes.lines}) == 4
    for axes in figure.axes:
        low, high = axes.get_xlim()
        assert low == 0 and 1 <= high < 1.1
        low, high = axes.get_ylim()
        assert low == 0 and 1 <= high < 1.1
    assert picture.size[0] > 1.9 * drawn({"segm": curves_of([0.4], [0.5])})[1].size[0]


def test_no_curve_is_an_empty_plot(drawn):
    figure, picture = drawn({})
    assert len(figure.axes) == 1 and not figure.axes[0].lines and min(picture.size) > 100


def test_axes():
    axes = new_figure(4, 3).subplots()
    style_axes(axes, "title", "below", "beside")
    assert (axes.get_title(loc="left"), axes.get_xlabel(), axes.get_ylabel()) == ("title", "below", "beside")
    assert [axes.spines[side].get_visible() for side in ("top", "right", "left", "bottom")] == [False, False, True, True]
    assert axes.get_axisbelow() is True
    assert all(line.get_visible() for line in axes.get_xgridlines() + axes.get_ygridlines())


@pytest.mark.parametrize("name, drawn", [("plain name", "plain name"), ("a$b$", r"a\$b\$"), ("\ud800.png", r"\ud800.png")])
def test_names(name, drawn):
    assert plain_text(name) == drawn


def test_figures_as_files_are_the_same_each_time():
    def figure():
        made = new_figure(4, 3)
        made.subplots().plot([0, 1], [0, 1], label="x")
        return made

    assert new_figure(4, 3).get_size_inches().tolist() == [4, 3]
    with rc_context({"savefig.format": "pdf"}):  # whatever the user's settings say
        png = png_bytes(figure(), dpi=50)
    with Image.open(io.BytesIO(png)) as picture:
        assert picture.format == "PNG" and picture.size == (200, 150) and "Software" not in picture.info
    svg = svg_bytes(figure())
    assert svg.startswith(b"<?xml") and b"<svg" in svg and b"<dc:date>" not in svg and b"dc:creator" not in svg
    assert svg == svg_bytes(figure()) and png == png_bytes(figure(), dpi=50)
    with Image.open(io.BytesIO(png_bytes(figure()))) as picture:
        assert picture.size == (520, 390)
