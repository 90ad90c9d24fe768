"""Which decisions lead from the head's answers to a set of detections, and by how much each was taken.

A detection is there or not, so rounding shows as a whole detection more or less where a decision was close: a score
against the threshold, which location is its level's best, an IoU against the suppression threshold, which of two
overlapping boxes has the higher score, the score of the last place. `replay` takes the released decisions in float64
from the answers of one side; `explain` finds the close ones that, taken the other way, give another side's set exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import FrozenSet, Iterable, Optional

import numpy as np

from jrdp.config import FcosConfig
from jrdp.models.shapes import LEVELS, STRIDES

SECOND_ORDER = 1e-9  # relative, of a probability: what its derivative leaves out
ARITHMETIC = 2.0**-22  # relative rounding of a few float32 operations on the way from the answers to a decision
MOST_TOGETHER = 3  # decisions taken the other way at once
MOST_CLOSE = 16  # close decisions that are tried in pairs and triples

THRESHOLD, BEST, LEVEL_TOP = "score against the threshold", "best of its level", "last place of its level"
ORDER, IOU, LAST = "order of two scores", "IoU against the NMS threshold", "score of the last place"


@dataclass(frozen=True)
class Heads:
    """One picture's head answers at all locations of P3..P7 together, row-major, in float64.

    level, cell: [L] of each location; logit, centre: [L]; boxes: [L, 4] clipped to the picture.
    """

    level: np.ndarray
    cell: np.ndarray
    logit: np.ndarray
    centre: np.ndarray
    boxes: np.ndarray

    @property
    def probability(self) -> np.ndarray:
        return _sigmoid(self.logit)

    @property
    def score(self) -> np.ndarray:
        return _sigmoid(self.logit) * _sigmoid(self.centre)

    def name(self, location: int) -> str:
        """"P4 location 123"."""
        return f"P{self.level[location]} location {self.cell[location]}"


@dataclass(frozen=True)
class Rounding:
    """How far each location's logit, centerness logit and box edges [L] may be from float64."""

    logit: np.ndarray
    centre: np.ndarray
    edge: np.ndarray

    def score(self, heads: Heads) -> np.ndarray:
        """The same of the score, by its derivatives: [L]."""
        p, q = _sigmoid(heads.logit), _sigmoid(heads.centre)
        return p * q * ((1 - p) * self.logit + (1 - q) * self.centre + ARITHMETIC)


@dataclass(frozen=True)
class Decision:
    """A decision of float64: about which location (and against which other), two numbers and what rounding allows."""

    kind: str
    subject: int
    other: int
    value: float
    limit: float
    rounding: float

    @property
    def margin(self) -> float:
        return abs(self.value - self.limit)

    @property
    def close(self) -> bool:
        return self.margin <= self.rounding

    def told(self, heads: Heads) -> str:
        where = heads.name(self.subject) + (f" and {heads.name(self.other)}" if self.other >= 0 else "")
        return (
            f"{self.kind}, {where}: {self.value:.7g} against {self.limit:.7g}, margin {self.margin:.2g}, "
            f"rounding {self.rounding:.2g}"
        )

    def as_json(self, heads: Heads) -> dict:
        values = {"kind": self.kind, "where": heads.name(self.subject), "value": self.value, "limit": self.limit}
        if self.other >= 0:
            values["against"] = heads.name(self.other)
        return {**values, "margin": self.margin, "rounding": self.rounding}


Flips = FrozenSet[tuple]  # (kind, subject, other) of decisions to be taken the other way


def read_heads(stages: dict[str, np.ndarray], size: tuple[int, int]) -> Optional[Heads]:
    """The heads of a picture without padding `size` from one side's stages; None where they are not all there."""
    if any(f"{name}_P{k}" not in stages for name in ("cls_logits", "bbox_reg", "centerness") for k in LEVELS):
        return None
    parts: list[list[np.ndarray]] = []
    height, width = size
    for level, stride in zip(LEVELS, STRIDES):
        logit = stages[f"cls_logits_P{level}"][0, 0].astype(np.float64)
        y, x = np.divmod(np.arange(logit.size), logit.shape[1])
        x, y = x * stride + stride // 2, y * stride + stride // 2
        left, top, right, bottom = stages[f"bbox_reg_P{level}"][0].reshape(4, -1).astype(np.float64)
        edges = np.stack([x - left, y - top, x + right, y + bottom], axis=1)
        boxes = np.clip(edges, 0, np.array([width - 1, height - 1, width - 1, height - 1]))
        centre = stages[f"centerness_P{level}"].reshape(-1).astype(np.float64)
        parts.append([np.full(logit.size, level), np.arange(logit.size), logit.ravel(), centre, boxes])
    return Heads(*(np.concatenate(column) for column in zip(*parts)))


