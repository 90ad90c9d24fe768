"""The twin's training: target assignment, the four losses, and SGD as released."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from jrdp.comparison.twin.model import STRIDES, Trunk, Twin
from jrdp.comparison.twin.detect import as_rois, locations, proposals
from jrdp.config import SolverConfig
from jrdp.models.mask_targets import project_masks
from jrdp.structures import Targets

# The largest of l, t, r, b that a level is responsible for, in network pixels; both ends belong to it.
LEVEL_RANGES = ((-1, 64), (64, 128), (128, 256), (256, 512), (512, 1e8))
SMALLEST_NORMAL = torch.finfo(torch.float32).tiny


def assign(points: Tensor, gt_boxes: Tensor, smallest: float, largest: float) -> tuple[Tensor, Tensor]:
    """Targets of one level and image: positive [L] bool and distances (l, t, r, b) [L, 4] to the chosen box.

    points: [L, 2]; gt_boxes: [G, 4], G >= 1. A location is positive when it lies strictly inside a box whose largest
    distance is in the level's range; of several such boxes the smallest (area with the +1) is taken.
    """
    x, y = points[:, 0, None], points[:, 1, None]
    x1, y1, x2, y2 = gt_boxes.T
    distances = torch.stack([x - x1, y - y1, x2 - x, y2 - y], dim=2)  # [L, G, 4]
    reach = distances.amax(dim=2)
    eligible = (distances.amin(dim=2) > 0) & (reach >= smallest) & (reach <= largest)  # [L, G]
    area = ((x2 - x1 + 1) * (y2 - y1 + 1)).expand(len(points), -1)
    # argmin returns the first of equal values on the CPU, which is what the released min() gives.
    chosen = torch.where(eligible, area, torch.full_like(area, float("inf"))).argmin(dim=1)
    return eligible.any(dim=1), distances[torch.arange(len(points), device=points.device), chosen]


def centerness_target(distances: Tensor) -> Tensor:
    """sqrt(min(l, r) / max(l, r) * min(t, b) / max(t, b)) of distances [P, 4]: [P]."""
    horizontal, vertical = distances[:, [0, 2]], distances[:, [1, 3]]
    ratio = horizontal.amin(1) / horizontal.amax(1) * (vertical.amin(1) / vertical.amax(1))
    return ratio.sqrt()


def focal_loss(logits: Tensor, positive: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Sigmoid focal loss, summed; logits [L], positive [L] bool. The stable form of the released CUDA kernel."""
    p = logits.sigmoid()
    log_p = p.clamp(min=SMALLEST_NORMAL).log()
    # log(1 - p) = -x - log(1 + exp(-x)) for x >= 0 and -log(1 + exp(x)) for x < 0, without cancellation
    log_not_p = -logits * (logits >= 0) - (logits - 2 * logits * (logits >= 0)).exp().log1p()
    loss = torch.where(positive, -alpha * (1 - p) ** gamma * log_p, -(1 - alpha) * p**gamma * log_not_p)
    return loss.sum()


def iou_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """-log((I + 1) / (U + 1)) of boxes given as (l, t, r, b) from a shared point, [P, 4] each: [P]."""
    area = (predicted[:, 0] + predicted[:, 2]) * (predicted[:, 1] + predicted[:, 3])
    target_area = (target[:, 0] + target[:, 2]) * (target[:, 1] + target[:, 3])
    common = torch.minimum(predicted, target)
    overlap = (common[:, 0] + common[:, 2]) * (common[:, 1] + common[:, 3])
    return -((overlap + 1) / (area + target_area - overlap + 1)).log()


def dense_losses(cls: list[Tensor], reg: list[Tensor], ctr: list[Tensor], gt: list[Tensor]) -> dict[str, Tensor]:
    """loss_cls, loss_reg and loss_centerness from the five levels' maps and the ground-truth boxes per image."""
    logits, positives, predicted, targets, centers = [], [], [], [], []
    for level, (c, r, t, stride) in enumerate(zip(cls, reg, ctr, STRIDES)):
        points = locations(c.shape[2], c.shape[3], stride, r)
        for image, boxes in enumerate(gt):
            positive, distances = assign(points, boxes, *LEVEL_RANGES[level])
            logits.append(c[image].flatten())
            positives.append(positive)
            predicted.append(r[image].flatten(1).T[positive])
            targets.append(distances[positive])
            centers.append(t[image].flatten()[positive])
    positive, target = torch.cat(positives), torch.cat(targets)
    found = int(positive.sum())
    loss_cls = focal_loss(torch.cat(logits), positive) / (found + len(gt))
    predicted, center = torch.cat(predicted), torch.cat(centers)
    if found == 0:
        return {"loss_cls": loss_cls, "loss_reg": predicted.sum(), "loss_centerness": center.sum()}
    weight = centerness_target(target)
    return {
        "loss_cls": loss_cls,
        "loss_reg": (weight * iou_loss(predicted, target)).sum() / weight.sum(),
        "loss_centerness": F.binary_cross_entropy_with_logits(center, weight),
    }


