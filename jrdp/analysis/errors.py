"""What the errors are and what each kind costs, after TIDE (Bolya et al., ECCV 2020), for one class.

At a foreground IoU t and a background IoU b = 0.1, a detection that found nothing is

- a duplicate, where its best IoU with any instance is at least t (a better-scored detection took the instance),
- a localisation error, where its best IoU is at least b but below t,
- background, where its best IoU is below b;

and an instance that no detection found is missed, unless a localisation error points at it. Every kind's cost is the
AP that would be gained if it alone were fixed: a localisation error becomes a hit on its instance (or disappears,
where the instance is found already or a better-scored one gets it), duplicates and background disappear, and missed
instances are no longer asked for. The gains of several kinds do not add up: fixing one changes what others cost.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence

import numpy as np

from jrdp.analysis.matching import PictureMatches, precision_curve

BACKGROUND_IOU = 0.1

HIT, LOCALISATION, DUPLICATE, BACKGROUND, IGNORED = range(5)
KINDS = ("localisation", "duplicate", "background", "missed")
_CODES = {"localisation": LOCALISATION, "duplicate": DUPLICATE, "background": BACKGROUND}


@dataclass(frozen=True)
class PictureErrors:
    """kinds: int `[D]`, `HIT` ... `IGNORED` of each detection. targets: int `[D]`, the instance of the best IoU, -1
    without any. missed: bool `[G]`."""

    kinds: np.ndarray
    targets: np.ndarray
    missed: np.ndarray


@dataclass(frozen=True)
class ErrorAnalysis:
    """At one IoU threshold: AP, how many errors of each of `KINDS`, and the AP that fixing each would gain.

    gain_false_positives, gain_false_negatives: the gain from removing every wrong detection, and from not asking for
    any instance that was not found. pictures: one `PictureErrors` for each picture.
    """

    iou_threshold: float
    ap: float
    hits: int
    counts: dict[str, int]
    gains: dict[str, float]
    gain_false_positives: float
    gain_false_negatives: float
    pictures: list[PictureErrors]


def classify(picture: PictureMatches, threshold: int, iou_threshold: float) -> PictureErrors:
    """The kind of every detection and instance of a picture at the `threshold`-th threshold, `iou_threshold`."""
    count, instances = picture.ious.shape
    best = picture.ious.max(axis=1) if instances else np.zeros(count)
    targets = picture.ious.argmax(axis=1) if instances else np.full(count, -1)
    matched = picture.matches[threshold]
    kinds = np.where(best >= iou_threshold, DUPLICATE, np.where(best >= BACKGROUND_IOU, LOCALISATION, BACKGROUND))
    kinds = np.where(picture.ignored[threshold], IGNORED, np.where(matched >= 0, HIT, kinds))
    covered = np.zeros(instances, dtype=bool)
    covered[matched[kinds == HIT]] = True
    covered[targets[kinds == LOCALISATION]] = True
    return PictureErrors(kinds, targets, ~covered)


def analyze_errors(pictures: Sequence[PictureMatches], threshold: int, iou_threshold: float) -> ErrorAnalysis:
    """Errors and their costs at the `threshold`-th IoU threshold of `pictures`, whose value is `iou_threshold`.

    Raises `ValueError` where the pictures have no instance, which leaves AP undefined.
    """
    total = sum(len(picture.instances) for picture in pictures)
    if total == 0:
        raise ValueError("no instance in any picture: AP is undefined")
    errors = [classify(picture, threshold, iou_threshold) for picture in pictures]
    scores = np.concatenate([picture.scores for picture in pictures])
    kinds = np.concatenate([error.kinds for error in errors])
    counted = kinds != IGNORED
    missed = int(sum(error.missed.sum() for error in errors))
    hits = kinds == HIT

    def ap(keep: np.ndarray, right: np.ndarray, wanted: int) -> float:
        # Nothing left to find: the fix has made the result perfect.
        return float(precision_curve(scores[keep], right[keep], wanted).mean()) if wanted else 1.0

    now = ap(counted, hits, total)
    repaired = np.concatenate([_repaired(picture, error, threshold) for picture, error in zip(pictures, errors)])
    fixed = {
        "localisation": ap(counted & ((kinds != LOCALISATION) | repaired), hits | repaired, total),
        "duplicate": ap(counted & (kinds != DUPLICATE), hits, total),
        "background": ap(counted & (kinds != BACKGROUND), hits, total),
        "missed": ap(counted, hits, total - missed),
    }
    counts = {kind: int((kinds == code).sum()) for kind, code in _CODES.items()}
    return ErrorAnalysis(
        iou_threshold=float(iou_threshold),
        ap=now,
        hits=int(hits.sum()),
        counts={**counts, "missed": missed},
        gains={kind: fixed[kind] - now for kind in KINDS},
        gain_false_positives=ap(hits, hits, total) - now,
        gain_false_negatives=ap(counted, hits, int(hits.sum())) - now,
        pictures=errors,
    )


def _repaired(picture: PictureMatches, error: PictureErrors, threshold: int) -> np.ndarray:
    """bool `[D]`: the localisation errors that would become hits, at most one for each instance not found yet."""
    found = set(picture.matches[threshold][error.kinds == HIT].tolist())
    repaired = np.zeros(len(error.kinds), dtype=bool)
    for position in np.flatnonzero(error.kinds == LOCALISATION):  # by falling score
        target = int(error.targets[position])
        if target not in found:
            found.add(target)
            repaired[position] = True
    return repaired
