"""Planted errors are counted exactly, and every gain is what one gets by really repairing the results."""

import copy

import numpy as np
import pytest

from jrdp.evaluation.cocoeval import run_cocoeval
from jrdp.evaluation.coco_metrics import evaluate
from jrdp.analysis.errors import (
    BACKGROUND,
    DUPLICATE,
    HIT,
    KINDS,
    LOCALISATION,
    analyze_errors,
    classify,
)
from jrdp.evaluation.ground_truth import load_ground_truth
from jrdp.analysis.matching import match_pictures
from jrdp.evaluation.results import check_results
from jrdp.data.rle import encode_mask

HEIGHT, WIDTH = 120, 400
SIDE = 40
IOU_TYPES = ("bbox", "segm")


def square(image_id, x, y, w=SIDE, h=SIDE):
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[y : y + h, x : x + w] = True
    return {"image_id": image_id, "bbox": [x, y, w, h], "segmentation": encode_mask(mask)}


def perfect(pictures=5, per_picture=4):
    """Squares far apart in the upper half; the lower half is background. Every one detected, score 0.9."""
    images = [{"id": i, "file_name": f"{i}.jpg", "height": HEIGHT, "width": WIDTH} for i in range(pictures)]
    found = [square(i, 10 + 95 * k, 5) for i in range(pictures) for k in range(per_picture)]
    truth = {"images": images, "annotations": copy.deepcopy(found), "categories": [{"id": 1, "name": "salient"}]}
    return truth, [{**result, "score": 0.9} for result in found]


def errors_of(truth, results, iou_type="segm", iou=0.5):
    ground_truth = load_ground_truth(truth, iou_type)
    coco_eval = run_cocoeval(ground_truth, check_results(results, ground_truth))
    pictures = match_pictures(coco_eval)
    index = int(np.argmin(np.abs(coco_eval.params.iouThrs - iou)))
    return analyze_errors(pictures, index, coco_eval.params.iouThrs[index]), pictures, index


def shifted(result, by, score=None):
    x, y, _, _ = result["bbox"]
    return {**square(result["image_id"], x + by, y), "score": result["score"] if score is None else score}


# Shifting a square of 40 by d leaves an IoU of (40 - d) / (40 + d).
SHIFT_TO_ONE_HALF_MINUS, SHIFT_TO_ONE_TENTH_PLUS, SHIFT_TO_BACKGROUND = 14, 32, 33


@pytest.mark.parametrize("iou_type", IOU_TYPES)
def test_no_error(iou_type):
    errors, _, _ = errors_of(*perfect(), iou_type)
    assert errors.ap == 1.0 and errors.hits == 20
    assert errors.counts == {kind: 0 for kind in KINDS} and errors.gains == {kind: 0.0 for kind in KINDS}
    assert errors.gain_false_positives == errors.gain_false_negatives == 0.0


@pytest.mark.parametrize("iou_type", IOU_TYPES)
@pytest.mark.parametrize("count", [1, 3, 20])
def test_missed(iou_type, count):
    truth, results = perfect()
    errors, _, _ = errors_of(truth, results[count:], iou_type)
    assert errors.counts == {"localisation": 0, "duplicate": 0, "background": 0, "missed": count}
    assert errors.hits == 20 - count
    # Precision 1 at those of the recalls 0, 0.01, ... 1 that are reached; 0 even at recall 0 with nothing found.
    expected = float(np.mean(np.linspace(0, 1, 101) <= (20 - count) / 20)) if count < 20 else 0.0
    assert errors.ap == pytest.approx(expected)
    assert errors.gains["missed"] == pytest.approx(1 - expected)
    assert errors.gains["missed"] == errors.gain_false_negatives
    assert errors.gains["localisation"] == errors.gains["duplicate"] == errors.gains["background"] == 0.0


@pytest.mark.parametrize("iou_type", IOU_TYPES)
@pytest.mark.parametrize("count", [1, 4])
def test_duplicates(iou_type, count):
    truth, results = perfect()
    below = errors_of(truth, results + [{**result, "score": 0.1} for result in results[:count]], iou_type)[0]
    assert below.counts == {"localisation": 0, "duplicate": count, "background": 0, "missed": 0}
    assert below.ap == 1.0 and below.gains["duplicate"] == 0.0  # after all instances are found they cost nothing
    first = [shifted(result, 1, 0.95) for result in results[:count]]  # better scored: these are the hits
    above = errors_of(truth, first + results, iou_type)[0]
    assert above.counts["duplicate"] == count and above.hits == 20
    assert above.ap < 1.0 and above.ap + above.gains["duplicate"] == pytest.approx(1.0)