def rounding_of(single: Optional[Heads], double: Heads, factor: float, floor: float) -> Rounding:
    """`factor` times PyTorch float32's largest distance to float64 on the level, plus `floor` of its largest value."""
    out = []
    for name in ("logit", "centre", "boxes"):
        reference = getattr(double, name)
        gap = np.zeros_like(reference) if single is None else np.abs(getattr(single, name) - reference)
        allowed = np.zeros(len(reference))
        for level in np.unique(double.level):
            own = double.level == level
            allowed[own] = factor * gap[own].max(initial=0) + floor * np.abs(reference[own]).max(initial=0)
        out.append(allowed)
    return Rounding(*out)


def locate(heads: Heads, boxes: np.ndarray, scores: np.ndarray) -> Optional[np.ndarray]:
    """The location that each detection [K] comes from, by box and score; None where one comes from none."""
    found, free = [], np.ones(len(heads.score), bool)
    all_scores = heads.score
    for box, score in zip(boxes.astype(np.float64), scores.astype(np.float64)):
        gap = np.abs(heads.boxes - box).max(axis=1) + 100 * np.abs(all_scores - score)
        gap[~free] = np.inf
        place = int(gap.argmin())
        if not gap[place] < 0.01:
            return None
        free[place] = False
        found.append(place)
    return np.array(found, np.int64)


