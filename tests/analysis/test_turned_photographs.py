"""Photographs that their EXIF turns: the gallery shows them as they were annotated, or says what to do."""

import json

import numpy as np
import pytest
from command_line import run_jrdp
from PIL import Image

from jrdp import visualize
from jrdp.analysis.analyze import analyze, format_comparison
from jrdp.analysis.gallery import count_unseen_turns, make_gallery
from jrdp.analysis.runs import analyze_runs
from jrdp.errors import UserError

PIXELS = np.random.default_rng(0).integers(0, 255, (40, 60, 3)).astype(np.uint8)
UPRIGHT = {1: PIXELS, 2: PIXELS[:, ::-1], 3: PIXELS[::-1, ::-1], 6: np.rot90(PIXELS, -1)}
HINT = " (its EXIF turns it: --exif apply follows that)"


def save(path, orientation, pixels=PIXELS):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(pixels)).save(path, exif=exif)


def annotated(*sizes):
    """Ground truth of pictures 1.png, 2.png ... of (height, width), and results that find it."""
    images = [{"id": k, "file_name": f"{k}.png", "height": h, "width": w} for k, (h, w) in enumerate(sizes, 1)]
    found = [{"image_id": image["id"], "bbox": [5, 5, 20, 10]} for image in images]
    return {"images": images, "annotations": found}, [{**each, "score": 0.9} for each in found]


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_photographs_are_shown_as_they_were_annotated(tmp_path, monkeypatch, orientation):
    monkeypatch.setattr(visualize, "encode_jpeg", lambda picture: picture)
    save(tmp_path / "1.png", orientation)
    shown = UPRIGHT[orientation]
    truth, results = annotated(shown.shape[:2])
    checked = analyze_runs(truth, {"ours": results}, "bbox")

    def photograph(upright):
        gallery = make_gallery(*checked, tmp_path, 1, upright=upright)
        panel = gallery[0].rows[0][1][0]
        return panel.jpeg, panel.note, count_unseen_turns(gallery)

    pixels, note, unseen = photograph(upright=True)
    np.testing.assert_array_equal(pixels, shown)
    assert (note, unseen) == ("", 0)
    if orientation == 6:
        with pytest.raises(UserError) as raised:
            photograph(upright=False)
        assert str(raised.value).endswith(f"1.png is 60 x 40, but the ground truth says 40 x 60{HINT}")
        return
    pixels, note, unseen = photograph(upright=False)
    np.testing.assert_array_equal(pixels, PIXELS)
    assert (note, unseen) == (("", 0) if orientation == 1 else ("its EXIF orientation is ignored", 1))


def test_other_sizes(tmp_path):
    def fails(size, orientation, ending, upright=False):
        truth, results = annotated(size)
        save(tmp_path / "1.png", orientation)
        with pytest.raises(UserError) as raised:
            analyze(truth, {"ours": results}, tmp_path / "out", tmp_path, "bbox", upright=upright)
        assert str(raised.value).endswith(ending) and not (tmp_path / "out").exists()

    fails((60, 40), 1, "says 40 x 60 (turned by 90 degrees, and its EXIF does not say so)")
    fails((60, 41), 6, "says 41 x 60")
    fails((40, 60), 6, "1.png is 40 x 60, but the ground truth says 60 x 40", upright=True)


def test_orientations_that_no_size_tells_of_are_counted_once(tmp_path):
    """Each picture is shown in several parts. A quarter turn is told by the size of the file's own pixels, but of a square."""
    for name, orientation in (("1.png", 3), ("2.png", 1), ("3.png", 4), ("4.png", 6)):
        save(tmp_path / name, orientation)
    save(tmp_path / "5.png", 6, PIXELS[:, :40])
    truth, results = annotated(*[(40, 60)] * 4, (40, 40))
    out = tmp_path / "out"
    summary = analyze(truth, {"ours": results}, out, tmp_path, "bbox", pictures=5)
    last = format_comparison(summary).splitlines()[-1]
    assert last.startswith("note: 3 of the photographs shown have an EXIF orientation, which is ignored") and "--exif apply" in last
    assert json.loads((out / "analysis.json").read_text()) == summary and summary["exif_ignored"] == 3
    assert (out / "report.html").read_text().count("its EXIF orientation is ignored") == 3 * 3
    alone = analyze(truth, {"ours": results}, out, iou_type="bbox")
    assert "exif_ignored" not in alone and "EXIF" not in format_comparison(alone)


def test_the_command_line(tmp_path, monkeypatch, capsys):
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    truth, results = annotated((60, 40))
    truth["categories"] = [{"id": 1}]
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "ours.json").write_text(json.dumps([{**each, "category_id": 1} for each in results]))
    save(photos / "1.png", 6)

    def run(*options):
        files = ["--ground-truth", tmp_path / "truth.json", "--compare", f"ours={tmp_path / 'ours.json'}", "--out", out]
        return run_jrdp(monkeypatch, capsys, "analyze", *files, "--iou-type", "bbox", *options)

    for value in ("ignore", "apply"):
        code, _, error = run("--exif", value)
        assert code == 2 and error.startswith("jrdp: error: --exif has no effect without --images") and error.count("\n") == 1
    assert run("--images", photos, "--exif", "yes")[::2] == (2, "jrdp: error: --exif 'yes' is not ignore or apply\n")
    code, _, error = run("--images", photos)
    assert code == 2 and error.endswith(f"{HINT}\n") and not out.exists()
    code, said, _ = run("--images", photos, "--exif", "apply")
    assert code == 0 and "EXIF" not in said and (out / "report.html").exists()
    save(photos / "1.png", 3, np.rot90(PIXELS))
    code, said, _ = run("--images", photos)
    assert code == 0 and "note: 1 of the photographs shown have an EXIF orientation" in said
