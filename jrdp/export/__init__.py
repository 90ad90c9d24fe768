"""The network as an ONNX file, straight from a checkpoint's tensors: no torch, no Jittor, only the `onnx` package."""

from jrdp.export.onnx_file import export

__all__ = ["export"]
