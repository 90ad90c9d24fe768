"""The report's tables and texts, of numbers written by hand; what is written to disk, and the table for the terminal."""

import base64
import html.parser
import json
from types import SimpleNamespace

import numpy as np
import pytest

from jrdp.analysis import report
from jrdp.analysis.analyze import analyze, format_comparison
from jrdp.analysis.errors import HIT, KINDS
from jrdp.analysis.gallery import VERDICT_COLORS, Panel, Part
from jrdp.analysis.plots import run_color
from jrdp.analysis.runs import BREAKDOWN_IOUS, Breakdown

METRICS = ("AP", "AP50", "AP70", "AP75", "AP_small", "AP_medium", "AP_large", "AR1", "AR10", "AR100")


class Page(html.parser.HTMLParser):
    """A page by its sections: of each the tables (rows of (class, text) with the row's class), and all of its text."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.texts, self.images, self.figures, self.chips = {}, {}, {}, [], {}
        self.key = self.cell = None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        if tag == "section":
            self.key = given["id"]
            self.tables[self.key], self.texts[self.key], self.images[self.key], self.chips[self.key] = [], [], [], []
        elif tag == "table":
            self.tables[self.key].append([])
        elif tag == "tr":
            self.tables[self.key][-1].append((given.get("class"), []))
        elif tag in ("td", "th"):
            self.cell = [given.get("class"), ""]
            self.tables[self.key][-1][-1][1].append(self.cell)
        elif tag == "img":
            self.images[self.key].append((given["src"], given["alt"]))
        elif tag == "figure":
            self.figures.append(given["style"])
        elif tag == "span" and given.get("class") == "chip":
            self.chips[self.key].append(given["style"])

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.cell = None

    def handle_data(self, data):
        if self.cell is not None:
            self.cell[1] += data
        elif self.key is not None:
            self.texts[self.key].append(data)


def rows(table):
    return [[text for _, text in cells] for _, cells in table]


def marked(table, kind):
    """(row, column) of the cells of that class."""
    return [(r, c) for r, (_, cells) in enumerate(table) for c, (of, _) in enumerate(cells) if of == kind]


def run_of(name, values, **more):
    """values: of the ten metrics."""
    counts = [
        {"salient_instances": count, "images": images, "AP": values[0], "AP50": values[1], "AP70": values[2]}
        for count, images in (("0", 2), ("1", 3), ("5+", 4))
    ]
    sizes = [{"size": "all", "instances": 9, "AP": 0.5, "AP50": 0.6, "AP70": 0.4, "AR100": values[9]},
             {"size": "paper_large", "instances": 0, "AP": -1.0, "AP50": -1.0, "AP70": -1.0, "AR100": -1.0}]  # fmt: skip
    curves = {iou: np.full(101, k / 20) for k, iou in enumerate(BREAKDOWN_IOUS, 1)}
    gains = dict(zip(KINDS, (0.1, 0.0, -0.025, 1.0)))
    errors = SimpleNamespace(ap=values[1], hits=7, gains=gains, counts=dict(zip(KINDS, (1, 2, 3, 4))),
                             gain_false_positives=0.125, gain_false_negatives=-0.5)  # fmt: skip
    metrics = dict(zip(METRICS, values), images=9, instances=11, detections=more.pop("detections", 5))
    return SimpleNamespace(
        name=name, metrics=metrics, counts=counts, sizes=sizes, errors={0.5: errors, 0.7: errors},
        breakdown={"all": Breakdown(curves, np.full(101, 0.8), 9), "large": Breakdown(curves, np.full(101, -1.0), 0)},
    )  # fmt: skip


@pytest.fixture
def render(monkeypatch):
    for name in ("plot_runs", "plot_counts", "plot_breakdown", "plot_errors"):
        monkeypatch.setattr(report.analysis_plots, name, lambda given, name=name: (name, given))
    monkeypatch.setattr(report, "svg_bytes", lambda figure: figure[0].encode())

    def rendered(analyses, gallery=(), iou_type="segm"):
        text = report.render_report(SimpleNamespace(iou_type=iou_type), analyses, list(gallery))
        return text, Page(text)

    return rendered


ONE = [0.5, 0.75, 0.0, 0.25, -1.0, 0.3, 0.6, 0.2, 0.4, 0.55]
TWO = [0.6, 0.75, 0.0, 0.2, -1.0, 0.31, 0.6, 0.3, 0.4, 0.5]


def test_head_and_sections(render):
    text, page = render([run_of("a < b", ONE), run_of("c", TWO)])
    assert "<title>Analysis: a &lt; b, c</title>" in text and "<h1>Salient instance segmentation: masks</h1>" in text
    assert "<p>a &lt; b, c on 9 pictures with 11 salient instances.</p>" in text
    assert "segmentation: boxes" in render([run_of("a", ONE)], iou_type="bbox")[0]
    keys = ["results", "curves", "counts", "sizes", "breakdown", "errors", "gallery", "method"]
    assert list(page.tables) == keys and [key for key in keys if f'<a href="#{key}">' in text] == keys
    plots = {key: [(base64.b64decode(src.split(",")[1]).decode(), alt) for src, alt in page.images[key]] for key in keys}
    assert plots == {
        "curves": [("plot_runs", "Precision-recall curves")],
        "counts": [("plot_counts", "Per-picture AP by number of salient instances")],
        "breakdown": [("plot_breakdown", f"Precision-recall breakdown of {name}") for name in ("a < b", "c")],
        "errors": [("plot_errors", "AP gained by fixing each kind of error")],
        "results": [], "sizes": [], "gallery": [], "method": [],
    }  # fmt: skip
    assert all(src.startswith("data:image/svg+xml;base64,") for images in page.images.values() for src, _ in images)
    of_both = [f"background: {run_color(0)}", f"background: {run_color(1)}"]
    assert page.chips["counts"] == page.chips["errors"] == of_both
    assert "Interpolated precision" in "".join(page.texts["curves"]) and "whiskers" in "".join(page.texts["counts"])
    assert "pycocotools" in "".join(page.texts["method"])


def test_results(render):
    _, page = render([run_of("one", ONE, detections=12), run_of("two", TWO)])
    (table,) = page.tables["results"]
    assert rows(table) == [
        ["Method", "AP", "AP50", "AP70", "AP75", "AP small", "AP medium", "AP large", "AR1", "AR10", "AR100", "detections"],
        ["one", "50.0", "75.0", "0.0", "25.0", "-", "30.0", "60.0", "20.0", "40.0", "55.0", "12"],
        ["two", "60.0", "75.0", "0.0", "20.0", "-", "31.0", "60.0", "30.0", "40.0", "50.0", "5"],
    ]
    # Of equal ones both, also where nothing was found; none where nothing is defined.
    assert marked(table, "best") == [(1, c) for c in (2, 3, 4, 7, 9, 10)] + [(2, c) for c in (1, 2, 3, 6, 7, 8, 9)]
    assert marked(table, "text") == [(0, 0), (1, 0), (2, 0)] and marked(table, "start") == []
    assert "".join(page.texts["results"]) == "ResultsPercent; the best of each column in bold."
    _, alone = render([run_of("one", ONE)])
    assert marked(alone.tables["results"][0], "best") == []
    assert "".join(alone.texts["results"]) == "ResultsPercent."


def test_grouped_tables(render):
    _, page = render([run_of("one", ONE), run_of("two", TWO)])
    (counts,), (sizes,) = page.tables["counts"], page.tables["sizes"]
    assert rows(counts) == [
        ["", "Method", "0 instances", "1 instance", "5+ instances"],
        ["pictures", "", "2", "3", "4"],
        ["AP", "one", *["50.0"] * 3], ["", "two", *["60.0"] * 3],
        ["AP50", "one", *["75.0"] * 3], ["", "two", *["75.0"] * 3],
        ["AP70", "one", *["0.0"] * 3], ["", "two", *["0.0"] * 3],
    ]  # fmt: skip
    assert [kind for kind, _ in counts] == [None, "start", "start", None, "start", None, "start", None]
    assert marked(counts, "text") == [(r, c) for r in range(8) for c in (0, 1)] and marked(counts, "best") == []
    assert rows(sizes) == [
        ["", "Method", "all", "above 64²"],
        ["instances", "", "9", "0"],
        ["AP", "one", "50.0", "-"], ["", "two", "50.0", "-"],
        ["AP50", "one", "60.0", "-"], ["", "two", "60.0", "-"],
        ["AP70", "one", "40.0", "-"], ["", "two", "40.0", "-"],
        ["AR100", "one", "55.0", "-"], ["", "two", "50.0", "-"],
    ]  # fmt: skip
    assert "".join(page.texts["sizes"]) == "By sizeSizes are areas in pixels of the photograph."


def test_breakdown_and_errors(render):
    _, page = render([run_of("one", ONE), run_of("two", TWO)])
    (table,) = page.tables["breakdown"]
    # IoU 0.9 has 1 / 20, IoU 0.1 has 9 / 20.
    curves = ["5.0", "10.0", "15.0", "20.0", "25.0", "30.0", "35.0", "40.0", "45.0"]
    assert rows(table) == [
        ["AP under the curve", "0.9", "0.8", "0.7", "0.6", "0.5", "0.4", "0.3", "0.2", "0.1", "BG", "FN"],
        ["one, all", *curves, "80.0", "100.0"], ["one, large", *curves, "-", "-"],
        ["two, all", *curves, "80.0", "100.0"], ["two, large", *curves, "-", "-"],
    ]  # fmt: skip
    first, second = page.tables["errors"]
    each = ["7", "+10.0 (1)", "+0.0 (2)", "−2.5 (3)", "+100.0 (4)", "+12.5", "−50.0"]
    assert rows(first) == [
        ["IoU 0.50", "AP", "hits", "localisation", "duplicate", "background", "missed", "no false alarms", "none missed"],
        ["one", "75.0", *each], ["two", "75.0", *each],
    ]  # fmt: skip
    assert rows(second)[0][0] == "IoU 0.70" and marked(first, "text") == [(0, 0), (1, 0), (2, 0)]
    said = "".join(page.texts["errors"])
    assert all(kind in said for kind in KINDS) and "IoU below 0.1 with every instance" in said


def test_gallery(render):
    def shown(count):
        return [Panel(f"panel {k}", f"<note {k}>", bytes([k])) for k in range(count)]

    gallery = [Part("Best", [("a&b.png", shown(2)), ("c.png", shown(4))]), Part("Worst", [("d.png", shown(7))])]
    _, page = render([run_of("one", ONE)], gallery)
    text = "".join(page.texts["gallery"])
    assert "BestPictures" not in text and text.index("Best") < text.index("a&b.png") < text.index("c.png") < text.index("Worst")
    assert "panel 0 <note 0>panel 1 <note 1>c.png" in text
    photos = [(src, alt) for src, alt in page.images["gallery"]]
    assert len(photos) == 13
    assert photos[1] == ("data:image/jpeg;base64,AQ==", "panel 1: a&b.png")
    widths = [float(style.split("calc(")[1].split("%")[0]) for style in page.figures]
    assert widths == [33.333] * 2 + [25.0] * 4 + [20.0] * 7  # three to five in a line
    assert len(page.chips["gallery"]) == 4 and page.chips["gallery"][0] == f"background: rgb{VERDICT_COLORS[HIT]}"
    assert "hit" in text and "duplicate" in text


def square(image_id, side, **more):
    return {"image_id": image_id, "bbox": [0, 0, side, side], **more}


def test_what_is_written_and_said(tmp_path):
    """Five pictures, of each the square of 20; boxes as high and 20, 12, 14 wide, one of nothing, and none."""
    images = [{"id": k, "file_name": f"{k}.png", "width": 30, "height": 30} for k in range(1, 6)]
    truth = {"images": images, "annotations": [square(k, 20) for k in range(1, 6)]}
    found = [
        {"image_id": k, "bbox": box, "score": score}
        for k, box, score in ((1, [0, 0, 20, 20], 0.9), (2, [0, 0, 12, 20], 0.8), (3, [0, 0, 14, 20], 0.7), (3, [25, 25, 5, 5], 0.1))
    ]
    summary = analyze(truth, {"a long name": found, "b": []}, tmp_path / "new" / "out", iou_type="bbox")
    assert json.loads((tmp_path / "new" / "out" / "analysis.json").read_text()) == summary
    page = (tmp_path / "new" / "out" / "report.html").read_text(encoding="utf-8")
    assert page.count('<div class="shot">') == 4 * 4  # four pictures in each of four parts
    assert {key: summary[key] for key in ("iou_type", "images", "instances", "without_mask")} == {
        "iou_type": "bbox", "images": 5, "instances": 5, "without_mask": 0
    }  # fmt: skip
    run = summary["runs"]["a long name"]
    assert analyze(truth, {"a long name": found}, tmp_path, iou_type="bbox") == {**summary, "runs": {"a long name": run}}
    # At 0.5 three of five, 61 of 101 recalls; at 0.7 two (14 / 20 is no less than 0.7), the second after a miss.
    recall, half, seven = (np.array(run["curves"][key]) for key in ("recall", "precision_50", "precision_70"))
    assert recall.tolist() == [k / 100 for k in range(101)]
    assert half.tolist() == [1.0] * 61 + [0.0] * 40
    np.testing.assert_allclose(seven, [1.0] * 21 + [2 / 3] * 20 + [0.0] * 60)
    assert np.mean(run["curves"]["precision_mean"]) == pytest.approx(run["metrics"]["AP"])
    assert run["best_f1_score"] == 0.7 and run["errors"]["0.50"]["hits"] == 3 and run["errors"]["0.70"]["hits"] == 2
    assert run["errors"]["0.50"]["counts"] == {"localisation": 0, "duplicate": 0, "background": 1, "missed": 2}
    assert run["errors"]["0.50"]["AP"] == pytest.approx(61 / 101)
    assert run["pictures"][2] == {"image_id": 3, "file_name": "3.png", "instances": 1, "detections": 2, "AP": pytest.approx(0.5)}
    assert [picture["AP"] for picture in run["pictures"]] == pytest.approx([1, 0.3, 0.5, 0, 0])
    assert run["breakdown"]["all"]["FN"] == 1.0 and run["breakdown"]["large"]["FN"] == -1.0


def test_the_table_for_the_terminal():
    def metrics(*values):
        return {"metrics": dict(zip(METRICS, values))}

    summary = {"without_mask": 0, "runs": {"one": metrics(0.5, 0.75, 1.0, -1.0), "a longer name": metrics(0.1234, 0, 0, 0)}}
    assert format_comparison(summary).splitlines() == [
        "method             AP    AP50    AP70    AP75",
        "one              50.0    75.0   100.0       -",
        "a longer name    12.3     0.0     0.0     0.0",
    ]
    short = format_comparison({"without_mask": 3, "runs": {"a": metrics(0.5, 0.5, 0.5, 0.5)}}).splitlines()
    assert short[:2] == ["method      AP    AP50    AP70    AP75", "a         50.0    50.0    50.0    50.0"]
    assert short[2:] == ["3 instances have no mask, so that mask AP cannot reach 100"]
