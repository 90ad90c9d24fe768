"""Why two correct gradients can differ: the decisions behind them, found, weighed and taken out of the way.

A ReLU whose input is within rounding of zero passes a gradient in one framework and none in the other; the same holds
for maximum pooling and for the minimum in the box loss, and a proposal at IoU 1/2 learns a mask or does not. So the
gradients of one batch are judged with one set of decisions, Jittor's, in all three computations (Jittor, torch in
float32, torch in float64), and the decisions are judged by themselves:

- where the float64 network would have decided otherwise, its input must lie within the rounding of that place;
- given the same numbers, the twin must choose the same boxes, RoIs and locations.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jrdp.comparison.floor import FACTOR, FLOOR
from jrdp.comparison.pair import Pair

STAGE_TOLERANCE = 1e-4  # of an input's root mean square, where the twin's float32 shows no floor
BOX_TOLERANCE = 0.01  # network pixels: the outer bound of boxes, and so of the sides that the box loss compares
# The same where products are in TF32, whose 10 bits of mantissa move maps by 2e-3 of their root mean square, single
# elements by some times that, and boxes by a tenth of a pixel.
STAGE_TOLERANCE_TF32 = 2e-2
BOX_TOLERANCE_TF32 = 1.0
SCORE_TOLERANCE = 1e-6  # of the same logits in two implementations of the sigmoid
SCORE_TOLERANCE_CUDA = 1e-5  # which on a GPU may be the fast one (`JRDP_PRECISE`)

COLUMNS = ["decision", "of", "Jittor / float64", "input there", "PyTorch / float64", "input there", "rounding", "allowed"]


@dataclass
class Imposed:
    """What one batch gave with Jittor's decisions.

    single, double: the twin's losses; answer: the float64 side's account of the decisions, see `twin/imposed.py`.
    same_device: whether the twin's float32 shows how much rounding Jittor may have. tf32: whether products are in TF32.
    cuda: whether Jittor computed on a GPU.
    """

    single: dict[str, float]
    double: dict[str, float]
    answer: dict
    same_device: bool = True
    tf32: bool = False
    cuda: bool = False

    @property
    def differing(self) -> int:
        """How many ReLU, pooling and minimum decisions Jittor took otherwise than the float64 network."""
        return sum(row["given"] for row in self.answer["relus"] + self.answer["others"])

    def failures(self) -> list[str]:
        """What the decisions themselves say against the two networks being the same."""
        found = [
            f"{row['given']} decisions of {row['place']} differ, one where the input is {row['given_largest']:.3g} "
            f"(allowed {limit:.3g})"
            for row, limit in self._weighed()
            if not row["given_largest"] <= limit
        ]
        checks = self.answer["checks"]
        if checks["locations"]:
            found.append(f"{checks['locations']} locations answer for a box on one side only")
        score_tolerance = SCORE_TOLERANCE_CUDA if self.cuda else SCORE_TOLERANCE
        for image, each in enumerate(checks["proposals"]):
            if each["alone"] or not each["score"] <= score_tolerance:
                found.append(
                    f"from the same maps image {image} has {each['given']} proposals in Jittor and {each['own']} in "
                    f"PyTorch, {each['alone']} without partner, scores {each['score']:.3g} apart"
                )
        if checks["rois"]:
            found.append(f"from the same proposals {checks['rois']} RoIs learn a mask on one side only")
        return found

    def rows(self) -> list[list]:
        """Those places where a decision differs, for a table of `COLUMNS`."""
        return [
            [
                row["place"],
                row["elements"],
                row["given"],
                row["given_largest"],
                "" if row["other"] is None else row["other"],
                "" if row["other"] is None else row["other_largest"],
                "" if row["rounding"] is None else row["rounding"],
                limit,
            ]
            for row, limit in self._weighed()
            if row["given"] or row["other"]
        ]

    def words(self) -> str:
        """One sentence on the proposals, of which every side has chosen its own from its own maps."""
        own, sampling = self.answer["checks"]["own_proposals"], self.answer["checks"]["sampling"]
        alone = sum(each["alone"] for each in own)
        return (
            f"Of {sum(each['given'] for each in own)} proposals (Jittor) and {sum(each['own'] for each in own)} (float64) "
            f"chosen each from its own maps, {alone} have no partner; {self.answer['checks']['positives']} RoIs learn "
            f"a mask. {sampling['differing']} of {sampling['samples']} samples of RoIAlign lie in another cell in float64, "
            f"where the weight is zero: they need no imposing."
        )

    def as_json(self) -> dict:
        return {"losses": {"torch": self.single, "float64": self.double}, "differing": self.differing, **self.answer}

    def _weighed(self) -> list[tuple[dict, float]]:
        """Each place and how large an input may be at a decision that differs."""
        relus, others = self.answer["relus"], self.answer["others"]
        stage_tolerance = STAGE_TOLERANCE_TF32 if self.tf32 else STAGE_TOLERANCE
        box_tolerance = BOX_TOLERANCE_TF32 if self.tf32 else BOX_TOLERANCE
        out = []
        if not self.same_device:
            rows = relus + [row for row in others if row["place"].startswith("maximum pooling")]
            out = [(row, stage_tolerance * row["scale"]) for row in rows]
            return out + [(row, box_tolerance) for row in others if row not in rows]
        for row in relus:
            rounding = max(row["rounding"], row["other_largest"])
            out.append((row, FACTOR * rounding + FLOOR * row["scale"]))
        for row in others:
            if row["place"].startswith("maximum pooling"):  # it looks at what the first ReLU gives
                rounding = max(relus[0]["rounding"], row["other_largest"])
                out.append((row, 2 * FACTOR * rounding + FLOOR * row["scale"]))
            else:
                out.append((row, box_tolerance))
        return out


def impose(
    pair: Pair,
    batch: Path,
    decisions: Path,
    gradients: tuple[Path, Path] | None = None,
    iteration: int | None = None,
) -> Imposed:
    """Both precisions of the twin on this batch with the decisions of the file.

    gradients: files for those of float32 and float64. iteration: also apply them, as step `iteration` of trainings
    that take Jittor's decisions from the start.
    """
    choices = [pair.folder / f"choices{bits}.npz" for bits in (32, 64)]
    common = {"batch": str(batch), "decisions": str(decisions), "iteration": iteration}
    out = [None, None] if gradients is None else [str(path) for path in gradients]
    single = pair.torch.ask("imposed", precision="float32", choices=str(choices[0]), out=out[0], **common)
    double = pair.torch.ask(
        "imposed", precision="float64", choices=str(choices[1]), out=out[1], other=str(choices[0]), **common
    )
    answer = {name: double[name] for name in ("relus", "others", "checks")}
    options = pair.options
    return Imposed(single["losses"], double["losses"], answer, options.same_device, options.tf32, options.device == "cuda")