@pytest.mark.parametrize("iou_type", IOU_TYPES)
@pytest.mark.parametrize("count", [1, 6])
def test_background(iou_type, count):
    truth, results = perfect()
    false = [{**square(k % 5, 10 + 60 * (k // 5), 70), "score": 0.99} for k in range(count)]
    errors, _, _ = errors_of(truth, results + false, iou_type)
    assert errors.counts == {"localisation": 0, "duplicate": 0, "background": count, "missed": 0}
    assert errors.ap == pytest.approx(20 / (20 + count))  # all of them come before the first hit
    assert errors.gains["background"] == errors.gain_false_positives == pytest.approx(count / (20 + count))


@pytest.mark.parametrize("iou_type", IOU_TYPES)
@pytest.mark.parametrize("shift", [SHIFT_TO_ONE_HALF_MINUS, SHIFT_TO_ONE_TENTH_PLUS])
@pytest.mark.parametrize("count", [1, 5])
def test_localisation(iou_type, shift, count):
    truth, results = perfect()
    moved = [shifted(result, shift) for result in results[:count]] + results[count:]
    errors, _, _ = errors_of(truth, moved, iou_type)
    assert errors.counts == {"localisation": count, "duplicate": 0, "background": 0, "missed": 0}
    assert errors.hits == 20 - count
    assert errors.gains["localisation"] == pytest.approx(1 - errors.ap) and errors.ap < 1
    assert errors.gains["missed"] == 0.0


def test_the_borders_between_the_kinds():
    truth, results = perfect()
    for shift, hits, counts in (
        (13, 20, (0, 0)),  # IoU 27 / 53 = 0.509: a hit
        (SHIFT_TO_ONE_HALF_MINUS, 19, (1, 0)),  # 26 / 54 = 0.481
        (SHIFT_TO_ONE_TENTH_PLUS, 19, (1, 0)),  # 8 / 72 = 0.111
        (SHIFT_TO_BACKGROUND, 19, (0, 1)),  # 7 / 73 = 0.096: background, and its instance is missed
    ):
        errors, _, _ = errors_of(truth, [shifted(results[0], shift)] + results[1:])
        assert errors.hits == hits, shift
        assert (errors.counts["localisation"], errors.counts["background"]) == counts, shift
        assert errors.counts["missed"] == counts[1]


def test_the_threshold_decides():
    truth, results = perfect()
    moved = [shifted(results[0], 10)] + results[1:]  # IoU 0.6
    assert errors_of(truth, moved, iou=0.5)[0].counts["localisation"] == 0
    assert errors_of(truth, moved, iou=0.7)[0].counts["localisation"] == 1


def test_all_kinds_at_once_and_each_detection_by_name():
    truth, results = perfect()
    kept = results[2:]  # 2 missed: in picture 0
    planted = [shifted(kept[5], 20, 0.3), shifted(kept[6], 20, 0.3)]  # found instances: localisation all the same
    planted += [{**kept[k], "score": 0.5} for k in (8, 9, 10)]
    planted += [{**square(k, 200, 70), "score": 0.4} for k in range(4)]
    errors, pictures, index = errors_of(truth, kept + planted)
    assert errors.counts == {"localisation": 2, "duplicate": 3, "background": 4, "missed": 2}
    assert errors.hits == 18
    names = {}
    for picture in pictures:
        verdict = classify(picture, index, 0.5)
        names.update(zip(picture.detections.tolist(), verdict.kinds.tolist()))
        assert picture.image_id != 0 or verdict.missed.tolist() == [True, True, False, False]
    expected = [HIT] * 18 + [LOCALISATION] * 2 + [DUPLICATE] * 3 + [BACKGROUND] * 4
    assert [names[k] for k in range(len(expected))] == expected


def test_an_instance_with_a_localisation_error_is_not_missed_too():
    truth, results = perfect(1, 2)
    errors, _, _ = errors_of(truth, [shifted(results[0], 20)])
    assert errors.counts == {"localisation": 1, "duplicate": 0, "background": 0, "missed": 1}


def test_only_one_localisation_error_can_be_repaired_for_an_instance():
    truth, results = perfect(1, 1)
    errors, _, _ = errors_of(truth, [shifted(results[0], 20, 0.8), shifted(results[0], 24, 0.9)])
    assert errors.counts["localisation"] == 2 and errors.ap == 0
    assert errors.gains["localisation"] == 1.0  # the other one disappears


def test_crowd_regions_make_neither_errors_nor_hits():
    truth, results = perfect(2, 3)
    truth["annotations"][0]["iscrowd"] = 1
    errors, _, _ = errors_of(truth, results + [{**results[0], "score": 0.95}])
    assert errors.ap == 1.0 and errors.hits == 5 and errors.counts == {kind: 0 for kind in KINDS}


def test_without_instances():
    truth, results = perfect(2, 1)
    with pytest.raises(ValueError, match="no instance"):
        errors_of({**truth, "annotations": []}, results)


def messy(seed):
    """Squares detected well, badly, twice, not at all, with scores of one decimal, so that there are ties."""
    rng = np.random.default_rng(seed)
    truth, results = perfect(6, 4)
    found = []
    for result in results:
        for _ in range(int(rng.integers(0, 3))):
            x, y, _, _ = result["bbox"]
            dx, dy, dw, dh = (int(value) for value in rng.integers(-20, 21, 4) * rng.integers(0, 2))
            found.append(square(result["image_id"], max(x + dx, 0), max(y + dy, 0), SIDE + dw, SIDE + dh))
    found += [square(int(rng.integers(6)), int(rng.integers(300)), int(rng.integers(50, 70))) for _ in range(8)]
    return truth, [{**result, "score": round(float(rng.random()), 1)} for result in found]


@pytest.mark.parametrize("iou_type", IOU_TYPES)
@pytest.mark.parametrize("iou", [0.5, 0.7])
@pytest.mark.parametrize("seed", range(4))
def test_gains_are_those_of_really_repaired_results(iou_type, iou, seed):
    truth, results = messy(seed)
    errors, pictures, _ = errors_of(truth, results, iou_type, iou)
    metric = f"AP{round(100 * iou)}"
    assert errors.ap == pytest.approx(evaluate(truth, results, iou_type)[metric], abs=1e-12)

    kinds, targets, missed, found = {}, {}, set(), set()
    for picture, error in zip(pictures, errors.pictures):
        for detection, kind, target in zip(picture.detections.tolist(), error.kinds.tolist(), error.targets.tolist()):
            kinds[detection], targets[detection] = kind, int(picture.instances[target])
        missed |= set(picture.instances[error.missed].tolist())
        matched = picture.matches[0 if iou == 0.5 else 4]
        found |= set(picture.instances[matched[matched >= 0]].tolist())
    assert sum(errors.counts.values()) + errors.hits == len(results) + len(missed)
    assert min(errors.counts["localisation"], errors.counts["background"], len(missed)) > 0

    def ap(new_truth, new_results):
        return evaluate(new_truth, new_results, iou_type)[metric]

    def without(kind):
        return [result for index, result in enumerate(results) if kinds[index] != kind]

    def truth_with(keep):
        return {**truth, "annotations": [a for index, a in enumerate(truth["annotations"]) if keep(index)]}

    gains = {
        "duplicate": ap(truth, without(DUPLICATE)),
        "background": ap(truth, without(BACKGROUND)),
        "missed": ap(truth_with(lambda index: index not in missed), results),
    }
    repaired, taken = list(results), set(found)
    for index in sorted(range(len(results)), key=lambda i: -results[i]["score"]):  # stable, as evaluation is
        if kinds[index] == LOCALISATION:
            if targets[index] in taken:
                repaired[index] = None
            else:
                taken.add(targets[index])
                repaired[index] = {**truth["annotations"][targets[index]], "score": results[index]["score"]}
    gains["localisation"] = ap(truth, [result for result in repaired if result is not None])
    for kind in KINDS:
        assert errors.gains[kind] == pytest.approx(gains[kind] - errors.ap, abs=1e-12), kind
    only_hits = [result for index, result in enumerate(results) if kinds[index] == HIT]
    assert errors.gain_false_positives == pytest.approx(ap(truth, only_hits) - errors.ap, abs=1e-12)
    only_found = ap(truth_with(lambda index: index in found), results)
    assert errors.gain_false_negatives == pytest.approx(only_found - errors.ap, abs=1e-12)
