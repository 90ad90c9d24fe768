"""What three sides found on one picture, held together: the detections of Jittor, of the twin, and of its float64."""

from __future__ import annotations

from typing import Optional

import numpy as np

from jrdp.boxes import iou
from jrdp.comparison.decisions import Replay, Rounding, explain, locate, read_heads, rounding_of
from jrdp.comparison.floor import FACTOR, FLOOR, Verdict, judge_gap
from jrdp.comparison.measures import match_greedily
from jrdp.config import FcosConfig

SAME_DETECTION = 0.9  # IoU from which two boxes are the same detection, where locations are not known
PIXEL_FLOOR = 16 * 480 * 2.0**-24  # 16 units in the last place of a coordinate below 512
PARTS = {"box": "boxes", "score": "scores", "mask": "masks"}
SHOWN = 3  # differing detections that a failure names


def compare_found(
    ours: dict, single: Optional[dict], double: dict, size: tuple[int, int], config: FcosConfig, limits: dict
) -> dict:
    """The findings of one picture in plain numbers, with `problems` (failures) and `explained` (what is none).

    ours, single, double: all stages and detections of Jittor, of the twin in float32 (None: only the tolerances count)
    and of the twin in float64. size: (height, width) without padding. limits: `box`, `score`, `mask`.
    """
    heads, other = read_heads(double, size), None if single is None else read_heads(single, size)
    rounding = rounding_of(other, heads, FACTOR, FLOOR)
    replay = Replay(heads, config, rounding)
    places, exact_places = _places(ours, size), _places(double, size)
    twin_places = None if single is None else _places(single, size)
    counts = [len(_part(side, "boxes")) for side in (ours, single or double, double)]
    problems: list[str] = []
    told: list[dict] = []
    known = exact_places is not None and np.array_equal(np.sort(exact_places), replay.kept())
    if not known:
        behind = "" if exact_places is None else _nearest(replay, exact_places, replay.kept(), rounding)
        problems.append(f"the twin's detections are not those that the released rules make of its head answers{behind}")
    if places is None:
        problems.append("Jittor's detections are not at the boxes and scores of its own head answers")
    if places is None or exact_places is None:
        pairs = match_greedily(iou(_part(ours, "boxes"), _part(double, "boxes")), SAME_DETECTION)
    else:
        at = {int(place): row for row, place in enumerate(exact_places)}
        pairs = [(row, at[int(place)]) for row, place in enumerate(places) if int(place) in at]
    if not len(pairs) == counts[0] == counts[2]:
        reasons = explain(replay, places, rounding, read_heads(ours, size)) if known and places is not None else None
        if reasons:
            told += [{"side": "Jittor", **reason.as_json(heads), "text": reason.told(heads)} for reason in reasons]
        else:
            behind = _nearest(replay, places, exact_places, rounding) if known and places is not None else ""
            problems.append(f"{counts[0]} and {counts[2]} detections, {len(pairs)} of them the same{behind}")
    if known and twin_places is not None and set(twin_places) != set(exact_places):
        reasons = explain(replay, twin_places, rounding, other)
        told += [{"side": "PyTorch", **reason.as_json(heads), "text": reason.told(heads)} for reason in reasons or []]
        if reasons is None:
            problems.append("PyTorch's float32 finds another set than its float64, and no close decision explains it")
    result: dict = {"counts": counts}
    result["matched"] = len(pairs)
    result["same_order"] = _in_order(pairs)
    if not result["same_order"]:
        problems.append("the detections come in another order")
    verdicts = _gaps(ours, single, double, pairs, exact_places, twin_places, limits)
    problems += [str(verdict) for verdict in verdicts if not verdict.passed]
    flipped, margin = _flipped_pixels(ours, double, pairs)
    mask = verdicts[-1]
    if flipped and margin > mask.allowed:
        allowed = f"allowed {mask.allowed:.3g}"
        problems.append(f"{flipped} mask pixels differ, at up to {margin:.3g} from one half; {allowed}")
    result |= {key: verdict.as_json() for key, verdict in zip(PARTS, verdicts)}
    result |= {"flipped_pixels": flipped, "flipped_margin": margin, "explained": told, "problems": problems}
    return result


def _part(side: dict, key: str) -> np.ndarray:
    return side[f"detections/0/{key}"]


def _places(side: dict, size: tuple[int, int]) -> Optional[np.ndarray]:
    heads = read_heads(side, size)
    return None if heads is None else locate(heads, _part(side, "boxes"), _part(side, "scores"))


def _gaps(ours, single, double, pairs, places, twin_places, limits) -> list[Verdict]:
    """Boxes, scores and mask probabilities of the detections that all sides have."""
    twin: dict[int, int] = {}
    if single is not None and places is not None and twin_places is not None:
        rows = {int(place): row for row, place in enumerate(twin_places)}
        twin = {row: rows[int(place)] for row, place in enumerate(places) if int(place) in rows}
    elif single is not None:
        similarity = iou(_part(double, "boxes"), _part(single, "boxes"))
        twin = dict(match_greedily(similarity, SAME_DETECTION))
    if single is not None:
        pairs = [(a, b) for a, b in pairs if b in twin]
    mine, reference = [a for a, _ in pairs], [b for _, b in pairs]
    third = [twin[b] for b in reference] if single is not None else []
    out = []
    for name, key, floor in (("boxes, px", "box", PIXEL_FLOOR), ("scores", "score", FLOOR), ("masks", "mask", FLOOR)):
        own, exact = _part(ours, PARTS[key])[mine], _part(double, PARTS[key])[reference]
        theirs = None if single is None else _part(single, PARTS[key])[third]
        out.append(judge_gap(name, own, theirs, exact, limits[key], floor=floor))
    return out


def _flipped_pixels(ours: dict, double: dict, pairs: list[tuple[int, int]]) -> tuple[int, float]:
    """Pixels of the 32x32 masks on different sides of one half, and float64's largest distance from it among them."""
    mine, reference = [a for a, _ in pairs], [b for _, b in pairs]
    masks, exact = _part(ours, "masks")[mine], _part(double, "masks")[reference]
    flipped = (masks > 0.5) != (exact > 0.5)
    return int(flipped.sum()), float(np.abs(exact - 0.5)[flipped].max(initial=0))


def _nearest(replay: Replay, places: np.ndarray, others: np.ndarray, rounding: Rounding) -> str:
    """The decisions behind the detections that only one of two sets has, in words."""
    alone = sorted(set(places.tolist()) ^ set(others.tolist()))[:SHOWN]
    reasons = [replay.reason(place, rounding).told(replay.heads) for place in alone]
    return "; not explained by close decisions: " + "; ".join(reasons)


def _in_order(pairs: list[tuple[int, int]]) -> bool:
    """Whether matched detections come in the same order on both sides."""
    seconds = [second for _, second in sorted(pairs)]
    return seconds == sorted(seconds)
