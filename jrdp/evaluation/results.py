"""COCO result lists: making them from detections, reading, checking and writing them."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from pycocotools import mask as coco_mask

from jrdp.boxes import overlap
from jrdp.errors import UserError
from jrdp.files import read_json, write_json
from jrdp.data.annotations import find_image, is_share
from jrdp.data.naming import same_name
from jrdp.data.shapes import checked_rle, far_number, finite_numbers
from jrdp.evaluation.ground_truth import GroundTruth


_FEW_BOXES, _TELLING_BOXES = 8, 1000  # fewer do not tell how their numbers are meant, and so many are enough
# How much better corners fit that are read as such: small objects twice, those that fill their picture a quarter. Boxes that
# are all too large may fit a quarter better as corners, too, so that is told and not refused.
_CLEARLY, _PERHAPS = 2.0, 1.2


def box_results(
    image_id: int | str, boxes: np.ndarray, scores: np.ndarray, category_id: int = 1
) -> list[dict]:
    """COCO box results of one picture, in the order given.

    boxes: float32 `[K, 4]` (x1, y1, x2, y2) in the photograph's pixels; written as (x, y, x2 - x1 + 1, y2 - y1 + 1),
    convention 23. scores: `[K]`. category_id: the id that the annotation file gives the salient class.
    """
    boxes = np.asarray(boxes, dtype=np.float32).reshape(-1, 4)
    one = np.float32(1)
    xywh = np.stack(
        [boxes[:, 0], boxes[:, 1], boxes[:, 2] - boxes[:, 0] + one, boxes[:, 3] - boxes[:, 1] + one], axis=1
    )
    return [
        {"image_id": image_id, "category_id": category_id, "bbox": box, "score": score}
        for box, score in zip(xywh.tolist(), _scores(scores, len(boxes)))
    ]


def mask_results(image_id: int | str, rles: list[dict], scores: np.ndarray, category_id: int = 1) -> list[dict]:
    """COCO mask results of one picture, in the order given; `rles` as `encode_mask` makes them."""
    return [
        {"image_id": image_id, "category_id": category_id, "segmentation": rle, "score": score}
        for rle, score in zip(rles, _scores(scores, len(rles)))
    ]


def read_results(source: str | Path | list) -> list:
    """The result list in a COCO results file, or `source` itself if it is a list already; content unchecked.

    A file of the form {"annotations": [...]} is accepted too. Raises `UserError` for any other file.
    """
    content = source if isinstance(source, list) else read_json(source, "results file")
    if isinstance(content, dict) and isinstance(content.get("annotations"), list):
        content = content["annotations"]
    if not isinstance(content, list):
        raise UserError(f"the results file {source} is not a COCO results file: it must be a list of results")
    return content


def has_segmentation(entry: dict) -> bool:
    """Whether a result has a mask at all; detectors of boxes write null, [] or [[]] there. A mask may still be empty."""
    segmentation = entry.get("segmentation")
    return any(segmentation) if isinstance(segmentation, list) else segmentation is not None


def write_results(path: str | Path, results: list[dict]) -> None:
    """Write a COCO results file in one step."""
    write_json(path, results)


def check_results(
    results: list, ground_truth: GroundTruth, where: str = "results", ours: bool = False
) -> list[dict]:
    """The results as class-agnostic COCO annotations for `ground_truth.iou_type`, in the order given.

    ours: the boxes are known to be [x, y, width, height]; a network that has learnt little may find such that look otherwise.

    Each gets category id 1, an id 1, 2, ..., its area and, for "segm", a compressed RLE and the RLE's box; a `bbox`
    beside a mask is left aside, so that mask metrics depend on masks only. Raises `UserError` naming the first
    result that has an unknown image id, no finite score, or not what the iou_type needs.
    """
    checked = []
    by_name = _images_by_name(ground_truth)
    names: dict = {}  # image id -> the longest file_name that results of it have
    for position, entry in enumerate(results):
        place = f"{where}: result {position}"
        if not isinstance(entry, dict) or "image_id" not in entry:
            raise UserError(f"{place} has no image_id")
        image = _image_of(entry, ground_truth, by_name, place)
        _refuse_two_names(entry, image, names, place)
        score = entry.get("score")
        if not finite_numbers([score]):
            found = f"score is {score!r:.60}" if "score" in entry else f"its entries are {', '.join(map(str, entry)):.200}"
            raise UserError(f"{place} has no finite score (a number): {found}")
        result = {"id": position + 1, "image_id": image["id"], "category_id": 1, "score": float(score)}
        if ground_truth.iou_type == "bbox":
            result["bbox"] = _box(entry.get("bbox"), place)
            result["area"] = result["bbox"][2] * result["bbox"][3]
        else:
            if not has_segmentation(entry):
                raise UserError(f"{place} has no segmentation; boxes alone are evaluated with --iou-type bbox")
            try:
                result["segmentation"] = checked_rle(entry["segmentation"], image["height"], image["width"])
            except ValueError as error:
                raise UserError(f"{place}: bad segmentation: {error}") from error
            result["area"] = float(coco_mask.area(result["segmentation"]))
            result["bbox"] = [float(number) for number in coco_mask.toBbox(result["segmentation"])]
        checked.append(result)
    if ground_truth.iou_type == "bbox" and not ours:
        _refuse_other_boxes(checked, ground_truth, where)
    _tell_repetitions(checked, where)
    return checked


def _refuse_two_names(entry: dict, image: dict, names: dict, place: str) -> None:
    """Raise `UserError` where results of two pictures, "train/1.jpg" and "val/1.jpg", would count for the one image "1.jpg"."""
    name = entry.get("file_name")
    if name is None:
        return
    before = names.setdefault(image["id"], name)
    if name == before or same_name(name) in _ends(before):
        return
    if same_name(before) not in _ends(name):
        raise UserError(
            f"{place} is of {name!r:.80}, an earlier one of {before!r:.80}, and both would be the image {image['file_name']!r:.80} of "
            "the ground truth: leave out the results of the other folder, or write file_name with its folder in the ground truth"
        )
    names[image["id"]] = name


def _tell_repetitions(results: list[dict], where: str) -> None:
    """Say on standard error how many results are there again: only one of such can be right, and AP falls to half.

    They come of pictures that several processes have tested, or of runs whose files were joined.
    """
    different = {
        (result["image_id"], result["score"], *result["bbox"], str(result.get("segmentation"))) for result in results
    }
    again = len(results) - len(different)
    if again:
        print(
            f"jrdp: {where}: {again} of {len(results)} results repeat another's picture, shape and score; each counts as wrong",
            file=sys.stderr,
        )


def _refuse_other_boxes(results: list[dict], ground_truth: GroundTruth, where: str) -> None:
    """Raise `UserError` for boxes that are surely no [x, y, width, height] in pixels, since AP would be 0 without a word.

    Shares of the picture are smaller than a pixel; corners [x1, y1, x2, y2] fit the ground truth when read as such.
    """
    told = results[:_TELLING_BOXES]
    if len(told) < _FEW_BOXES:
        return
    form = None
    if 2 * sum(is_share(result["bbox"]) for result in told) > len(told):
        form = "shares of the picture"
    elif all(result["bbox"][2] > result["bbox"][0] and result["bbox"][3] > result["bbox"][1] for result in told):
        bounds: dict = {}
        for annotation in ground_truth.annotations:
            x, y, width, height = annotation["bbox"]
            bounds.setdefault(annotation["image_id"], []).append((x, y, x + width, y + height))
        fits = corners_fit = 0.0
        for result in told:
            x, y, right, bottom = result["bbox"]
            near = bounds.get(result["image_id"], [])
            fits += max((overlap((x, y, right, bottom), other) for other in near), default=0)
            corners_fit += max((overlap((x, y, right - x, bottom - y), other) for other in near), default=0)
        if corners_fit > _CLEARLY * fits:
            form = "corners, [x1, y1, x2, y2]"
        elif corners_fit > _PERHAPS * fits:
            print(
                f"jrdp: {where}: the boxes are taken as [x, y, width, height], and would fit better as corners, [x1, y1, x2, y2]: "
                f"the first is {told[0]['bbox']}",
                file=sys.stderr,
            )
    if form:
        raise UserError(f"{where}: the boxes look like {form}, first {told[0]['bbox']}; bbox is [x, y, width, height] in pixels")


def _images_by_name(ground_truth: GroundTruth) -> dict[str, list[dict]]:
    """The images of each file name: by the whole name, and by every end of it that begins after a folder."""
    names: dict[str, list[dict]] = {}
    for image in ground_truth.images.values():
        for key in {same_name(image["file_name"]), *_ends(image["file_name"])}:
            names.setdefault(key, []).append(image)
    return names


def _ends(file_name: str) -> list[str]:
    """ "a/b.png" and "b.png" for "a/b.png": what names the same picture from another folder, longest first."""
    parts = same_name(file_name).replace("\\", "/").split("/")
    return ["/".join(parts[start:]) for start in range(len(parts))]


def _image_of(entry: dict, ground_truth: GroundTruth, by_name: dict[str, list[dict]], place: str) -> dict:
    """The image that a result is of: by its `file_name` where it has one, since predictions number their pictures."""
    image_id, name = entry["image_id"], entry.get("file_name")
    by_id = find_image(ground_truth.images, image_id)
    if name is None and by_id is None and isinstance(image_id, str):
        name = image_id  # some programs name a picture there
        if same_name(name) not in by_name:
            raise UserError(f"{place} is of image id {image_id!r:.80}, which is no id and no file_name in the ground truth")
    if name is None:
        if by_id is None:
            raise UserError(f"{place} is of image id {image_id!r}, which the ground truth does not have")
        return by_id
    if not isinstance(name, str):
        raise UserError(f"{place} has a file_name that is no text: {name!r:.60}")
    found = next((by_name[end] for end in (same_name(name), *_ends(name)) if end in by_name), [])
    if len(found) == 1:
        return found[0]
    if not found:
        raise UserError(f"{place} is of the picture {name!r:.80}, which the ground truth does not have")
    if by_id in found and same_name(by_id["file_name"]) == same_name(name):
        return by_id
    raise UserError(f"{place} is of the picture {name!r:.80}, and {len(found)} images of the ground truth have that name; write file_name with its folder")


def _box(box: object, place: str) -> list[float]:
    if not finite_numbers(box) or len(box) != 4:
        raise UserError(f"{place} has no bbox of four finite numbers (x, y, width, height)")
    far = far_number(box)
    if far is not None:
        raise UserError(f"{place} has a bbox with the number {far:g}: no picture is that large")
    return [float(number) for number in box]


def _scores(scores: np.ndarray, count: int) -> list[float]:
    values = np.asarray(scores).reshape(-1).tolist()
    if len(values) != count:
        raise ValueError(f"{count} detections but {len(values)} scores")
    return values
