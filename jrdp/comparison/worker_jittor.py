"""The Jittor side of a comparison: `python -m jrdp.comparison.worker_jittor`, driven by `process.Worker`."""

from __future__ import annotations

import time
from typing import Any

from jrdp import runtime
from jrdp.comparison.exchange import load_arrays, load_batch, save_arrays
from jrdp.comparison.worker import peak_memory_mb, serve
from jrdp.config import parse_config


class JittorBackend:
    """Holds one network; every method is a command, the same ones as in `worker_torch`."""

    def build(self, config: dict, device: str) -> dict:
        """Make the network; returns versions and the tensors' shapes in order."""
        self.device = runtime.start(device)
        import jittor as jt

        from jrdp.engine.solver import Solver
        from jrdp.models.rdpnet import RDPNet
        from jrdp.models.state import named_tensors, tensor_info

        self.jt, self.Solver, self.named_tensors = jt, Solver, named_tensors
        self.config = parse_config(config, "of the comparison")
        self.model = RDPNet(self.config.model)
        self.info = tensor_info(self.model)
        return {
            "versions": {"jittor": jt.__version__},
            "threads": int(jt.get_num_threads()) if hasattr(jt, "get_num_threads") else None,
            "shapes": {name: list(info.shape) for name, info in self.info.items()},
            "trainable": [name for name, info in self.info.items() if info.trainable],
        }

    def load(self, state: str) -> None:
        """Fill every tensor from an .npz, strictly, and start training anew."""
        from jrdp.models.state import assign_state

        assign_state(self.model, load_arrays(state))
        self._new_solver()

    def save(self, out: str) -> None:
        """All tensors by name."""
        save_arrays(out, {name: value.numpy() for name, value in self.named_tensors(self.model).items()})

    def stages(self, batch: str, out: str, rois: str | None = None) -> None:
        """Every stage (mask stages on the network's own detections, which are also returned) and the detections."""
        images, _ = load_batch(batch)
        stages: dict[str, Any] = {}
        found = self.model.detect(images, stages)
        arrays = {name: value.numpy() for name, value in stages.items()}
        for image, instances in enumerate(found):
            arrays[f"detections/{image}/boxes"] = instances.boxes
            arrays[f"detections/{image}/scores"] = instances.scores
            arrays[f"detections/{image}/masks"] = instances.mask_probabilities
        save_arrays(out, arrays)

    def gradients(self, batch: str, out: str) -> dict[str, float]:
        """The four losses of a batch and the gradient of every trainable parameter, without an update."""
        images, targets = load_batch(batch)
        parts = self.model.losses(images, targets)
        self.solver.backward(sum(parts.values()))
        save_arrays(out, {name: value.numpy() for name, value in self.solver.gradients().items()})
        return {name: float(value.item()) for name, value in parts.items()}

    def step(self, batch: str, iteration: int) -> dict[str, float]:
        """One SGD step; returns the four losses before it."""
        images, targets = load_batch(batch)
        return self._step(images, targets, iteration)

    def prepare_timing(self, batch: str, rois: str) -> list[str]:
        """Keep what the timed parts work on; returns the names of the parts."""
        jt, model = self.jt, self.model
        self.batch, self.targets = load_batch(batch)
        images = jt.array(self.batch.images)
        boxes = jt.array(load_arrays(rois)["rois"])
        body, fpn, head = model.backbone.body, model.backbone.fpn, model.rpn.head
        with jt.no_grad():
            stages: dict[str, Any] = {}
            _, c3, c4, c5 = body(images, stages)
            pyramid = fpn(c3, c4, c5, stages)
            plain = [stages[f"P{level}"] for level in range(3, 8)]
            answers = head(pyramid)
            jt.sync_all(True)
        self.parts = {
            "backbone": lambda: body(images),
            "fpn + dense pyramid": lambda: fpn(c3, c4, c5),
            "dense pyramid": lambda: fpn.enhance(plain),
            "head": lambda: head(pyramid),
            "boxes": lambda: model._detections(answers, self.batch),
            "masks": lambda: model.roi_heads.mask(pyramid, boxes),
            "network": lambda: self._network(images, boxes),
            "detect": lambda: model.detect(self.batch),
        }
        return [*self.parts, "training step"]

    def time(self, part: str) -> float:
        """Seconds that one run of a part takes."""
        if part == "training step":
            return self._timed(lambda: self._step(self.batch, self.targets, 1))
        with self.jt.no_grad():
            return self._timed(self.parts[part])

    def memory(self) -> dict[str, float]:
        """Peak memory in MiB of the process."""
        return {"process": peak_memory_mb()}

    def _new_solver(self) -> None:
        from jrdp.models.state import trainable_parameters

        self.solver = self.Solver(trainable_parameters(self.model), self.config.solver)

    def _step(self, images, targets, iteration: int) -> dict[str, float]:
        parts = self.model.losses(images, targets)
        self.solver.backward(sum(parts.values()))
        self.solver.step(iteration)
        return {name: float(value.item()) for name, value in parts.items()}

    def _network(self, images, boxes):
        pyramid = self.model.backbone(images)
        return self.model.rpn.head(pyramid), self.model.roi_heads.mask(pyramid, boxes)

    def _timed(self, run) -> float:
        self.jt.sync_all(True)
        started = time.perf_counter()
        results = run()  # Jittor is lazy and drops what nobody holds
        self.jt.sync_all(True)
        del results
        return time.perf_counter() - started


if __name__ == "__main__":
    backend = JittorBackend()
    serve(
        {
            "build": backend.build,
            "load": backend.load,
            "save": backend.save,
            "stages": backend.stages,
            "gradients": backend.gradients,
            "step": backend.step,
            "prepare_timing": backend.prepare_timing,
            "time": backend.time,
            "memory": backend.memory,
        }
    )
