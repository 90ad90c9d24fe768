"""The analysis as one HTML page: plots and pictures inside it, no script, nothing fetched from anywhere."""

from __future__ import annotations

import base64
from html import escape
from typing import Collection, Sequence

from matplotlib.figure import Figure

from jrdp.analysis import plots as analysis_plots
from jrdp.evaluation.coco_metrics import format_percent
from jrdp.analysis.errors import BACKGROUND, DUPLICATE, HIT, KINDS, LOCALISATION
from jrdp.analysis.gallery import VERDICT_COLORS, Part
from jrdp.evaluation.ground_truth import GroundTruth
from jrdp.evaluation.curves import svg_bytes
from jrdp.analysis.runs import BREAKDOWN_IOUS, RunAnalysis

_RESULT_METRICS = ("AP", "AP50", "AP70", "AP75", "AP_small", "AP_medium", "AP_large", "AR1", "AR10", "AR100")
_SIZES = {
    "all": "all",
    "small": "small, up to 32²",
    "medium": "medium, 32² to 96²",
    "large": "large, from 96²",
    "paper_large": "above 64²",
}
_KIND_TEXT = {
    "localisation": "IoU with an instance between 0.1 and the threshold",
    "duplicate": "a better-scored detection already found the instance",
    "background": "IoU below 0.1 with every instance",
    "missed": "instances that no detection found and no localisation error points at",
}

_CSS = """
:root { --ink: #1f2933; --muted: #616e7c; --line: #e3e6ea; --soft: #f6f7f9; --accent: #2f6fde; }
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: #fff; font: 15px/1.55 system-ui, -apple-system, "Segoe UI",
  Roboto, "Helvetica Neue", Arial, "DejaVu Sans", sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 36px 28px 64px; }
h1 { font-size: 28px; line-height: 1.2; margin: 0 0 6px; letter-spacing: -0.01em; }
h2 { font-size: 20px; margin: 52px 0 6px; padding-top: 18px; border-top: 1px solid var(--line); }
h3 { font-size: 15.5px; margin: 26px 0 8px; }
p { max-width: 78ch; margin: 6px 0 14px; color: var(--muted); }
nav { margin: 18px 0 0; display: flex; flex-wrap: wrap; gap: 6px 18px; font-size: 14px; }
nav a { color: var(--accent); text-decoration: none; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 10px 0 18px; font-size: 14px; }
th, td { padding: 6px 13px; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { font-weight: 600; color: var(--muted); border-bottom: 2px solid #c4cad1; }
th:first-child, td:first-child { text-align: left; padding-left: 4px; }
tbody tr:hover { background: var(--soft); }
td.best { font-weight: 700; }
tr.start td { border-top: 2px solid var(--line); }
td.text, th.text { text-align: left; }
.scroll { overflow-x: auto; }
.plot { width: 100%; height: auto; display: block; margin: 8px 0 18px; }
.chip { display: inline-block; width: 11px; height: 11px; border-radius: 3px; margin-right: 6px; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 20px; font-size: 13.5px; color: var(--muted); margin: 4px 0 8px; }
.shot { margin: 0 0 20px; }
.shot .row { display: flex; flex-wrap: wrap; gap: 8px; align-items: flex-start; }
figure { margin: 0; min-width: 130px; }
figure img { max-height: 236px; max-width: 100%; height: auto; border-radius: 4px; display: block; }
figcaption { font-size: 12.5px; line-height: 1.35; margin-top: 4px; color: var(--muted); }
figcaption b { color: var(--ink); font-weight: 600; }
.name { font-size: 13px; color: var(--muted); margin: 0 0 4px; }
dl { max-width: 90ch; font-size: 14px; }
dt { font-weight: 600; margin-top: 10px; }
dd { margin: 2px 0 0; color: var(--muted); }
@media print {
  main { max-width: none; padding: 0; }
  h2 { break-after: avoid; }
  .shot, .plot, tr { break-inside: avoid; }
}
"""


def render_report(truth: GroundTruth, analyses: list[RunAnalysis], gallery: list[Part]) -> str:
    """The page for one or several analysed systems."""
    what = {"segm": "masks", "bbox": "boxes"}[truth.iou_type]
    names = ", ".join(run.name for run in analyses)
    metrics = analyses[0].metrics
    sections = [
        ("results", "Results", _results(analyses)),
        ("curves", "Precision and recall", _curves(analyses)),
        ("counts", "By number of salient instances", _counts(analyses)),
        ("sizes", "By size", _sizes(analyses)),
        ("breakdown", "Precision-recall breakdown", _breakdown(analyses)),
        ("errors", "What the errors cost", _errors(analyses)),
        ("gallery", "Pictures", _gallery(gallery)),
        ("method", "How this was computed", _METHOD),
    ]
    links = "".join(f'<a href="#{key}">{title}</a>' for key, title, _ in sections)
    body = "".join(f'<section id="{key}"><h2>{title}</h2>{content}</section>' for key, title, content in sections)
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Analysis: {escape(names)}</title><style>{_CSS}</style></head><body><main>"
        f"<h1>Salient instance segmentation: {what}</h1>"
        f"<p>{escape(names)} on {metrics['images']} pictures with {metrics['instances']} salient instances.</p>"
        f"<nav>{links}</nav>{body}</main></body></html>\n"
    )


