"""RDPNet (Wu et al., IEEE TIP 2021): images to losses or instances. The one file that knows all parts."""

from __future__ import annotations

from typing import Callable

import jittor as jt
import numpy as np
from jittor import nn

from jrdp import boxes as box_ops
from jrdp.config import ModelConfig
from jrdp.models.backbone import build_body
from jrdp.models.mask_targets import project_masks
from jrdp.models.fcos import (
    FcosHead,
    HeadOutput,
    LossCounts,
    bce_with_logits,
    channel,
    dynamic_scalar,
    fcos_losses,
    sum_float64,
)
from jrdp.models.fcos_decode import Detections, decode_vars, instances_of
from jrdp.models.fcos_targets import assign_targets, locations
from jrdp.models.fpn import FPN
from jrdp.models.layers import Stages, record_stage
from jrdp.models.mask_decoder import MaskHead
from jrdp.models.own_parts import modal_parts, set_training, takes_stages
from jrdp.models.pyramid import build_pyramid
from jrdp.models.shapes import SALIENT, STRIDES
from jrdp.models.state import held_tensors
from jrdp.models.transfer import fetch, made_on_host
from jrdp.structures import ImageBatch, Instances, Targets, check_targets

MATCH_IOU = 0.5  # a proposal that overlaps a ground-truth box this much learns its mask


class Backbone(nn.Module):
    """Images `[N, 3, H, W]`, H and W multiples of 32 -> P'3..P'7 `[N, 256, H/s, W/s]`, s = 8..128 (rounded up)."""

    def __init__(self, body: nn.Module, fpn: FPN):
        self.body = body
        self.fpn = fpn

    def execute(self, images: jt.Var, stages: Stages = None) -> list[jt.Var]:
        maps = self.body(images, stages) if takes_stages(self.body.execute) else self.body(images)
        c3, c4, c5 = maps[-3:]  # C2 is not used (convention 13)
        for name, x in zip(("C3", "C4", "C5"), (c3, c4, c5)):
            record_stage(stages, name, x)
        return self.fpn(c3, c4, c5, stages)


class Rpn(nn.Module):
    """The FCOS detector under its released name."""

    def __init__(self, head: FcosHead):
        self.head = head


class RoiHeads(nn.Module):
    """What looks at each detection: the mask head."""

    def __init__(self, mask: MaskHead):
        self.mask = mask


