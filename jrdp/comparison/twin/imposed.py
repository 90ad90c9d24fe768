"""The twin computing with decisions that were taken elsewhere, and saying where its own would have been others."""

from __future__ import annotations

import contextlib
from typing import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from jrdp.comparison.choices import Decisions, packed, unpacked
from jrdp.comparison.twin.detect import as_rois, locations, proposals
from jrdp.comparison.twin.model import LEVELS, MASK_ROI_SIZES, STRIDES, Trunk, Twin
from jrdp.comparison.twin.train import LEVEL_RANGES, assign, dense_losses, match
from jrdp.structures import Targets

SAMPLING_RATIO = 2  # of RoIAlign
ROUNDING = 2.0**-22  # relative, of a few float32 operations
NUDGES = 16  # maps a rounding away that are tried
SAMPLES = 65536  # of each ReLU's input, to measure rounding on


class Imposed(TorchFunctionMode):
    """While it is active, ReLUs, maximum pooling and the box loss's minimum choose as `given` says.

    What this network would have chosen itself can be told from `inputs`, `pooled` and `minima`.
    """

    def __init__(self, given: Decisions):
        super().__init__()
        self.given = given
        self.place = ""
        self.inputs: dict[str, Tensor] = {}  # of the ReLUs
        self.pooled: list[tuple[Tensor, Tensor, Tensor]] = []  # per pooling: input, own choice, given choice
        self.minima: list[tuple[Tensor, Tensor]] = []  # predicted and wanted

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(function, "__name__", "")
        if name == "relu":
            return self._relu(args[0])
        if name in ("max_pool2d", "_max_pool2d"):
            return self._max_pool(*args, **kwargs)
        if name == "minimum" and args[0].requires_grad:
            self.minima.append(args)
            return torch.where(torch.from_numpy(self.given.smaller).to(args[0].device), *args)
        return function(*args, **kwargs)

    def _relu(self, x: Tensor) -> Tensor:
        mask = self.given.relus[len(self.inputs)]
        if mask.shape != tuple(x.shape):
            raise ValueError(f"ReLU {len(self.inputs)} has shape {tuple(x.shape)} here and {mask.shape} there")
        name, count = self.place, 1
        while name in self.inputs:
            count += 1
            name = f"{self.place} ({count})"
        self.inputs[name] = x.detach()
        return x * torch.from_numpy(mask).to(x)

    def _max_pool(self, x: Tensor, size, stride=None, padding=0, *_, **__) -> Tensor:
        own = F.max_pool2d_with_indices(x, size, stride, padding)[1]
        index = torch.from_numpy(self.given.pooling[len(self.pooled)]).to(x.device)
        self.pooled.append((x.detach(), own, index))
        return x.flatten(2).gather(2, index.flatten(2)).view(index.shape)


@contextlib.contextmanager
def imposing(model: Twin, given: Decisions) -> Iterator[Imposed]:
    """`Imposed` for a forward pass of `model`, with the name of the module that is being computed as `place`."""
    mode, stack, handles = Imposed(given), [""], []

    def enter(name):
        def hook(*_):
            stack.append(name)
            mode.place = name

        return hook

    def leave(*_):
        stack.pop()
        mode.place = stack[-1]

    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(enter(name)))
        handles.append(module.register_forward_hook(leave))
    try:
        with mode:
            yield mode
    finally:
        for handle in handles:
            handle.remove()


def imposed_losses(
    model: Twin, images: Tensor, targets: list[Targets], given: Decisions
) -> tuple[dict[str, Tensor], Trunk, Imposed]:
    """The four losses with the decisions of `given`: its RoIs and mask targets, ReLUs, pooling and minima."""
    gt = [torch.as_tensor(t.boxes).to(images) for t in targets]
    with imposing(model, given) as mode:
        trunk = model.trunk(images)
        out = dense_losses(trunk.head("cls_logits"), trunk.head("bbox_reg"), trunk.head("centerness"), gt)
        logits = model.masks(trunk.pyramid, torch.from_numpy(given.rois).to(images))["mask_logits"]
    if len(given.masks):
        wanted = torch.from_numpy(given.masks).to(logits)
        out["loss_mask"] = F.binary_cross_entropy_with_logits(logits[:, 1], wanted)
    else:
        out["loss_mask"] = logits.sum() * 0
    return out, trunk, mode