def _results(analyses: list[RunAnalysis]) -> str:
    rows = [[run.name] + [run.metrics[name] for name in _RESULT_METRICS] for run in analyses]
    heads = ["Method"] + [name.replace("_", " ") for name in _RESULT_METRICS]
    counts = [str(run.metrics["detections"]) for run in analyses]
    note = "Percent; the best of each column in bold." if len(analyses) > 1 else "Percent."
    return f"<p>{note}</p>" + _table(heads + ["detections"], rows, best=True, tail=counts)


def _curves(analyses: list[RunAnalysis]) -> str:
    return (
        "<p>Interpolated precision over recall; the figure after each name is the area under its curve, AP.</p>"
        + _plot(analysis_plots.plot_runs(analyses), "Precision-recall curves")
    )


def _counts(analyses: list[RunAnalysis]) -> str:
    rows = analyses[0].counts
    plural = {"0": "0 instances", "1": "1 instance"}
    heads = [plural.get(row["salient_instances"], f"{row['salient_instances']} instances") for row in rows]
    return (
        "<p>Above: AP of each picture on its own; box: quartiles and median, whiskers: 5th to 95th percentile, "
        "diamond: mean, dots: pictures. Below: AP of all pictures of a group taken together.</p>"
        + _run_legend(analyses)
        + _plot(analysis_plots.plot_counts(analyses), "Per-picture AP by number of salient instances")
        + _grouped_table(
            heads,
            ("pictures", [row["images"] for row in rows]),
            ("AP", "AP50", "AP70"),
            [(run.name, run.counts) for run in analyses],
        )
    )


def _sizes(analyses: list[RunAnalysis]) -> str:
    rows = analyses[0].sizes
    return "<p>Sizes are areas in pixels of the photograph.</p>" + _grouped_table(
        [_SIZES[row["size"]] for row in rows],
        ("instances", [row["instances"] for row in rows]),
        ("AP", "AP50", "AP70", "AR100"),
        [(run.name, run.sizes) for run in analyses],
    )


def _grouped_table(
    heads: Sequence[str],
    counted: tuple[str, Sequence[int]],
    metrics: Sequence[str],
    runs: Sequence[tuple[str, Sequence[dict]]],
) -> str:
    """A column for each group, a row for each metric and system; `counted` is the first row."""
    rows: list[list] = [[counted[0], ""] + [str(count) for count in counted[1]]]
    starts = {0}
    for metric in metrics:
        starts.add(len(rows))
        for position, (name, groups) in enumerate(runs):
            rows.append([metric if position == 0 else "", name] + [group[metric] for group in groups])
    return _table(["", "Method"] + list(heads), rows, starts=starts, texts=2)


def _breakdown(analyses: list[RunAnalysis]) -> str:
    parts = [
        "<p>Each band is what a more forgiving rule adds: IoU 0.9 down to 0.1, then BG, with all detections on the "
        "background and all repetitions removed, then FN, with nothing missed. A wide band between IoU 0.9 and 0.5 "
        "means inexact outlines; between IoU 0.1 and BG, false alarms; between BG and FN, missed instances.</p>"
    ]
    for run in analyses:
        parts.append(f"<h3>{escape(run.name)}</h3>")
        parts.append(_plot(analysis_plots.plot_breakdown(run), f"Precision-recall breakdown of {run.name}"))
    heads = ["AP under the curve"] + [f"{iou:.1f}" for iou in BREAKDOWN_IOUS] + ["BG", "FN"]
    rows = []
    for run in analyses:
        for name, part in run.breakdown.items():
            rows.append([f"{run.name}, {name}"] + list(part.averages().values()))
    return "".join(parts) + _table(heads, rows)


def _errors(analyses: list[RunAnalysis]) -> str:
    parts = [
        "<p>The AP that would be gained if one kind of error alone were fixed, and in parentheses how many there are. "
        "Gains do not add up: fixing one kind changes what the others cost.</p>",
        _run_legend(analyses),
        _plot(analysis_plots.plot_errors(analyses), "AP gained by fixing each kind of error"),
    ]
    for iou in analyses[0].errors:
        heads = [f"IoU {iou:.2f}", "AP", "hits"]
        heads += list(KINDS) + ["no false alarms", "none missed"]
        rows = []
        for run in analyses:
            errors = run.errors[iou]
            row = [run.name, errors.ap, str(errors.hits)]
            for kind in KINDS:
                row.append(f"{_gain(errors.gains[kind])} ({errors.counts[kind]})")
            rows.append(row + [_gain(errors.gain_false_positives), _gain(errors.gain_false_negatives)])
        parts.append(_table(heads, rows))
    items = "".join(f"<dt>{kind}</dt><dd>{text}</dd>" for kind, text in _KIND_TEXT.items())
    return "".join(parts) + f"<dl>{items}</dl>"