class Replay:
    """The released decisions on one picture's heads, in float64; `kept(flips)` gives the detections' locations."""

    def __init__(self, heads: Heads, config: FcosConfig, rounding: Optional[Rounding] = None):
        self.heads, self.config = heads, config
        self.score = heads.score
        self.threshold = float(np.float32(config.pre_nms_threshold))
        self.nms_threshold = float(np.float32(config.nms_threshold))
        self.logit_threshold = float(np.log(self.threshold / (1 - self.threshold))) if self.threshold > 0 else -np.inf
        near = np.zeros(len(self.score)) if rounding is None else rounding.logit
        able = heads.logit > self.logit_threshold - near
        for level in np.unique(heads.level):
            own = heads.level == level
            able |= own & (heads.logit >= heads.logit[own].max() - near)
        self.able = np.flatnonzero(able)  # locations that can become candidates at all
        self.at = {int(location): position for position, location in enumerate(self.able)}
        self.iou = _iou(heads.boxes[self.able])

    def candidates(self, flips: Flips = frozenset()) -> np.ndarray:
        """Locations before suppression, ascending."""
        heads, out = self.heads, []
        for level in np.unique(heads.level):
            own = np.flatnonzero(heads.level == level)
            over = heads.logit[own] > self.logit_threshold
            over ^= _flipped(own, THRESHOLD, flips)
            if not over.any():
                over = heads.logit[own] >= heads.logit[own].max()
                instead = _flipped(own, BEST, flips)
                over = instead if instead.any() else over
            chosen = own[over]
            if len(chosen) > self.config.pre_nms_top_n:
                last = np.sort(self.score[chosen])[-self.config.pre_nms_top_n]
                chosen = chosen[(self.score[chosen] >= last) ^ _flipped(chosen, LEVEL_TOP, flips)]
            out.append(chosen)
        return np.concatenate(out)

    def survivors(self, flips: Flips = frozenset()) -> tuple[np.ndarray, dict[int, int]]:
        """Locations after suppression, ascending, and who suppressed each of the others."""
        chosen = self.candidates(flips)
        order = chosen[np.argsort(-self.score[chosen], kind="stable")].tolist()
        for kind, first, second in flips:
            if kind == ORDER and first in order and second in order:
                i, j = order.index(first), order.index(second)
                order[i], order[j] = order[j], order[i]
        positions = np.array([self.at[location] for location in order], np.int64)
        over = self.iou[positions][:, positions] > self.nms_threshold
        rank = {location: i for i, location in enumerate(order)}
        for kind, first, second in flips:
            if kind == IOU and first in rank and second in rank:
                i, j = rank[first], rank[second]
                over[i, j] = over[j, i] = ~over[i, j]
        by: dict[int, int] = {}
        removed = np.zeros(len(order), bool)
        for i, location in enumerate(order):
            if removed[i]:
                continue
            new = over[i] & ~removed
            new[: i + 1] = False
            by.update((order[j], location) for j in np.flatnonzero(new))
            removed |= new
        return np.sort(np.array(order, np.int64)[~removed]), by

    def kept(self, flips: Flips = frozenset()) -> np.ndarray:
        """Locations of the detections, ascending."""
        found, _ = self.survivors(flips)
        if len(found) > self.config.post_nms_top_n:
            found = found[(self.score[found] >= self.last_score(found)) ^ _flipped(found, LAST, flips)]
        return found

    def last_score(self, found: np.ndarray) -> float:
        return float(np.sort(self.score[found])[-self.config.post_nms_top_n])

    def close_decisions(self, rounding: Rounding) -> list[Decision]:
        """Every decision whose margin is within what rounding allows."""
        heads, spread = self.heads, rounding.score(self.heads)
        out: list[Decision] = []
        probability = heads.probability
        slope = probability * (1 - probability)
        for location in np.flatnonzero(np.abs(heads.logit - self.logit_threshold) <= rounding.logit):
            value, allowed = probability[location], slope[location] * rounding.logit[location]
            allowed += SECOND_ORDER * value
            out.append(Decision(THRESHOLD, int(location), -1, value, self.threshold, allowed))
        chosen = self.candidates()
        for level in np.unique(heads.level):
            own = np.flatnonzero(heads.level == level)
            best = own[heads.logit[own].argmax()]
            if heads.logit[best] <= self.logit_threshold + rounding.logit[best]:
                near = own[heads.logit[best] - heads.logit[own] <= 2 * rounding.logit[own]]
                for location in near[near != best]:
                    values = heads.logit[location], heads.logit[best]
                    out.append(Decision(BEST, int(location), int(best), *values, 2 * rounding.logit[location]))
            above = own[heads.logit[own] > self.logit_threshold]
            if len(above) > self.config.pre_nms_top_n:
                last = float(np.sort(self.score[above])[-self.config.pre_nms_top_n])
                out += self._near(LEVEL_TOP, above, last, spread)
        positions = np.array([self.at[int(location)] for location in chosen], np.int64)
        iou, boxes = self.iou[positions][:, positions], heads.boxes[chosen]
        allowed = _iou_rounding(boxes, iou, rounding.edge[chosen])
        for i, j in np.argwhere(np.triu(np.abs(iou - self.nms_threshold) <= allowed, 1)):
            out.append(Decision(IOU, int(chosen[i]), int(chosen[j]), iou[i, j], self.nms_threshold, allowed[i, j]))
        scores, spreads = self.score[chosen], spread[chosen]
        order = np.abs(scores[:, None] - scores) <= spreads[:, None] + spreads
        for i, j in np.argwhere(np.triu(order & (iou > self.nms_threshold - allowed), 1)):
            out.append(Decision(ORDER, int(chosen[i]), int(chosen[j]), scores[i], scores[j], spreads[i] + spreads[j]))
        found, _ = self.survivors()
        if len(found) > self.config.post_nms_top_n:
            out += self._near(LAST, found, self.last_score(found), spread)
        return out

    def _near(self, kind: str, found: np.ndarray, last: float, spread: np.ndarray) -> list[Decision]:
        allowed = spread[found] + spread[found[np.abs(self.score[found] - last).argmin()]]
        near = np.abs(self.score[found] - last) <= allowed
        return [Decision(kind, int(i), -1, self.score[i], last, a) for i, a in zip(found[near], allowed[near])]

    def reason(self, location: int, rounding: Rounding) -> Decision:
        """The decision that keeps a location out of the set, or, of one that is in it, the one nearest to doing so."""
        heads, spread = self.heads, rounding.score(self.heads)
        p = heads.probability
        if location not in self.at or location not in self.candidates():
            allowed = p[location] * (1 - p[location]) * rounding.logit[location]
            return Decision(THRESHOLD, location, -1, p[location], self.threshold, allowed)
        found, by = self.survivors()
        if location in by:
            return self._iou_decision(location, by[location], rounding)
        options = []
        for other in found:
            if other != location and self.score[other] >= self.score[location]:
                options.append(self._iou_decision(location, int(other), rounding))
        if len(found) > self.config.post_nms_top_n:
            last = self.last_score(found)
            options.append(Decision(LAST, location, -1, self.score[location], last, 2 * spread[location]))
        allowed = p[location] * (1 - p[location]) * rounding.logit[location]
        options.append(Decision(THRESHOLD, location, -1, p[location], self.threshold, allowed))
        if location not in self.kept():
            options = [decision for decision in options if decision.kind == LAST] or options
        return min(options, key=lambda decision: decision.margin / abs(decision.limit))

    def _iou_decision(self, location: int, other: int, rounding: Rounding) -> Decision:
        pair = np.array([location, other])
        iou = _iou(self.heads.boxes[pair])
        allowed = _iou_rounding(self.heads.boxes[pair], iou, rounding.edge[pair])
        return Decision(IOU, location, other, float(iou[0, 1]), self.nms_threshold, float(allowed[0, 1]))


