"""The Jittor side of a comparison: `python -m jrdp.comparison.worker_jittor`, driven by `process.Worker`."""

from __future__ import annotations

import time
from typing import Any, Callable

import numpy as np

from jrdp.machine import runtime
from jrdp.comparison.exchange import load_arrays, load_batch, save_arrays
from jrdp.comparison.synthetic import disc_masks
from jrdp.comparison.worker import TRAINING_STEPS, peak_memory_mb, serve
from jrdp.config import parse_config


class JittorBackend:
    """Holds one network; every method is a command, the same ones as in `worker_torch`."""

    def build(self, config: dict, device: str, engine: str, tf32: bool = False) -> dict:
        """Make the network; returns versions and the tensors' shapes in order.

        engine: "plain", or "fast" for prediction with the CPU engine (`train.engine` is that of training). tf32: on a
        GPU, for float32 products.
        """
        self.device = runtime.start(device, tf32=tf32)
        import jittor as jt

        from jrdp.engine.convolutions import refuse_unfit_arithmetic
        from jrdp.engine.precision import refuse_unfit_precision
        from jrdp.models.rdpnet import RDPNet
        from jrdp.models.state import tensor_info

        self.jt = jt
        self.config = parse_config(config, "of the comparison")
        refuse_unfit_arithmetic(self.config.train)
        refuse_unfit_precision("test.precision", self.config.test.precision)
        self.engine = engine
        self.model = RDPNet(self.config.model)
        info = tensor_info(self.model)
        return {
            "versions": {"jittor": jt.__version__},
            "shapes": {name: list(tensor.shape) for name, tensor in info.items()},
            "trainable": [name for name, tensor in info.items() if tensor.trainable],
        }

    def load(self, state: str) -> None:
        """Fill every tensor from an .npz, strictly, and start training anew."""
        from jrdp.engine.solver import Solver
        from jrdp.models.state import assign_state, trainable_parameters

        arrays = load_arrays(state)
        assign_state(self.model, arrays)
        self.solver = Solver(trainable_parameters(self.model), self.config.solver)
        if self.engine == "fast":
            from jrdp.engine.network import fast_network

            self.fast = fast_network(arrays, self.config)

    def save(self, out: str) -> None:
        """All tensors by name."""
        from jrdp.models.state import named_tensors

        save_arrays(out, {name: value.numpy() for name, value in named_tensors(self.model).items()})

    def initial(self, out: str, seed: int) -> None:
        """All tensors of a new network, initialised by `seed`."""
        from jrdp.models.rdpnet import RDPNet
        from jrdp.models.state import named_tensors

        self.jt.set_global_seed(seed)
        network = RDPNet(self.config.model)
        save_arrays(out, {name: value.numpy() for name, value in named_tensors(network).items()})

    def suspend(self, out: str) -> None:
        """Everything that training needs to go on: `weight/NAME` and `momentum/NAME`."""
        from jrdp.models.state import named_tensors

        weights = {f"weight/{name}": value.numpy() for name, value in named_tensors(self.model).items()}
        save_arrays(out, {**weights, **{f"momentum/{name}": v for name, v in self.solver.momentum().items()}})

    def resume(self, state: str) -> None:
        """Go on from what `suspend` wrote."""
        from jrdp.models.state import assign_state

        arrays = load_arrays(state)
        assign_state(self.model, {n[len("weight/") :]: v for n, v in arrays.items() if n.startswith("weight/")})
        self.solver.load_momentum(
            {n[len("momentum/") :]: v for n, v in arrays.items() if n.startswith("momentum/")}
        )

    def stages(self, batch: str, out: str) -> None:
        """Every stage (mask stages on the network's own detections, which are also returned) and the detections."""
        images, _ = load_batch(batch)
        if self.engine == "fast":
            found = self.fast.detect(images)
            arrays = self.fast.stages(images.images, _rois(found))
        else:
            stages: dict[str, Any] = {}
            found = self.model.detect(images, stages)
            arrays = {name: value.numpy() for name, value in stages.items()}
        for image, instances in enumerate(found):
            arrays[f"detections/{image}/boxes"] = instances.boxes
            arrays[f"detections/{image}/scores"] = instances.scores
            arrays[f"detections/{image}/masks"] = instances.mask_probabilities
        save_arrays(out, arrays)

    def gradients(self, batch: str, out: str, decisions: str) -> dict[str, float]:
        """The four losses of a batch, the gradient of every trainable parameter and the decisions; no update."""
        images, targets = load_batch(batch)
        parts = self._watched_backward(images, targets, decisions)
        save_arrays(out, {name: value.numpy() for name, value in self.solver.gradients().items()})
        return {name: float(value.item()) for name, value in parts.items()}

    def step(self, batch: str, iteration: int, decisions: str | None = None) -> dict[str, float]:
        """One SGD step; returns the four losses before it. decisions: a file for those of this step."""
        images, targets = load_batch(batch)
        if decisions is None:
            with self._training():
                return self._step(images, targets, iteration)
        parts = self._watched_backward(images, targets, decisions)
        self.solver.step(iteration)
        return {name: float(value.item()) for name, value in parts.items()}

    def _watched_backward(self, images, targets, path: str) -> dict[str, Any]:
        from jrdp.comparison.choices_jittor import read_decisions, watched_losses

        with self._training():
            parts, stages, relus = watched_losses(self.model, images, targets)
            self.solver.backward(sum(parts.values()))
        read_decisions(self.model, images, targets, stages, relus).save(path)
        return parts

    def prepare_timing(self, batch: str, rois: str, compiled: bool) -> list[str]:
        """Keep what the timed parts work on; returns the names of the parts."""
        self.batch, targets = load_batch(batch)
        self.training = self.batch, targets
        boxes = load_arrays(rois)["rois"]
        with self.jt.no_grad():
            self.parts = self._fast_parts(boxes) if self.engine == "fast" else self._plain_parts(boxes)
            self.jt.sync_all(True)
        return [*self.parts, *TRAINING_STEPS]

    def _plain_parts(self, boxes: np.ndarray) -> dict[str, Callable[[], Any]]:
        from jrdp.models.fcos_decode import decode_vars
        from jrdp.models.shapes import LEVELS

        model, images, rois = self.model, self.jt.array(self.batch.images), self.jt.array(boxes)
        body, fpn, head, masks = model.backbone.body, model.backbone.fpn, model.rpn.head, model.roi_heads.mask
        c3, c4, c5 = body(images)[-3:]
        stages: dict[str, Any] = {}
        levels = fpn(c3, c4, c5, stages)
        plain = [stages[f"P{level}"] for level in LEVELS]
        answers = head(levels)

        def network():
            found = model.backbone(images)
            return head(found), masks(found, rois)

        return {
            "backbone": lambda: body(images),
            "pyramid": lambda: fpn(c3, c4, c5),
            "dense pyramid": lambda: fpn.enhance(plain),
            "head": lambda: head(levels),
            "boxes": lambda: decode_vars(*answers[:3], self.batch.sizes, self.config.model.fcos),
            "masks": lambda: masks(levels, rois),
            "network": network,
            "detect": lambda: model.detect(self.batch),
            "paste": lambda: self._paste(boxes),
        }

    def _fast_parts(self, rois: np.ndarray) -> dict[str, Callable[[], Any]]:
        from jrdp.fast.network import to_nhwc
        from jrdp.models.fcos_decode import decode
        from jrdp.models.shapes import LEVELS

        fast, images = self.fast, self.batch.images
        maps = fast.backbone(to_nhwc(images))
        stages: dict[str, Any] = {}
        levels = fast.pyramid(maps, stages)
        plain = [stages[f"P{level}"] for level in LEVELS]
        answers = fast.head(levels)

        def network():
            found = fast.pyramid(fast.backbone(to_nhwc(images)))
            return fast.head(found), fast.mask_head(found, rois)

        return {
            "backbone": lambda: fast.backbone(to_nhwc(images)),
            "pyramid": lambda: fast.pyramid(maps),
            "dense pyramid": lambda: fast.pyramid.enhance(plain),
            "head": lambda: fast.head(levels),
            "boxes": lambda: decode(*answers, self.batch.sizes, self.config.model.fcos),
            "masks": lambda: fast.mask_head(levels, rois),
            "network": network,
            "detect": lambda: fast.detect(self.batch),
            "paste": lambda: self._paste(rois),
        }

    def _paste(self, rois: np.ndarray) -> Any:
        """Masks of all boxes in a picture of the network's size, as run lengths."""
        from jrdp.ops import paste_mask_rle

        height, width = self.batch.sizes[0]
        return paste_mask_rle(disc_masks(len(rois)), rois[:, 1:], height, width)

    def time(self, part: str) -> float:
        """Seconds that one run of a part takes."""
        if part in TRAINING_STEPS:  # the same on this side
            with self._training():
                return self._timed(lambda: self._step(*self.training, 1))
        with self.jt.no_grad():
            return self._timed(self.parts[part])

    def memory(self) -> dict[str, float]:
        """Peak memory in MiB: of the process, and what Jittor has taken of the device, which it never gives back."""
        peak = {"process": peak_memory_mb()}
        if self.device == "cuda":
            peak["device"] = self.jt.get_mem_info().total_cuda_used / 2**20
        return peak

    def _training(self):
        """While the block runs, convolutions compute as the configuration asks for in training; going through the network
        for that is no part of a timed step."""
        from jrdp.engine.convolutions import convolutions_of_training

        return convolutions_of_training(self.model, self.config.train)

    def _step(self, images, targets, iteration: int) -> dict[str, float]:
        parts = self.model.losses(images, targets)
        self.solver.backward(sum(parts.values()))
        self.solver.step(iteration)
        return {name: float(value.item()) for name, value in parts.items()}

    def _timed(self, run) -> float:
        self.jt.sync_all(True)
        started = time.perf_counter()
        results = run()  # Jittor is lazy and drops what nobody holds
        self.jt.sync_all(True)
        del results
        return time.perf_counter() - started


def _rois(found: list) -> np.ndarray:
    """Boxes of all images with the image's index in front, float32 `[R, 5]`."""
    parts = [np.insert(instances.boxes, 0, image, axis=1) for image, instances in enumerate(found)]
    return np.concatenate(parts).astype(np.float32)


if __name__ == "__main__":
    runtime.own_process()
    backend = JittorBackend()
    serve(
        {
            "build": backend.build,
            "load": backend.load,
            "save": backend.save,
            "initial": backend.initial,
            "suspend": backend.suspend,
            "resume": backend.resume,
            "stages": backend.stages,
            "gradients": backend.gradients,
            "step": backend.step,
            "prepare_timing": backend.prepare_timing,
            "time": backend.time,
            "memory": backend.memory,
        }
    )
