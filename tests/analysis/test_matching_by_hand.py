"""Which detection found which instance, by hand: positions, order, crowds, empty pictures; and the curve of few points."""

import numpy as np
import pytest

from jrdp.analysis.errors import BACKGROUND, DUPLICATE, HIT, IGNORED, LOCALISATION, analyze_errors, classify
from jrdp.analysis.matching import PictureMatches, average_precision, match_pictures, mean_average_precision, precision_curve
from jrdp.evaluation.cocoeval import run_cocoeval
from jrdp.evaluation.ground_truth import load_ground_truth
from jrdp.evaluation.results import check_results

IMAGES = [{"id": k, "file_name": f"{k}.jpg", "width": 100, "height": 100} for k in (3, 1, 2)]
BOXES = [  # id, image, box, crowd
    (11, 1, [0, 0, 10, 10], 0), (12, 1, [50, 50, 20, 20], 0), (13, 1, [0, 60, 40, 40], 1), (14, 2, [10, 10, 10, 10], 0),
]  # fmt: skip
FOUND = [  # image, box, score
    (2, [60, 60, 10, 10], 0.9),  # background, in a picture whose instance is missed
    (1, [50, 50, 20, 20], 0.8),  # the second instance
    (1, [0, 0, 10, 6], 0.7),  # the first, IoU 0.6
    (1, [0, 0, 10, 10], 0.6),  # a duplicate of it at 0.5; it at 0.75
    (1, [5, 65, 20, 20], 0.5),  # in the crowd
    (1, [50, 50, 20, 6], 0.4),  # IoU 0.3 with the second
]


def matched(found):
    annotations = [
        {"id": number, "image_id": image, "category_id": 1, "bbox": box, "area": box[2] * box[3], "iscrowd": crowd,
         "segmentation": [[0, 0, 1, 0, 1, 1]]}
        for number, image, box, crowd in BOXES
    ]  # fmt: skip
    truth = load_ground_truth({"images": IMAGES, "annotations": annotations, "categories": [{"id": 1}]}, "bbox")
    results = [{"image_id": image, "category_id": 1, "bbox": box, "score": score} for image, box, score in found]
    return match_pictures(run_cocoeval(truth, check_results(results, truth, "results")))


@pytest.fixture(scope="module")
def pictures():
    return matched(FOUND)


def test_positions_order_and_overlaps(pictures):
    first, second, third = pictures
    assert [picture.image_id for picture in pictures] == [1, 2, 3]
    assert first.detections.tolist() == [1, 2, 3, 4, 5] and second.detections.tolist() == [0]
    assert first.scores.tolist() == pytest.approx([0.8, 0.7, 0.6, 0.5, 0.4])
    assert first.instances.tolist() == [0, 1] and second.instances.tolist() == [3]
    assert first.ious == pytest.approx(np.array([[0, 1], [0.6, 0], [1, 0], [0, 0], [0, 0.3]]))
    assert first.matches[0].tolist() == [1, 0, -1, -1, -1]  # at 0.5
    assert first.matches[5].tolist() == [1, -1, 0, -1, -1]  # at 0.75
    assert first.ignored[0].tolist() == [False, False, False, True, False]
    assert second.matches.tolist() == [[-1]] * 10 and second.ious.tolist() == [[0]]
    assert len(third.detections) == len(third.scores) == len(third.instances) == 0
    assert third.ious.shape == (0, 0) and third.matches.shape == third.ignored.shape == (10, 0)
    assert third.detections.dtype == third.instances.dtype == third.matches.dtype == np.int64 and third.ignored.dtype == bool


def test_average_precision_of_the_pictures(pictures):
    # At 0.5: wrong, right, right, wrong, wrong: precision 2/3 up to recall 2/3, nothing beyond.
    assert average_precision(pictures, 0) == pytest.approx(67 / 101 * 2 / 3)
    assert average_precision(pictures[2:], 0) == mean_average_precision(pictures[2:]) == -1
    by_threshold = [average_precision(pictures, k) for k in range(10)]
    assert mean_average_precision(pictures) == pytest.approx(np.mean(by_threshold)) and len(set(by_threshold)) > 1