def own_choices(mode: Imposed) -> dict[str, np.ndarray]:
    """This network's own ReLU masks and samples of their inputs, for `relu_rows` and `other_rows`."""
    arrays: dict[str, np.ndarray] = {}
    for name, x in mode.inputs.items():
        arrays |= packed(f"relu/{name}", (x > 0).cpu().numpy())
        arrays[f"sample/{name}"] = _sample(x).double().cpu().numpy()
    for index, (_, own, _) in enumerate(mode.pooled):
        arrays[f"pooling/{index}"] = own.cpu().numpy()
    return arrays


def relu_rows(mode: Imposed, other: dict[str, np.ndarray]) -> list[dict]:
    """Per ReLU: elements, how many signs of the given decisions and of `other` differ here, and the inputs there.

    other: `own_choices` of the same network in another precision. rounding: how far the two precisions' inputs are
    apart, at most, on a sample of up to 65,536 of them; scale: their root mean square.
    """
    rows = []
    for (name, x), mask in zip(mode.inputs.items(), mode.given.relus):
        size = x.abs()
        own = x > 0
        rows.append(
            {
                "place": name,
                "elements": x.numel(),
                **_differing("given", own, torch.from_numpy(mask).to(x.device), size),
                **_differing("other", own, _unpacked(other, f"relu/{name}").to(x.device), size),
                "rounding": float((_sample(x).double().cpu() - torch.from_numpy(other[f"sample/{name}"])).abs().max()),
                "scale": float(x.double().square().mean().sqrt()),
            }
        )
    return rows


def other_rows(mode: Imposed, other: dict[str, np.ndarray]) -> list[dict]:
    """The same for maximum pooling (margin: what the other choice is short of the largest) and the loss's minima."""
    rows = []
    for index, (x, own, given) in enumerate(mode.pooled):
        flat = x.flatten(2)
        best = flat.gather(2, own.flatten(2))
        alive = best > 0  # below a ReLU equal zeros pass no gradient whichever is taken
        row = {"place": f"maximum pooling {index + 1}", "elements": own.numel()}
        for name, choice in (("given", given), ("other", torch.from_numpy(other[f"pooling/{index}"]).to(x.device))):
            short = (best - flat.gather(2, choice.flatten(2))).abs()
            differs = (choice != own).flatten(2) & alive
            row |= {name: int(differs.sum()), f"{name}_largest": float((short * differs).max())}
        rows.append({**row, "rounding": None, "scale": float(flat.double().square().mean().sqrt())})
    for predicted, wanted in mode.minima:
        gap = (predicted - wanted).detach()
        smaller = torch.from_numpy(mode.given.smaller).to(gap.device)
        row = {"place": "minimum in the box loss", "elements": gap.numel()}
        row |= _differing("given", gap < 0, smaller, gap.abs())
        rows.append({**row, "other": None, "other_largest": None, "rounding": None, "scale": float(gap.abs().max())})
    return rows


def check_choices(
    model: Twin, trunk: Trunk, sizes: list[tuple[int, int]], targets: list[Targets], given: Decisions
) -> dict:
    """Whether this implementation chooses the same boxes and targets when it is given the same numbers to choose by.

    From the maps of `given` the proposals, from the proposals of `given` the positive RoIs, and the positive locations;
    also what its own maps give, which rounding may change. All in float32, as the choice is there.
    """
    own_maps = {name: trunk.stages[name].detach().float().cpu() for name in given.maps}
    own = proposals(Trunk(own_maps), sizes, model.config.fcos, model.variant)
    gt = [torch.as_tensor(t.boxes).float() for t in targets]
    rois = []
    for image, ((boxes, _), truth) in enumerate(zip(given.proposals, gt)):
        together = torch.cat([torch.from_numpy(boxes), truth])
        rois.append(together[match(together, truth)[1] >= 0.5])
    chosen = as_rois(rois).numpy() if rois else np.zeros((0, 5), np.float32)
    known = given.rois if len(given.masks) else np.zeros((0, 5), np.float32)
    positive = []
    for level, stride, (low, high) in zip(LEVELS, STRIDES, LEVEL_RANGES):
        points = locations(*given.maps[f"cls_logits_P{level}"].shape[2:], stride, gt[0])
        positive.append(torch.stack([assign(points, boxes, low, high)[0] for boxes in gt]))
    return {
        "locations": int((torch.cat(positive, dim=1).numpy() != given.positive).sum()),
        "proposals": _same_proposals(model, sizes, given),
        "own_proposals": [_unlike(given.proposals[i], _arrays(found)) for i, found in enumerate(own)],
        "rois": _unmatched(known, chosen) + _unmatched(chosen, known),
        "positives": len(known),
        "sampling": _sampling(given),
    }


