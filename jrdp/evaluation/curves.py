"""Precision-recall plots. matplotlib's objects are used directly: no display, no global state."""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from jrdp.evaluation.coco_metrics import Curves, format_percent
from jrdp.files import write_bytes

GRID = "#e3e6ea"
INK = "#1f2933"
MUTED = "#616e7c"


def plain_text(name: str) -> str:
    """A name from outside as matplotlib draws it letter by letter: "$" is no mathematics, half a character no error."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8").replace("$", r"\$")


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of `width` x `height` inches with tight layout."""
    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def style_axes(axes: Axes, title: str, x_label: str, y_label: str) -> None:
    axes.set_title(title, fontsize=11, color=INK, loc="left", fontweight="bold")
    axes.set_xlabel(x_label, fontsize=9.5, color=MUTED)
    axes.set_ylabel(y_label, fontsize=9.5, color=MUTED)
    axes.tick_params(labelsize=8.5, colors=MUTED, length=0)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#c4cad1")


def style_precision_recall(axes: Axes, title: str) -> None:
    style_axes(axes, title, "recall", "precision")
    axes.set_xlim(0, 1.005)
    axes.set_ylim(0, 1.02)


def write_pr_curves(path: str | Path, curves: dict[str, Curves]) -> None:
    """Write `pr_curves.png`: one panel for each of {"bbox": curves, "segm": curves}, a line per IoU threshold."""
    figure = new_figure(6.6 * max(len(curves), 1), 4.4)
    panels = figure.subplots(1, max(len(curves), 1), squeeze=False)[0]
    names = {"bbox": "Boxes", "segm": "Masks"}
    for axes, (iou_type, curve) in zip(panels, curves.items()):
        style_precision_recall(axes, names.get(iou_type, iou_type))
        mean = curve.mean()
        for position, threshold in enumerate(curve.iou_thresholds):
            shade = matplotlib.colormaps["viridis_r"](0.08 + 0.86 * position / max(len(curve.iou_thresholds) - 1, 1))
            label = f"IoU {threshold:.2f}   {format_percent(curve.precision[position].mean()):>5}"
            axes.plot(curve.recalls, curve.precision[position], color=shade, linewidth=1.4, label=label)
        label = f"mean AP    {format_percent(mean.mean()):>5}"
        axes.plot(curve.recalls, mean, color="#d64545", linewidth=2.4, linestyle=(0, (4, 1.5)), label=label)
        # Beside the axes: there is no corner of a precision-recall plot that a curve cannot cross.
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False, prop={"family": "monospace", "size": 8})
    write_bytes(path, png_bytes(figure))


def png_bytes(figure: Figure, dpi: int = 130) -> bytes:
    """The figure as a PNG file's content."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def svg_bytes(figure: Figure) -> bytes:
    """The figure as an SVG file's content, the same bytes for the same data; text as outlines, so no fonts needed."""
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "jrdp", "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()