def match(boxes: Tensor, gt_boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Best ground truth of every proposal: index [K] and IoU [K], with legacy widths."""
    low = torch.maximum(boxes[:, None, :2], gt_boxes[None, :, :2])
    high = torch.minimum(boxes[:, None, 2:], gt_boxes[None, :, 2:])
    overlap = (high - low + 1).clamp(min=0).prod(dim=2)
    area = (boxes[:, 2:] - boxes[:, :2] + 1).prod(dim=1)
    gt_area = (gt_boxes[:, 2:] - gt_boxes[:, :2] + 1).prod(dim=1)
    iou = overlap / (area[:, None] + gt_area - overlap)
    best = iou.max(dim=1)
    return best.indices, best.values


def losses(
    model: Twin, images: Tensor, sizes: list[tuple[int, int]], targets: list[Targets], only_positive: bool = False
) -> dict[str, Tensor]:
    """The four losses of one batch; their plain sum is minimised.

    Ground-truth boxes join the proposals, all of them pass the mask head, and those with IoU >= 0.5 count.
    only_positive: send only those that count. The mask head works RoI by RoI, its group norm too, so the others change
    neither a loss nor a gradient, and can take most of a step's time.
    """
    trunk = model.trunk(images)
    gt = [torch.as_tensor(t.boxes).to(images) for t in targets]
    out = dense_losses(trunk.head("cls_logits"), trunk.head("bbox_reg"), trunk.head("centerness"), gt)
    out["loss_mask"] = mask_loss(model, trunk, sizes, gt, targets, only_positive)
    return out


def mask_loss(
    model: Twin,
    trunk: Trunk,
    sizes: list[tuple[int, int]],
    gt: list[Tensor],
    targets: list[Targets],
    only_positive: bool = False,
) -> Tensor:
    """Mean binary cross entropy of the positive RoIs' salient channel; 0 with zero gradients when there is none."""
    found = proposals(trunk, sizes, model.config.fcos, model.variant)
    boxes = [torch.cat([b, own]) for (b, _), own in zip(found, gt)]
    matches = [match(own, own_gt) for own, own_gt in zip(boxes, gt)]
    positives = [iou >= 0.5 for _, iou in matches]
    positive = torch.cat(positives)
    if not bool(positive.any()):
        return model.masks(trunk.pyramid, as_rois(boxes))["mask_logits"].sum() * 0
    rois = as_rois(boxes)
    sent = positive if only_positive else torch.ones_like(positive)
    logits = model.masks(trunk.pyramid, rois[sent])["mask_logits"][positive[sent], 1]  # [P, 32, 32]
    wanted = [
        np.asarray(project_masks(target, index[p].cpu().numpy(), own[p].cpu().numpy(), logits.shape[-1]))
        for target, own, (index, _), p in zip(targets, boxes, matches, positives)
    ]
    return F.binary_cross_entropy_with_logits(logits, torch.as_tensor(np.concatenate(wanted)).to(logits))


def optimizer(model: Twin, config: SolverConfig) -> torch.optim.SGD:
    """SGD with one group per trainable parameter, in key order; biases have their own rate and decay."""
    groups = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        bias = "bias" in name
        rate = config.base_lr * (config.bias_lr_factor if bias else 1.0)
        decay = config.bias_weight_decay if bias else config.weight_decay
        groups.append({"params": [parameter], "lr": rate, "weight_decay": decay})
    return torch.optim.SGD(groups, lr=config.base_lr, momentum=config.momentum)


def rate_factor(config: SolverConfig, iteration: int) -> float:
    """What the learning rates are multiplied by at `iteration`, counted from 1 (current torch's reading)."""
    factor = config.gamma ** sum(iteration >= step for step in config.steps)
    return factor * (config.warmup_factor if iteration < config.warmup_iterations else 1.0)


def train_step(
    model: Twin,
    solver: torch.optim.SGD,
    config: SolverConfig,
    iteration: int,
    images: Tensor,
    sizes: list[tuple[int, int]],
    targets: list[Targets],
    only_positive: bool = False,
) -> dict[str, float]:
    """One iteration; returns the four losses before the update. Gradients stay on the parameters. See `losses`."""
    solver.zero_grad(set_to_none=True)
    parts = losses(model, images, sizes, targets, only_positive)
    sum(parts.values()).backward()
    update(solver, config, iteration)
    return {name: value.item() for name, value in parts.items()}


def update(solver: torch.optim.SGD, config: SolverConfig, iteration: int) -> None:
    """Apply the gradients with the rates of `iteration`, counted from 1."""
    for group in solver.param_groups:
        group.setdefault("initial_lr", group["lr"])
        group["lr"] = group["initial_lr"] * rate_factor(config, iteration)
    solver.step()
