"""The plots of the analysis report."""

from __future__ import annotations

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from jrdp.evaluation.coco_metrics import format_percent
from jrdp.analysis.errors import KINDS
from jrdp.evaluation.curves import GRID, INK, MUTED, new_figure, plain_text, style_axes, style_precision_recall
from jrdp.analysis.runs import BREAKDOWN_IOUS, GREATEST_COUNT, RunAnalysis, count_group

RUN_COLORS = ("#2f6fde", "#e8590c", "#2b9348", "#9c36b5", "#c92a2a", "#0b7285", "#b08900", "#5c677d")


def run_color(position: int) -> str:
    """The colour of the run at `position`, the same in every plot."""
    return RUN_COLORS[position % len(RUN_COLORS)]


def plot_runs(analyses: list[RunAnalysis]) -> Figure:
    """Figure 6, left: precision-recall of every system at IoU 0.5, 0.7 and averaged over 0.5 to 0.95."""
    figure = new_figure(12, 3.9 + 0.16 * max(0, len(analyses) - 4))
    panels = figure.subplots(1, 3, sharey=True)
    choices = (
        ("IoU 0.50", lambda run: run.curves.at(0.5)),
        ("IoU 0.70", lambda run: run.curves.at(0.7)),
        ("mean of IoU 0.50 to 0.95", lambda run: run.curves.mean()),
    )
    for axes, (title, curve_of) in zip(panels, choices):
        style_precision_recall(axes, title)
        for position, run in enumerate(analyses):
            curve = curve_of(run)
            label = f"{plain_text(run.name)}  {format_percent(curve.mean())}"
            style = "-" if position < len(RUN_COLORS) else (0, (4, 1.5))
            axes.plot(run.curves.recalls, curve, color=run_color(position), linestyle=style, linewidth=2, label=label)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), frameon=False, fontsize=9, labelcolor=INK)
    for axes in panels[1:]:
        axes.set_ylabel("")
    return figure


def plot_counts(analyses: list[RunAnalysis]) -> Figure:
    """Figure 6, right: how per-picture AP is distributed, by the number of salient instances in the picture.

    Box: quartiles, with the median; whiskers: 5th to 95th percentile; diamond: mean; every picture is a dot.
    Which colour is which system's is for the page to say.
    """
    numbers = np.array([min(len(picture.instances), GREATEST_COUNT) for picture in analyses[0].pictures])
    groups = np.unique(numbers[numbers > 0]).tolist()
    figure = new_figure(12, 4)
    axes = figure.subplots()
    style_axes(axes, "", "salient instances in the picture", "AP of the picture (%)")
    axes.grid(False, axis="x")
    step = 0.8 / len(analyses)
    jitter = np.random.default_rng(0)
    for position, run in enumerate(analyses):
        color = run_color(position)
        offset = -0.4 + step * (position + 0.5)
        samples = [100 * run.picture_ap[numbers == count] for count in groups]
        places = np.arange(len(groups)) + offset
        axes.boxplot(
            samples,
            positions=places,
            widths=step * 0.72,
            whis=(5, 95),
            showfliers=False,
            showmeans=True,
            patch_artist=True,
            boxprops={"facecolor": color + "33", "edgecolor": color},
            medianprops={"color": color, "linewidth": 2},
            whiskerprops={"color": color},
            capprops={"color": color},
            meanprops={"marker": "D", "markersize": 4.5, "markerfacecolor": "white", "markeredgecolor": color},
        )
        for place, sample in zip(places, samples):
            spread = jitter.uniform(-0.22, 0.22, len(sample)) * step
            axes.plot(place + spread, sample, ".", color=color, markersize=3, alpha=0.45, zorder=0)
    axes.set_xticks(range(len(groups)))
    axes.set_xticklabels([f"{count_group(count)}\n({np.sum(numbers == count)} pictures)" for count in groups])
    axes.set_xlim(-0.6, len(groups) - 0.4)
    axes.set_ylim(-3, 103)
    return figure


def plot_breakdown(run: RunAnalysis) -> Figure:
    """Figure 4: precision-recall at IoU 0.9 ... 0.1, then background removed (BG), then nothing missed (FN)."""
    figure = new_figure(12, 4.3)
    titles = {"all": "All instances", "large": "Large instances (area above 64 × 64)"}
    for axes, (name, part) in zip(figure.subplots(1, 2, sharey=True), run.breakdown.items()):
        style_precision_recall(axes, f"{titles[name]}: {part.instances}")
        if part.instances == 0:
            axes.text(0.5, 0.5, "no such instance", ha="center", color=MUTED)
            continue
        recalls = run.curves.recalls
        curves = [(f"IoU {iou:.1f}", part.precision[iou]) for iou in BREAKDOWN_IOUS]
        curves += [("BG", part.background_removed), ("FN", np.ones_like(recalls))]
        shades = [matplotlib.colormaps["YlGnBu_r"](0.12 + 0.68 * k / 8) for k in range(9)] + ["#d9a5d6", "#f4b183"]
        below = np.zeros_like(recalls)
        for (label, curve), shade in zip(curves, shades):
            # Each band is what the next, more forgiving rule adds.
            text = f"{label:<8}{format_percent(curve.mean()):>6}"
            axes.fill_between(recalls, below, curve, color=shade, alpha=0.85, linewidth=0, label=text)
            axes.plot(recalls, curve, color="#33415c", linewidth=0.7)
            below = curve
        handles, labels = axes.get_legend_handles_labels()
        axes.legend(
            handles[::-1],
            labels[::-1],
            loc="upper left",
            bbox_to_anchor=(1, 1.02),
            frameon=False,
            prop={"family": "monospace", "size": 8.5},
        )
    return figure


def plot_errors(analyses: list[RunAnalysis]) -> Figure:
    """The AP that fixing each kind of error would gain, per system and IoU threshold."""
    figure = new_figure(12, 1.5 + 0.34 * len(KINDS) * max(len(analyses), 2) * 0.62)
    panels = figure.subplots(1, len(analyses[0].errors), sharey=True, sharex=True, squeeze=False)[0]
    height = 0.76 / len(analyses)
    for axes, iou in zip(panels, analyses[0].errors):
        style_axes(axes, f"IoU {iou:.2f}", "AP gained if fixed (points)", "")
        axes.grid(False, axis="y")
        for position, run in enumerate(analyses):
            errors = run.errors[iou]
            gains = [100 * errors.gains[kind] for kind in KINDS]
            places = np.arange(len(KINDS)) - 0.38 + height * (position + 0.5)
            axes.barh(places, gains, height * 0.86, color=run_color(position))
            for place, gain, kind in zip(places, gains, KINDS):
                text = f" {gain:.1f}  ({errors.counts[kind]})"
                axes.text(max(gain, 0), place, text, va="center", fontsize=8, color=MUTED)
        axes.set_yticks(range(len(KINDS)))
        axes.set_yticklabels(KINDS, color=INK, fontsize=9.5)
        axes.margins(x=0.22)
    panels[0].invert_yaxis()
    panels[0].set_xlim(left=0)
    for axes in panels:
        axes.spines["left"].set_color(GRID)
    return figure
