"""The Jittor side of `jrdp bench`: what `jrdp compare speed` times, the operators, a picture from file to results."""

from __future__ import annotations

import numpy as np

from jrdp.machine import runtime
from jrdp.comparison.exchange import load_arrays, load_batch
from jrdp.comparison.worker import TRAINING_STEPS, peak_memory_mb, serve
from jrdp.comparison.worker_jittor import JittorBackend
from jrdp.config import parse_config
from jrdp.machine.cache import loaded_kernels


class JittorBench(JittorBackend):
    """`JittorBackend` with more parts to time; `prepare_timing` comes first."""

    def prepare_more(self, inputs: str, picture: str, training: str) -> list[str]:
        """Add the operators on the arrays of `inputs`, the whole way of a picture, and the batch that is trained on.

        Returns all names.
        """
        from jrdp.engine.predictor import SalientInstanceModel
        from jrdp.ops import multilevel_roi_align, nms, paste_mask_rle

        jt, arrays = self.jt, load_arrays(inputs)
        rois = jt.array(arrays["rois"])
        levels = [jt.array(arrays[f"level{k}"]) for k in range(5)]
        sizes, scales = (32, 16, 8, 4, 4), (1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128)

        def pool():
            return multilevel_roi_align(levels, rois, sizes, scales)

        def pool_backward():
            return jt.grad(sum((x * x).sum() for x in pool()), levels)

        self.with_gradients = {"RoIAlign with backward": pool_backward}
        self.training = load_batch(training)
        batch = jt.array(self.training[0].images)

        def forward():
            found = self.model.backbone(batch)
            return self.model.rpn.head(found), self.model.roi_heads.mask(found, rois)

        chosen = self.fast if self.engine == "fast" else self.model
        model = SalientInstanceModel(chosen, self.config, lambda: self.model)
        self.parts.update(
            {
                "RoIAlign": pool,
                "NMS of 1000": lambda: nms(arrays["boxes1000"], arrays["scores1000"], 0.6),
                "NMS of 5000": lambda: nms(arrays["boxes5000"], arrays["scores5000"], 0.6),
                "paste and encode": lambda: paste_mask_rle(arrays["masks"], arrays["rois"][:, 1:], 480, 720),
                "read and resize": lambda: _read(picture, self.config),
                "end to end": lambda: _predict(model, picture),
                "forward of a training batch": forward,
            }
        )
        return [*self.parts, *self.with_gradients, *TRAINING_STEPS]

    def time(self, part: str) -> float:
        if part in self.with_gradients:
            return self._timed(self.with_gradients[part])
        return super().time(part)

    def predict_once(self, config: dict, state: str, picture: str, engine: str) -> dict:
        """What `jrdp predict` does for its first picture; nothing else may have run in this process."""
        runtime.start("cpu")
        from jrdp.engine.network import for_prediction
        from jrdp.engine.predictor import SalientInstanceModel
        from jrdp.models.rdpnet import RDPNet
        from jrdp.models.state import assign_state

        settings = parse_config(config, "of the benchmark")
        settings.test.engine = engine
        plain = RDPNet(settings.model)
        assign_state(plain, load_arrays(state))
        network = for_prediction(plain, settings)
        del plain  # so that memory is that of the engine alone
        found = _predict(SalientInstanceModel(network, settings, lambda: network), picture)
        packed = network.packed_bytes / 2**20 if engine == "fast" else None
        return {"peak_mib": peak_memory_mb(), "packed_mib": packed, "kernels": len(loaded_kernels()), "found": len(found)}


def _read(picture: str, config) -> np.ndarray:
    from jrdp.data.transforms import batch_images, prepare_image, read_image

    return batch_images([prepare_image(read_image(picture), config.input)]).images


def precision_obstacle() -> str | None:
    """Why products of bfloat16 would be slow here, for PyTorch too; None where the processor has instructions for them."""
    from jrdp.engine.precision import bfloat16_obstacle

    return bfloat16_obstacle()


def _predict(model, picture: str) -> list[dict]:
    from jrdp.engine.predict import coco_results

    return coco_results(model.predict(picture), 1, picture)


if __name__ == "__main__":
    runtime.own_process()
    backend = JittorBench()
    serve(
        {
            "build": backend.build,
            "load": backend.load,
            "prepare_timing": backend.prepare_timing,
            "prepare_more": backend.prepare_more,
            "time": backend.time,
            "memory": backend.memory,
            "bfloat16_obstacle": precision_obstacle,
            "predict_once": backend.predict_once,
        }
    )
