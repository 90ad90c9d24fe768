"""The exported network in ONNX Runtime, as one side of `jrdp bench`; in the bench's own process."""

from __future__ import annotations

import time
from importlib import import_module
from pathlib import Path
from typing import Mapping

import numpy as np

from jrdp.config import Config
from jrdp.data.transforms import read_image, resize_image
from jrdp.errors import UserError
from jrdp.interchange import WeightFile


class OnnxRuntimeSide:
    """`ask("time", part="detect")` is one run on the resized picture: its boxes, scores and mask probabilities."""

    def __init__(self, state: Mapping[str, np.ndarray], config: Config, picture: Path, threads: int):
        import onnxruntime

        from jrdp.export.onnx_file import build

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        content = build(WeightFile(dict(state)), config).SerializeToString()
        self.session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        self.image = np.asarray(resize_image(read_image(picture), config.input))

    def ask(self, command: str, part: str) -> float:
        assert (command, part) == ("time", "detect")
        started = time.perf_counter()
        self.session.run(["boxes", "scores", "masks"], {"image": self.image})
        return time.perf_counter() - started


def onnxruntime_version() -> str:
    """Raises `UserError` without it, or without what writes the file that it runs."""
    try:
        import_module("onnx")
        import onnxruntime

        return onnxruntime.__version__
    except ImportError as error:
        raise UserError(f"{error}: jrdp bench --onnxruntime needs pip install 'jrdp[onnx]'") from error
