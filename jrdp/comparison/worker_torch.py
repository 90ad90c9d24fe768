"""The torch side of a comparison: `python -m jrdp.comparison.worker_torch`, driven by `process.Worker`."""

from __future__ import annotations

import time
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from jrdp.comparison.worker import TRAINING_STEPS, peak_memory_mb, serve
from jrdp.errors import UserError

try:
    import torch
except ImportError as missing:
    raise SystemExit(f"{missing}: give an interpreter that has torch with --twin-python") from missing

from jrdp.comparison.twin import detect as twin_detect
from jrdp.comparison.twin import ops
from jrdp.comparison.twin import imposed as twin_imposed
from jrdp.comparison.twin import own_parts
from jrdp.comparison.twin import train as twin_train
from jrdp.comparison.choices import Decisions
from jrdp.comparison.exchange import load_arrays, load_batch, save_arrays
from jrdp.comparison.synthetic import disc_masks
from jrdp.comparison.twin.model import Twin, Variant
from jrdp.comparison.twin.results import coco_entries
from jrdp.config import parse_config


DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass
class Network:
    """A network in one precision and the solver that trains it."""

    model: Twin
    solver: torch.optim.SGD
    dtype: torch.dtype


class TorchBackend:
    """Holds one network; every method is a command. Paths are files in the comparison's folder.

    `stages`, `gradients`, `step` and `save` take a `precision`: in another one than the network was built in, they
    work on a copy of it, made when it is first asked for and trained by itself from then on. Arrays that travel have
    the precision of their network.
    """

    def build(
        self,
        config: dict,
        device: str,
        precision: str = "float32",
        variant: dict | None = None,
        tf32: bool = False,
        timing: bool = False,
        own: dict[str, str] | None = None,
    ) -> dict:
        """Make the network; returns versions and the tensors' shapes in order.

        tf32: on a GPU, for float32 products. timing: use torchvision's compiled operators, where it is installed.
        own: import paths of parts in place of the released ones, see `twin.own_parts`.
        """
        self.versions = {"torch": torch.__version__}
        if timing:
            self.versions["torchvision"] = ops.use_torchvision() or "none: operators in plain torch"
        if device == "cuda" and not torch.cuda.is_available():
            raise UserError("no CUDA device for torch; leave out --device cuda")
        self.device = torch.device("cuda" if device == "cuda" else "cpu")
        self.precision, self.dtype = precision, DTYPES[precision]
        self.others: dict[tuple[str, str], Network] = {}
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
        self.config = parse_config(config, "of the comparison")
        body, fpn = own_parts.make(self.config.model, own or {})
        self.model = Twin(self.config.model, Variant(**(variant or {})), body, fpn).to(self.device, self.dtype)
        if own:
            self.model.eval()  # such parts may compute something else in training; only predictions are compared
        self.solver = twin_train.optimizer(self.model, self.config.solver)
        return {
            "versions": self.versions,
            "threads": torch.get_num_threads(),
            "shapes": {name: list(value.shape) for name, value in own_parts.tensors(self.model).items()},
            "trainable": [name for name, value in self.model.named_parameters() if value.requires_grad],
        }

    def load(self, state: str) -> None:
        """Fill every tensor from an .npz, strictly, and start training anew."""
        arrays = load_arrays(state)
        self._fill({name: torch.from_numpy(value) for name, value in arrays.items()})

    def load_checkpoint(self, path: str) -> None:
        """Fill every tensor from a .pth as torch reads it (no pickled code), strictly; as the released code would."""
        content = torch.load(path, map_location="cpu", weights_only=True)
        state = content.get("model", content)
        state = {name[len("module.") :] if name.startswith("module.") else name: v for name, v in state.items()}
        self._fill(state)

    def _fill(self, state: dict[str, torch.Tensor]) -> None:
        counters = self.model.state_dict().keys() - own_parts.tensors(self.model).keys()
        missing, unexpected = self.model.load_state_dict(state, strict=False)
        if unexpected or set(missing) - counters:
            raise UserError(f"the twin's tensors are not those given: {', '.join([*unexpected, *missing][:5])}")
        self.solver = twin_train.optimizer(self.model, self.config.solver)
        self.others.clear()

    def network(self, precision: str | None = None, copy: str = "") -> Network:
        """The network in this precision, None for its own; or a named copy, which is made when first asked for."""
        precision = precision or self.precision
        if precision == self.precision and not copy:
            return Network(self.model, self.solver, self.dtype)
        if (precision, copy) not in self.others:
            model = deepcopy(self.model).to(DTYPES[precision])
            solver = twin_train.optimizer(model, self.config.solver)
            self.others[precision, copy] = Network(model, solver, DTYPES[precision])
        return self.others[precision, copy]

    def save(self, out: str, precision: str | None = None, copy: str = "") -> None:
        """All tensors by name."""
        state = self.network(precision, copy).model.state_dict()
        save_arrays(out, {name: value.detach().cpu().numpy() for name, value in state.items()})

    def suspend(self, out: str) -> None:
        """Everything that training needs to go on: `weight/NAME` and `momentum/NAME`, as float32."""
        arrays = {f"weight/{name}": value for name, value in self.model.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            buffer = self.solver.state.get(parameter, {}).get("momentum_buffer")
            if buffer is not None:
                arrays[f"momentum/{name}"] = buffer
        save_arrays(out, {name: value.detach().float().cpu().numpy() for name, value in arrays.items()})

    def resume(self, state: str) -> None:
        """Go on from what `suspend` wrote."""
        arrays = {name: torch.from_numpy(value) for name, value in load_arrays(state).items()}
        weights = {n[len("weight/") :]: v for n, v in arrays.items() if n.startswith("weight/")}
        self._fill(weights)
        for name, parameter in self.model.named_parameters():
            if f"momentum/{name}" in arrays:
                self.solver.state[parameter]["momentum_buffer"] = arrays[f"momentum/{name}"].to(parameter)

    def stages(self, batch: str, out: str, rois: str | None = None, precision: str | None = None) -> None:
        """Every stage, mask stages on the given RoIs, and what `detect` finds."""
        network = self.network(precision)
        images, sizes, _ = self._batch(batch, network.dtype)
        given = None if rois is None else torch.from_numpy(load_arrays(rois)["rois"]).to(images)
        stages = twin_detect.stages(network.model, images, sizes, given)
        found = twin_detect.detect(network.model, images, sizes)
        save_arrays(out, {**{n: v.cpu().numpy() for n, v in stages.items()}, **_detections(found)})

    def results(self, batch: str, category_id: int) -> dict[str, list[dict]]:
        """COCO box and mask results of a batch."""
        images, sizes, _ = self._batch(batch)
        known, _ = load_batch(batch)
        boxes: list[dict] = []
        masks: list[dict] = []
        places = zip(sizes, known.original_sizes, known.image_ids)
        for found, (size, original, image_id) in zip(twin_detect.detect(self.model, images, sizes), places):
            threshold = self.config.test.mask_threshold
            box_part, mask_part = coco_entries(found, size, original, image_id, category_id, threshold)
            boxes += box_part
            masks += mask_part
        return {"bbox": boxes, "segm": masks}

    def gradients(self, batch: str, out: str, precision: str | None = None) -> dict[str, float]:
        """The four losses of a batch and the gradient of every trainable parameter, without an update."""
        network = self.network(precision)
        images, sizes, targets = self._batch(batch, network.dtype)
        network.solver.zero_grad(set_to_none=True)
        parts = twin_train.losses(network.model, images, sizes, targets)
        sum(parts.values()).backward()
        grads = {name: p.grad for name, p in network.model.named_parameters() if p.grad is not None}
        save_arrays(out, {name: grad.cpu().numpy() for name, grad in grads.items()})
        return {name: value.item() for name, value in parts.items()}

    def imposed(
        self,
        batch: str,
        decisions: str,
        precision: str,
        choices: str,
        out: str | None = None,
        other: str | None = None,
        iteration: int | None = None,
    ) -> dict[str, Any]:
        """As `gradients` (or `step`, with an iteration) with decisions taken elsewhere, on copies of the network.

        choices: a file for what this network would have chosen. other: such a file of the same network in another
        precision, to compare with; then the answer has `relus`, `others` and `checks`, see `twin/imposed.py`. Ask before
        the network itself takes its first step: the copies are made then.
        """
        network = self.network(precision, copy="imposed")
        model, solver = network.model, network.solver
        images, sizes, targets = self._batch(batch, network.dtype)
        given = Decisions.load(decisions)
        solver.zero_grad(set_to_none=True)
        parts, trunk, mode = twin_imposed.imposed_losses(model, images, targets, given)
        sum(parts.values()).backward()
        answer: dict[str, Any] = {"losses": {name: value.item() for name, value in parts.items()}}
        save_arrays(choices, twin_imposed.own_choices(mode))
        if other is not None:
            known = load_arrays(other)
            answer["relus"] = twin_imposed.relu_rows(mode, known)
            answer["others"] = twin_imposed.other_rows(mode, known)
            answer["checks"] = twin_imposed.check_choices(model, trunk, sizes, targets, given)
        if out is not None:
            grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
            save_arrays(out, {name: grad.cpu().numpy() for name, grad in grads.items()})
        if iteration is not None:
            twin_train.update(solver, self.config.solver, iteration)
        return answer

    def step(
        self, batch: str, iteration: int, precision: str | None = None, only_positive: bool = False
    ) -> dict[str, float]:
        """One SGD step; returns the four losses before it. only_positive: see `twin.train.losses`."""
        network = self.network(precision)
        images, sizes, targets = self._batch(batch, network.dtype)
        return twin_train.train_step(
            network.model, network.solver, self.config.solver, iteration, images, sizes, targets, only_positive
        )

    def prepare_timing(self, batch: str, rois: str, compiled: bool) -> list[str]:
        """Keep what the timed parts work on; returns the names of the parts.

        compiled: the network, and nothing else, compiled by torch.compile with its weights frozen.
        """
        images, sizes, targets = self._batch(batch)
        boxes = torch.from_numpy(load_arrays(rois)["rois"]).to(images)
        self.training = (images, sizes, targets)
        model = self.model
        if compiled:
            self.parts = {"network": self._compiled_network(images, boxes)}
            return list(self.parts)
        with torch.no_grad():
            trunk = model.trunk(images)
        body = [trunk.stages[name] for name in ("C3", "C4", "C5")]
        fpn = model.backbone.fpn
        with torch.no_grad():
            levels = fpn.fpn(*body)
        self.parts = {
            "backbone": lambda: model.backbone.body(images),
            "pyramid": lambda: fpn.enhanced(fpn.fpn(*body)),
            "dense pyramid": lambda: fpn.enhanced(levels),
            "head": lambda: model.rpn.head(trunk.pyramid),
            "boxes": lambda: twin_detect.proposals(trunk, sizes, self.config.model.fcos),
            "masks": lambda: model.masks(trunk.pyramid, boxes),
            "network": lambda: model.masks(model.trunk(images).pyramid, boxes),
            "detect": lambda: twin_detect.detect(model, images, sizes),
            "paste": lambda: self._paste(boxes[:, 1:], sizes[0]),
        }
        return [*self.parts, *TRAINING_STEPS]

    def _compiled_network(self, images: torch.Tensor, boxes: torch.Tensor):
        import torch._inductor.config as inductor

        inductor.freezing = True
        model = self.model.eval()
        for parameter in model.parameters():
            parameter.requires_grad_(False)

        def network(x: torch.Tensor, rois: torch.Tensor):
            trunk = model.trunk(x)
            answers = [trunk.head(name) for name in ("cls_logits", "bbox_reg", "centerness")]
            return answers, model.masks(trunk.pyramid, rois)["mask_logits"]

        compiled = torch.compile(network)
        return lambda: compiled(images, boxes)

    def _paste(self, boxes: torch.Tensor, size: tuple[int, int]) -> tuple[list[dict], list[dict]]:
        """Masks of all boxes in a picture of the network's size, as run lengths."""
        masks = torch.from_numpy(disc_masks(len(boxes))).to(boxes)
        return coco_entries((boxes, torch.ones(len(boxes)), masks), size, size, 1, 1)

    def time(self, part: str) -> float:
        """Seconds that one run of a part takes."""
        if part in TRAINING_STEPS:
            return self._timed(lambda: twin_train.train_step(
                self.model, self.solver, self.config.solver, 1, *self.training, only_positive=part != TRAINING_STEPS[0]
            ))
        with torch.no_grad():
            return self._timed(self.parts[part])

    def memory(self) -> dict[str, float]:
        """Peak memory in MiB: of the process, and on the device."""
        peak = {"process": peak_memory_mb()}
        if self.device.type == "cuda":
            peak["device"] = torch.cuda.max_memory_reserved() / 2**20
        return peak

    def _timed(self, run) -> float:
        self._synchronize()
        started = time.perf_counter()
        run()
        self._synchronize()
        return time.perf_counter() - started

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def _batch(self, path: str, dtype: torch.dtype | None = None):
        batch, targets = load_batch(path)
        return torch.from_numpy(batch.images).to(self.device, dtype or self.dtype), batch.sizes, targets


def _detections(found: list) -> dict[str, Any]:
    out = {}
    for image, (boxes, scores, masks) in enumerate(found):
        out[f"detections/{image}/boxes"] = boxes.cpu().numpy()
        out[f"detections/{image}/scores"] = scores.cpu().numpy()
        out[f"detections/{image}/masks"] = masks.cpu().numpy()
    return out


if __name__ == "__main__":
    backend = TorchBackend()
    serve(
        {
            "build": backend.build,
            "load": backend.load,
            "load_checkpoint": backend.load_checkpoint,
            "save": backend.save,
            "suspend": backend.suspend,
            "resume": backend.resume,
            "results": backend.results,
            "stages": backend.stages,
            "gradients": backend.gradients,
            "imposed": backend.imposed,
            "step": backend.step,
            "prepare_timing": backend.prepare_timing,
            "time": backend.time,
            "memory": backend.memory,
        }
    )