def _same_proposals(model: Twin, sizes: list[tuple[int, int]], given: Decisions) -> list[dict]:
    """Per image how the twin's proposals from the given maps differ from the given ones.

    Two implementations of the sigmoid differ in the last digit, which turns two scores around that are equal but for
    it. So where the sets differ, maps that are a rounding away (2^-22, relative) are tried as well, and `nudged` told.
    """
    maps = {name: torch.from_numpy(value) for name, value in given.maps.items()}
    random = torch.Generator().manual_seed(0)
    rows: list[dict] = []
    for attempt in range(NUDGES + 1):
        found = proposals(Trunk(maps), sizes, model.config.fcos, model.variant)
        tried = [{**_unlike(given.proposals[i], _arrays(each)), "nudged": attempt > 0} for i, each in enumerate(found)]
        rows = [old if old["alone"] <= new["alone"] else new for old, new in zip(rows or tried, tried)]
        if not any(row["alone"] for row in rows):
            break
        for name, value in given.maps.items():
            noise = torch.rand(value.shape, generator=random) * 2 - 1
            maps[name] = torch.from_numpy(value) * (1 + ROUNDING * noise)
    return rows


def _sampling(given: Decisions) -> dict[str, int]:
    """How many bilinear samples of RoIAlign, along one axis, lie in another cell in float64 than in float32.

    The sample is continuous there, in its value and in what it passes back: the weight of the cell that it enters or
    leaves is zero. So nothing has to be imposed; this is only told.
    """
    count = differing = 0
    for size, stride in zip(MASK_ROI_SIZES, STRIDES):
        steps = (np.arange(size * SAMPLING_RATIO) + 0.5) / SAMPLING_RATIO
        cells = []
        for dtype in (np.float32, np.float64):
            corners = given.rois[:, 1:].astype(dtype) * dtype(1 / stride)
            start, extent = corners[:, :2], np.maximum(corners[:, 2:] - corners[:, :2], dtype(1))
            places = start[:, :, None] + steps.astype(dtype) * (extent / dtype(size))[:, :, None]  # [R, 2, S * ratio]
            cells.append(np.floor(np.maximum(places, 0)))
        count += cells[0].size
        differing += int((cells[0] != cells[1]).sum())
    return {"samples": count, "differing": differing}


def _differing(name: str, own: Tensor, choice: Tensor, size: Tensor) -> dict:
    differs = own != choice
    return {name: int(differs.sum()), f"{name}_largest": float((size * differs).max()) if size.numel() else 0.0}


def _unlike(given: tuple[np.ndarray, np.ndarray], own: tuple[np.ndarray, np.ndarray]) -> dict:
    """Two sets of boxes and scores: how many there are, how many stand alone, and the worst score of the others."""
    near = _near(given[0], own[0])
    scores = np.abs(given[1][:, None].astype(np.float64) - own[1][None])
    paired = np.where(near, scores, np.inf).min(axis=1) if near.size else np.full(len(given[0]), np.inf)
    alone = int((~near.any(axis=1)).sum() + (~near.any(axis=0)).sum()) if near.size else len(given[0]) + len(own[0])
    found = paired[np.isfinite(paired)]
    worst = float(found.max()) if len(found) else 0.0
    return {"given": len(given[0]), "own": len(own[0]), "alone": alone, "score": worst}


def _unmatched(first: np.ndarray, second: np.ndarray) -> int:
    return int((~_near(first, second).any(axis=1)).sum()) if len(second) else len(first)


def _near(first: np.ndarray, second: np.ndarray, pixels: float = 0.05) -> np.ndarray:
    return (np.abs(first[:, None].astype(np.float64) - second[None]) <= pixels).all(axis=2)


def _arrays(found: tuple[Tensor, Tensor]) -> tuple[np.ndarray, np.ndarray]:
    return found[0].numpy(), found[1].numpy()


def _sample(x: Tensor) -> Tensor:
    flat = x.flatten()
    return flat[:: max(1, len(flat) // SAMPLES)]


def _unpacked(arrays: dict[str, np.ndarray], name: str) -> Tensor:
    return torch.from_numpy(unpacked(arrays, name))