def test_the_curve():
    assert precision_curve(np.zeros(0), np.zeros(0, bool), 3).tolist() == [0] * 101
    curve = precision_curve(np.array([0.1, 0.9, 0.5, 0.5]), np.array([True, True, False, True]), 4)
    # By score: right, wrong, right, right; interpolated from the right: 1, 3/4, 3/4, 3/4.
    assert curve[:26].tolist() == [1] * 26 and curve[26:76].tolist() == [0.75] * 50 and not curve[76:].any()


def test_kinds_of_errors(pictures):
    at_half = classify(pictures[0], 0, 0.5)
    assert at_half.kinds.tolist() == [HIT, HIT, DUPLICATE, IGNORED, LOCALISATION]
    assert at_half.targets.tolist() == [1, 0, 0, 0, 1] and not at_half.missed.any()
    strict = classify(pictures[0], 5, 0.75)
    assert strict.kinds.tolist() == [HIT, LOCALISATION, HIT, IGNORED, LOCALISATION]
    elsewhere = classify(pictures[1], 0, 0.5)
    assert elsewhere.kinds.tolist() == [BACKGROUND] and elsewhere.missed.tolist() == [True]
    empty = classify(pictures[2], 0, 0.5)
    assert len(empty.kinds) == len(empty.targets) == len(empty.missed) == 0


def test_what_errors_cost(pictures):
    analysis = analyze_errors(pictures, 0, 0.5)
    assert analysis.hits == 2 and analysis.counts == {"localisation": 1, "duplicate": 1, "background": 1, "missed": 1}
    now = 67 / 101 * 2 / 3
    assert analysis.ap == pytest.approx(now) and analysis.iou_threshold == 0.5
    gains = {kind: gain + now for kind, gain in analysis.gains.items()}
    # Without the background both hits come first; without the missed one two instances are asked for.
    assert gains == pytest.approx(
        {"localisation": now, "duplicate": now, "background": 67 / 101, "missed": 2 / 3}
    )
    assert analysis.gain_false_positives + now == pytest.approx(67 / 101)
    assert analysis.gain_false_negatives + now == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="no instance in any picture"):
        analyze_errors(pictures[2:], 0, 0.5)


def test_a_localisation_error_is_repaired_once_for_each_instance(pictures):
    alone = [pictures[0].__class__(**{**vars(pictures[0]), "matches": np.full((10, 5), -1)})]
    analysis = analyze_errors(alone, 0, 0.65)
    # Nothing found: 1.0 and 1.0 are duplicates without a finder, 0.6 and 0.3 point at one instance each.
    assert analysis.counts == {"localisation": 2, "duplicate": 2, "background": 0, "missed": 0}
    assert analysis.ap == 0 and analysis.gains["localisation"] > 0 and analysis.gains["missed"] == pytest.approx(0)


def test_a_picture_where_nothing_was_found(pictures):
    first, second, third = matched(FOUND[:1])
    assert first.detections.dtype == first.instances.dtype == first.matches.dtype == np.int64
    assert first.scores.dtype == np.float64 and first.ignored.dtype == bool
    assert first.ious.shape == (0, 2) and first.matches.shape == first.ignored.shape == (10, 0)
    assert classify(first, 0, 0.5).missed.tolist() == [True, True]


def test_a_picture_alone_and_overlaps_that_equal_a_threshold(pictures):
    assert mean_average_precision(pictures[:1]) == pytest.approx(np.mean([average_precision(pictures[:1], k) for k in range(10)]))
    overlaps = np.array([[0.5], [np.nextafter(0.5, 0)], [0.1], [np.nextafter(0.1, 0)]])
    nobody = np.full((1, 4), -1)
    alone = PictureMatches(1, np.arange(4), np.zeros(4), np.zeros(1, int), overlaps, nobody, nobody > 0)
    assert classify(alone, 0, 0.5).kinds.tolist() == [DUPLICATE, LOCALISATION, LOCALISATION, BACKGROUND]


def test_a_detection_where_no_instance_is_points_at_none():
    picture = matched([(3, [5, 5, 9, 9], 0.5)])[2]
    assert picture.ious.shape == (1, 0) and picture.instances.dtype == np.int64
    errors = classify(picture, 0, 0.5)
    assert errors.kinds.tolist() == [BACKGROUND] and errors.targets.tolist() == [-1] and len(errors.missed) == 0