def _gallery(gallery: list[Part]) -> str:
    legend = [(HIT, "hit"), (LOCALISATION, "localisation"), (DUPLICATE, "duplicate"), (BACKGROUND, "background")]
    parts = [
        "<p>Ranked by the first system's AP on the picture. Detections are coloured by their verdict at IoU 0.50; "
        "those scored below the system's best F1 score are not drawn, and their number is given in parentheses.</p>",
        _legend([(f"rgb{VERDICT_COLORS[kind]}", text) for kind, text in legend]),
    ]
    for part in gallery:
        parts.append(f"<h3>{escape(part.title)}</h3>")
        for name, panels in part.rows:
            width = f"calc({100 / min(max(len(panels), 3), 5):.3f}% - 8px)"  # at most five in a line
            figures = "".join(
                f'<figure style="max-width: {width}">'
                f'<img src="{_data_uri("image/jpeg", panel.jpeg)}" alt="{escape(f"{panel.title}: {name}")}">'
                f"<figcaption><b>{escape(panel.title)}</b> {escape(panel.note)}</figcaption></figure>"
                for panel in panels
            )
            title = f'<div class="name">{escape(name)}</div>'
            parts.append(f'<div class="shot">{title}<div class="row">{figures}</div></div>')
    return "".join(parts)


_METHOD = """<dl>
<dt>AP</dt><dd>COCO's: precision interpolated at 101 recalls, averaged over IoU 0.50, 0.55, ... 0.95, at most 100
detections a picture, all categories taken as one; AP50, AP70, AP75 at one IoU. Matching and accumulation are
pycocotools'; AP of groups of pictures is computed from the same matches.</dd>
<dt>Sizes</dt><dd>The areas that the annotation file gives, in pixels of the photograph. A dash: no such instance.</dd>
<dt>Error kinds and gains</dt><dd>As TIDE (Bolya et al., ECCV 2020) for one class. Fixing a localisation error makes
it a hit on its instance, or removes it where that instance is found already; duplicates and background are removed;
missed instances are no longer asked for.</dd>
<dt>Detections shown in pictures</dt><dd>Those scored at least as high as the score with the system's best F1 at IoU
0.50 over all pictures.</dd>
</dl>"""


def _run_legend(analyses: list[RunAnalysis]) -> str:
    return _legend([(analysis_plots.run_color(position), run.name) for position, run in enumerate(analyses)])


def _legend(entries: Sequence[tuple[str, str]]) -> str:
    chips = "".join(
        f'<span><span class="chip" style="background: {color}"></span>{escape(text)}</span>' for color, text in entries
    )
    return f'<div class="legend">{chips}</div>'


def _gain(value: float) -> str:
    return f"+{100 * value:.1f}" if value >= 0 else f"−{-100 * value:.1f}"


def _table(
    heads: Sequence[str],
    rows: Sequence[Sequence[str | float]],
    best: bool = False,
    tail: Sequence[str] = (),
    starts: Collection[int] = (),
    texts: int = 1,
) -> str:
    """A table; numbers are fractions, shown as percentages, with the best of each column marked if asked for.

    tail: a last cell for each row. starts: rows with a rule above them. texts: how many first columns are words.
    """
    columns = list(zip(*rows))
    lines = []
    for number, row in enumerate(rows):
        cells = []
        for position, value in enumerate(row):
            if isinstance(value, str):
                kind, text = (' class="text"' if position < texts else ""), escape(value)
            else:
                mark = best and len(rows) > 1 and value >= 0 and value == max(columns[position])
                kind, text = (' class="best"' if mark else ""), format_percent(value)
            cells.append(f"<td{kind}>{text}</td>")
        if tail:
            cells.append(f"<td>{escape(tail[number])}</td>")
        lines.append(f'<tr class="start">{"".join(cells)}</tr>' if number in starts else f"<tr>{''.join(cells)}</tr>")
    head = "".join(
        f'<th class="text">{escape(text)}</th>' if position < texts else f"<th>{escape(text)}</th>"
        for position, text in enumerate(heads)
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def _plot(figure: Figure, description: str) -> str:
    return f'<img class="plot" src="{_data_uri("image/svg+xml", svg_bytes(figure))}" alt="{escape(description)}">'


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