def explain(
    replay: Replay, target: Iterable[int], rounding: Rounding, other: Optional[Heads] = None
) -> Optional[list[Decision]]:
    """The fewest close decisions of float64 that, taken the other way, give exactly the set `target`.

    None where there are none within the rounding (or more than are tried); empty where the sets are equal already.
    other: the heads of the side that has this set; the decisions that come out differently there are tried first.
    """
    wanted, base = np.sort(np.fromiter(target, np.int64)), replay.kept()
    if np.array_equal(base, wanted):
        return []
    close = [decision for decision in replay.close_decisions(rounding) if decision.close]
    if other is not None:
        differing = [d for d in close if _differs(d, other)]
        if differing and np.array_equal(replay.kept(_as_flips(differing)), wanted):
            return _fewest(replay, differing, wanted)
    close.sort(key=lambda d: d.margin / d.rounding if d.rounding else 0.0)
    differing, of_use = np.setxor1d(base, wanted), []
    for decision in close:
        alone = replay.kept(_as_flips([decision]))
        if np.array_equal(alone, wanted):
            return [decision]
        if np.isin(np.setxor1d(alone, base), differing).any():
            of_use.append(decision)  # the others concern what is suppressed by somebody else all the same
    close = of_use[:MOST_CLOSE]
    for count in range(2, MOST_TOGETHER + 1):
        for several in combinations(close, count):
            if np.array_equal(replay.kept(_as_flips(several)), wanted):
                return list(several)
    return None


def _fewest(replay: Replay, decisions: list[Decision], wanted: np.ndarray) -> list[Decision]:
    """Without those that change nothing."""
    needed = list(decisions)
    for decision in decisions:
        fewer = [d for d in needed if d is not decision]
        if np.array_equal(replay.kept(_as_flips(fewer)), wanted):
            needed = fewer
    return needed


def _differs(decision: Decision, other: Heads) -> bool:
    """Whether another side's answers decide this the other way."""
    a, b = decision.subject, decision.other
    if decision.kind == THRESHOLD:
        value, limit = other.probability[a], decision.limit
    elif decision.kind == BEST:
        value, limit = other.logit[a], other.logit[b]
    elif decision.kind == ORDER:
        value, limit = other.score[a], other.score[b]
    elif decision.kind == IOU:
        value, limit = _iou(other.boxes[[a, b]])[0, 1], decision.limit
    else:
        return False  # the last score is that of a set, not of one location
    return (value > limit) != (decision.value > decision.limit)


def _as_flips(decisions: Iterable[Decision]) -> Flips:
    return frozenset((d.kind, d.subject, d.other) for d in decisions)


def _flipped(locations: np.ndarray, kind: str, flips: Flips) -> np.ndarray:
    return np.isin(locations, [subject for name, subject, _ in flips if name == kind])


def _sigmoid(x: np.ndarray) -> np.ndarray:
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1.0, small) / (1 + small)


def _iou(boxes: np.ndarray) -> np.ndarray:
    """IoU of every pair [K, K] with +1 widths, in float64."""
    size = boxes[:, 2:] - boxes[:, :2] + 1
    area = size.prod(axis=1)
    overlap = np.ones((len(boxes), len(boxes)))
    for axis in (0, 1):
        low = np.maximum(boxes[:, None, axis], boxes[:, axis])
        overlap *= np.clip(np.minimum(boxes[:, None, axis + 2], boxes[:, axis + 2]) - low + 1, 0, None)
    return overlap / (area[:, None] + area - overlap)


def _iou_rounding(boxes: np.ndarray, iou: np.ndarray, edge: np.ndarray) -> np.ndarray:
    """How far every pair's IoU [K, K] can move when each edge of box k moves by edge[k], to first order."""
    size = boxes[:, 2:] - boxes[:, :2] + 1
    area, around = size.prod(axis=1), size.sum(axis=1)
    change = 2 * edge * around  # of each area
    moved = np.maximum(edge[:, None], edge)
    shared = 2 * moved * np.minimum(around[:, None], around)  # of the intersection, at most
    union = (area[:, None] + area) / (1 + iou)
    return (shared * (1 + iou) + iou * (change[:, None] + change)) / union + ARITHMETIC
