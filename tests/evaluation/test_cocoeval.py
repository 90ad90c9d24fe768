"""The numbers that COCO's evaluation is set to, against pycocotools' own."""

import numpy as np
import pytest
from pycocotools.cocoeval import Params

from jrdp.evaluation.cocoeval import COCO_AREAS, MAX_DETECTIONS, threshold_index


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_sizes_and_numbers_of_detections_are_those_of_coco(iou_type):
    theirs = Params(iou_type)
    assert dict(zip(theirs.areaRngLbl, map(tuple, theirs.areaRng))) == COCO_AREAS
    assert tuple(theirs.maxDets) == MAX_DETECTIONS


def test_a_threshold_is_found_by_closeness():
    thresholds = Params("bbox").iouThrs
    assert [threshold_index(thresholds, value) for value in (0.5, 0.7, 0.9, 0.95)] == [0, 4, 8, 9]
    with pytest.raises(ValueError, match="no IoU threshold 0.72 among"):
        threshold_index(thresholds, 0.72)
    with pytest.raises(ValueError, match="no IoU threshold 0.4 among"):
        threshold_index(np.array([0.5]), 0.4)