class RDPNet(nn.Module):
    """The network. Its tensors are named, ordered and shaped as in the released checkpoints (`models/state.py`).

    Starts from random weights as released (NumPy's global generator), batch norm from the identity.

        losses = network(batch, targets)   # see `losses`
        instances = network(batch)         # see `detect`
    """

    def __init__(self, config: ModelConfig):
        self.config = config
        with made_on_host() as made:
            body = build_body(config.backbone)
            fpn = build_pyramid(config.pyramid, body.out_channels[-3:])
            self._modal = modal_parts(body, fpn)  # of one's own; none of ours differs between training and prediction
            self.backbone = Backbone(body, fpn)
            self.rpn = Rpn(FcosHead(fpn.channels, config.fcos.channels))
            self.roi_heads = RoiHeads(MaskHead(fpn.channels, config.mask.head))
            made += held_tensors(self)

    def execute(
        self,
        batch: ImageBatch,
        targets: list[Targets] | None = None,
        all_reduce: Callable[[np.ndarray], np.ndarray] = np.asarray,
    ) -> dict[str, jt.Var] | list[Instances]:
        """The losses by name where there are targets, else the instances of each image."""
        return self.detect(batch) if targets is None else self.losses(batch, targets, all_reduce)

    def losses(
        self,
        batch: ImageBatch,
        targets: list[Targets],
        all_reduce: Callable[[np.ndarray], np.ndarray] = np.asarray,
        stages: Stages = None,
    ) -> dict[str, jt.Var]:
        """The four training losses, each `[1]`: loss_cls, loss_reg, loss_centerness, loss_mask; train on their sum.

        targets: one per image, boxes in network pixels. An image without ground truth is all background. Raises `ValueError`
            for what is no ground truth of the batch.
        all_reduce: for data-parallel training, takes float32 counts to their means over the processes.
        stages: a dictionary to be filled with the named stages up to the boxes, see `stages()`.
        """
        check_targets(targets, batch)
        set_training(self._modal, True)
        features = self.backbone(self._images(batch), stages)
        output = self.rpn.head(features, stages)
        points = [locations(*x.shape[2:], stride) for x, stride in zip(output.logits, STRIDES)]
        assigned = assign_targets(points, [target.boxes for target in targets])
        rois, masks = self.mask_targets(self._detections(output, batch), targets)

        counts = [len(batch), assigned.positive.sum(), assigned.centerness.sum(dtype=np.float64), masks.size]
        counts = LossCounts(*all_reduce(np.array(counts, np.float32)).tolist())
        losses = fcos_losses(output, assigned, counts)
        losses["loss_mask"] = self._mask_loss(features, rois, masks, batch.sizes[0]) / dynamic_scalar(
            counts.mask_pixels or 1.0
        )
        return losses

    def detect(self, batch: ImageBatch, stages: Stages = None) -> list[Instances]:
        """The instances of each image in network pixels, `mask_probabilities` filled (`[K, M, M]`), not pasted.

        `stages`: a dictionary to be filled with every named intermediate result, see `stages()`.

        Raises `UserError` where the network answers with what is no number.
        """
        set_training(self._modal, False)
        with jt.no_grad():
            features = self.backbone(self._images(batch), stages)
            output = self.rpn.head(features, stages)
            found = self._detections(output, batch)
            rois = np.concatenate([_rois(image, detections.boxes) for image, detections in enumerate(found)])
            logits = self.roi_heads.mask(features, jt.array(rois), stages)
            probabilities = np.zeros((0, *logits.shape[2:]), np.float32)
            if len(rois):
                probabilities = fetch(_probability(logits[:, SALIENT]))
        return instances_of(found, probabilities, batch)

    def stages(self, batch: ImageBatch) -> dict[str, jt.Var]:
        """Every stage of `detect` by name, in the order of computation, by the same code.

        stem, C2..C5, P3..P7, att_logit_P4..P7, RP3..RP7 (the enhanced P'), then per level cls_logits_Pn, bbox_reg_Pn,
        centerness_Pn; mask_inner_1..5, mask_roi_1..5, mask_conv_1..4 (1 is P'3 for inner and roi, 4x4 for conv),
        mask_logits. A variant of the network has those of its parts.
        """
        stages: dict[str, jt.Var] = {}
        self.detect(batch, stages)
        return stages

    def _images(self, batch: ImageBatch) -> jt.Var:
        n, channels, height, width = batch.images.shape
        if channels != 3 or height % 32 or width % 32 or n != len(batch.sizes):
            raise ValueError(
                f"images must be [{len(batch.sizes)}, 3, H, W] with H and W multiples of 32, not {batch.images.shape}"
            )
        if isinstance(batch.images, jt.Var):  # uploaded ahead
            return batch.images
        return jt.array(np.ascontiguousarray(batch.images, np.float32))

    def _detections(self, output: HeadOutput, batch: ImageBatch) -> list[Detections]:
        return decode_vars(*output[:3], batch.sizes, self.config.fcos)

    def mask_targets(self, found: list[Detections], targets: list[Targets]) -> tuple[np.ndarray, np.ndarray]:
        """The RoIs `[P, 5]` that learn a mask and the masks, 0 or 1, `[P, M, M]`.

        They are those among the proposals (the detections, without gradient) and the ground-truth boxes that match an
        instance.
        """
        rois, masks = [], []
        for image, (proposals, target) in enumerate(zip(found, targets)):
            boxes = np.concatenate([proposals.boxes, box_ops.as_boxes(target.boxes)])
            matched, positive = match(target.boxes, boxes)
            boxes, matched = boxes[positive], matched[positive]
            rois.append(_rois(image, boxes))
            masks.append(project_masks(target, matched, boxes, self.roi_heads.mask.resolution))
        return np.concatenate(rois), np.concatenate(masks)

    def _mask_loss(
        self, features: list[jt.Var], rois: np.ndarray, masks: np.ndarray, first_size: tuple[int, int]
    ) -> jt.Var:
        """Binary cross entropy of the salient channel summed over RoIs `[P, 5]` and their masks `[P, M, M]` (convention 32).

        The released code sends every proposal through the decoder and then leaves out all but the positive ones. Group
        norm works RoI by RoI, so the others change neither the loss nor a gradient: only positive ones come here.
        """
        weight = 1.0
        if len(rois) == 0:
            # One RoI of weight zero, the whole first image, so that every parameter has a gradient, of zero.
            height, width = first_size
            rois = _rois(0, np.array([[0, 0, width - 1, height - 1]], np.float32))
            weight, masks = 0.0, np.zeros((1, *masks.shape[1:]), np.float32)
        logits = channel(self.roi_heads.mask(features, jt.array(rois)), SALIENT)
        return sum_float64(bce_with_logits(logits, jt.array(masks.astype(np.float32)))) * dynamic_scalar(weight)


def match(truth: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each of `boxes` `[P, 4]` the ground-truth box (`[G, 4]`) of largest IoU, int `[P]`, and whether it matches.

    Without ground truth nothing matches.
    """
    if len(truth) == 0:
        return np.zeros(len(boxes), np.int64), np.zeros(len(boxes), bool)
    iou = box_ops.iou(truth, boxes)  # [G, P]
    return iou.argmax(axis=0), iou.max(axis=0) >= MATCH_IOU


def _probability(logits: jt.Var) -> jt.Var:
    """The sigmoid of each logit; above 1 where it is no number, which Jittor's own makes a probability of zero."""
    return jt.sigmoid(logits) + 2.0 * jt.isnan(logits).float32()


def _rois(image: int, boxes: np.ndarray) -> np.ndarray:
    """Boxes `[K, 4]` of one image of the batch as RoIs `[K, 5]`."""
    return np.concatenate([np.full((len(boxes), 1), image, np.float32), boxes], axis=1).astype(np.float32)
