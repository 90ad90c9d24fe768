"""The PyTorch side of `jrdp bench`; the same commands as `worker_jittor`."""

from __future__ import annotations

import numpy as np

from jrdp.comparison.worker import TRAINING_STEPS, peak_memory_mb, serve
from jrdp.comparison.worker_torch import TorchBackend

import torch  # noqa: E402  (worker_torch says what to do where there is none)

from jrdp.comparison.twin import detect as twin_detect
from jrdp.comparison.twin import ops
from jrdp.comparison.exchange import load_arrays
from jrdp.comparison.twin.results import coco_entries
from jrdp.config import Config
from jrdp.data.transforms import batch_images, prepare_image, read_image


class TorchBench(TorchBackend):
    """`TorchBackend` with more parts to time; `prepare_timing` comes first."""

    layout, autocast = torch.contiguous_format, False

    def use_form(self, form: str) -> None:
        """Before `prepare_timing`: "channels_last" memory, or "bfloat16" by autocast in that memory as well."""
        self.layout, self.autocast = torch.channels_last, form == "bfloat16"
        self.model.to(memory_format=self.layout)

    def _batch(self, batch: str, dtype: torch.dtype | None = None):
        images, *rest = super()._batch(batch, dtype)
        return images.contiguous(memory_format=self.layout), *rest

    def prepare_more(self, inputs: str, picture: str, training: str) -> list[str]:
        """Add the operators on the arrays of `inputs`, the whole way of a picture, and the batch that is trained on.

        Returns all names.
        """
        arrays = {name: torch.from_numpy(value) for name, value in load_arrays(inputs).items()}
        rois = arrays["rois"]
        levels = [arrays[f"level{k}"] for k in range(5)]
        learning = [level.clone().requires_grad_() for level in levels]

        def pool(features):
            sizes = (32, 16, 8, 4, 4)
            return [
                ops.roi_align(x, rois, size, 1 / (8 << k), 2)
                for k, (x, size) in enumerate(zip(features, sizes))
            ]

        def pool_backward():
            return torch.autograd.grad(sum((x * x).sum() for x in pool(learning)), learning)

        self.training = self._batch(training)
        batch = self.training[0]
        masks, boxes, scores = arrays["masks"], rois[:, 1:], torch.ones(len(rois))
        self.with_gradients = {"RoIAlign with backward": pool_backward}
        self.parts.update(
            {
                "RoIAlign": lambda: pool(levels),
                "NMS of 1000": lambda: twin_detect.legacy_nms(arrays["boxes1000"], arrays["scores1000"], 0.6),
                "NMS of 5000": lambda: twin_detect.legacy_nms(arrays["boxes5000"], arrays["scores5000"], 0.6),
                "paste and encode": lambda: coco_entries((boxes, scores, masks), (480, 720), (480, 720), 1, 1),
                "end to end": lambda: self._predict(picture, self.config),
                "forward of a training batch": lambda: self.model.masks(self.model.trunk(batch).pyramid, rois),
            }
        )
        return [*self.parts, *self.with_gradients, *TRAINING_STEPS]

    def time(self, part: str) -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            if part in self.with_gradients:
                return self._timed(self.with_gradients[part])
            return super().time(part)

    def predict_once(self, config: dict, state: str, picture: str, engine: str) -> dict:
        """The first picture in a new process."""
        self.build(config, "cpu", timing=True)
        self.load(state)
        with torch.no_grad():
            found = self._predict(picture, self.config)
        return {"peak_mib": peak_memory_mb(), "packed_mib": None, "kernels": None, "found": len(found)}

    def _predict(self, picture: str, config: Config) -> list[dict]:
        batch = batch_images([prepare_image(read_image(picture), config.input)])
        found = twin_detect.detect(self.model, torch.from_numpy(np.ascontiguousarray(batch.images)), batch.sizes)
        boxes, masks = coco_entries(found[0], batch.sizes[0], batch.original_sizes[0], 1, 1)
        return [{**box, **mask} for box, mask in zip(boxes, masks)]


if __name__ == "__main__":
    backend = TorchBench()
    serve(
        {
            "build": backend.build,
            "load": backend.load,
            "use_form": backend.use_form,
            "prepare_timing": backend.prepare_timing,
            "prepare_more": backend.prepare_more,
            "time": backend.time,
            "memory": backend.memory,
            "predict_once": backend.predict_once,
        }
    )
