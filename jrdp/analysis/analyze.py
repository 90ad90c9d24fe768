"""`jrdp analyze`: where the results of one or several systems are strong, and what their errors cost.

Reproduces, for any COCO results, the forms of the paper's Figure 4 (precision-recall breakdown), Figure 6
(precision-recall of several systems; per-picture AP by the number of salient instances) and Table VI (systems side
by side), and adds error classes and a gallery.
"""

from __future__ import annotations

from pathlib import Path

from jrdp.data.exif import unseen_note
from jrdp.evaluation.coco_metrics import format_percent
from jrdp.files import write_json, write_text
from jrdp.analysis.gallery import count_unseen_turns, make_gallery
from jrdp.evaluation.ground_truth import GroundTruth, GroundTruthSource, IouType
from jrdp.analysis.report import render_report
from jrdp.analysis.runs import RunAnalysis, analyze_runs


def analyze(
    ground_truth: GroundTruthSource,
    runs: dict[str, str | Path | list],
    out_dir: str | Path,
    images_dir: str | Path | None = None,
    iou_type: IouType = "segm",
    pictures: int = 4,
    upright: bool = False,
) -> dict:
    """Analyse one or more systems' COCO results and write `report.html` and `analysis.json` to `out_dir`.

    ground_truth: a COCO annotation file, its content or a `COCO`. runs: name -> result list or file, in the order
    to be shown. images_dir: where the photographs lie; without it, the gallery draws on grey. pictures: how many
    pictures each part of the gallery shows. upright: photographs are turned as their EXIF says, as those were that the
    annotations were drawn on (input.exif: apply). The report is one file that needs nothing else.
    Returns the content of `analysis.json`. Raises `UserError` for bad input, before anything is written.
    """
    truth, analyses = analyze_runs(ground_truth, runs, iou_type)
    gallery = make_gallery(truth, analyses, images_dir, pictures, upright)
    summary = summary_of(truth, analyses)
    unseen = count_unseen_turns(gallery)
    if unseen:
        summary["exif_ignored"] = unseen
    page = render_report(truth, analyses, gallery)
    write_json(Path(out_dir) / "analysis.json", summary)
    write_text(Path(out_dir) / "report.html", page)
    return summary


def format_comparison(summary: dict) -> str:
    """The systems side by side as text, in the form of the paper's Table VI (percent), with AP75 added."""
    names = ("AP", "AP50", "AP70", "AP75")
    width = max([len("method")] + [len(name) for name in summary["runs"]])
    lines = ["method".ljust(width) + "".join(name.rjust(8) for name in names)]
    for name, run in summary["runs"].items():
        lines.append(name.ljust(width) + "".join(format_percent(run["metrics"][metric]).rjust(8) for metric in names))
    if summary["without_mask"]:
        lines.append(f"{summary['without_mask']} instances have no mask, so that mask AP cannot reach 100")
    if summary.get("exif_ignored"):
        lines.append(unseen_note(f"{summary['exif_ignored']} of the photographs shown", "annotations"))
    return "\n".join(lines)


def summary_of(truth: GroundTruth, analyses: list[RunAnalysis]) -> dict:
    """Everything measured, ready for JSON: fractions in 0..1, -1 where nothing defines a value."""
    return {
        "iou_type": truth.iou_type,
        "images": len(truth.images),
        "instances": analyses[0].metrics["instances"],
        "without_mask": truth.without_mask,
        "runs": {run.name: _run_summary(run, truth) for run in analyses},
    }


def _run_summary(run: RunAnalysis, truth: GroundTruth) -> dict:
    return {
        "metrics": run.metrics,
        "sizes": run.sizes,
        "counts": run.counts,
        "breakdown": {name: part.averages() for name, part in run.breakdown.items()},
        "errors": {
            f"{iou:.2f}": {
                "AP": errors.ap,
                "hits": errors.hits,
                "counts": errors.counts,
                "gains": errors.gains,
                "gain_false_positives": errors.gain_false_positives,
                "gain_false_negatives": errors.gain_false_negatives,
            }
            for iou, errors in run.errors.items()
        },
        "best_f1_score": run.shown_above,
        "curves": {
            "recall": run.curves.recalls.round(2).tolist(),
            "precision_50": run.curves.at(0.5).tolist(),
            "precision_70": run.curves.at(0.7).tolist(),
            "precision_mean": run.curves.mean().tolist(),
        },
        "pictures": [
            {
                "image_id": picture.image_id,
                "file_name": truth.images[picture.image_id]["file_name"],
                "instances": len(picture.instances),
                "detections": len(picture.detections),
                "AP": float(ap),
            }
            for picture, ap in zip(run.pictures, run.picture_ap)
        ],
    }
