"""How rough are the sums of one 3x3 convolution, and of the gradient of its weights? For section 4 of docs/parity.md.

    python scripts/parity_sums.py jittor|torch|chains

Prints one line of JSON: relative L2 distance to float64 of the framework's float32, on one thread, or of float32 sums in one chain
and in eight chains side by side. Of convolutions as in the detection head by their number of output channels: the input is as after
a ReLU, and the sums come to about 4, as the box regression's do before the exponential. "weights": the gradient of the weights of a
convolution as in the mask head, a sum over all pixels of all RoIs.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

CHANNELS, HEIGHT, WIDTH = 128, 10, 15
OUTPUTS = (4, 128)  # the box regression, and a layer of its tower
ROIS, SIDE = 24, 32  # of the weights' gradient, to 4 channels


def main() -> None:
    side = sys.argv[1] if len(sys.argv) == 2 else ""
    if side in ("-h", "--help"):
        print(__doc__)
        return
    if side not in ("jittor", "torch", "chains"):
        sys.exit(__doc__)
    os.environ["OMP_NUM_THREADS"] = "1"  # more threads add in more sums
    of = {"jittor": _jittor, "torch": _torch}
    found: dict[str, dict[str, float]] = {}
    for outputs in (*OUTPUTS, "weights"):
        arguments = _numbers_of_weights() if outputs == "weights" else _numbers(outputs)
        chains = _weight_chains if outputs == "weights" else _chains
        exact = chains(*(array.astype(np.float64) for array in arguments), 1)
        if side == "chains":
            results = {"one chain": chains(*arguments, 1), "eight chains": chains(*arguments, 8)}
        else:
            results = {side: of[side](*arguments)}
        for name, result in results.items():
            found.setdefault(name, {})[str(outputs)] = float(np.linalg.norm(result - exact) / np.linalg.norm(exact))
    print(json.dumps(found))


def _numbers(outputs: int) -> tuple[np.ndarray, np.ndarray]:
    """Input [C, H, W] and weights [outputs, C, 3, 3], always the same."""
    numbers = np.random.default_rng(outputs)
    x = np.maximum(numbers.normal(size=(CHANNELS, HEIGHT, WIDTH)), 0).astype(np.float32)
    return x, (numbers.normal(size=(outputs, CHANNELS, 3, 3)) * 0.01 + 0.008).astype(np.float32)


def _chains(x: np.ndarray, weight: np.ndarray, lanes: int) -> np.ndarray:
    """The convolution in the precision of its arguments, the products dealt out in turn to `lanes` sums."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
    sums = np.zeros((lanes, len(weight), HEIGHT, WIDTH), x.dtype)
    for number in range(9 * CHANNELS):
        (row, column), channel = divmod(number // CHANNELS, 3), number % CHANNELS
        window = padded[channel, row : row + HEIGHT, column : column + WIDTH]
        sums[number % lanes] += weight[:, channel, row, column, None, None] * window
    return sums.sum(0, dtype=x.dtype)


def _numbers_of_weights() -> tuple[np.ndarray, np.ndarray]:
    """Input [R, C, H, W] and the gradient of the output [R, 4, H, W], which is what tells that weights are asked for."""
    numbers = np.random.default_rng(0)
    x = np.maximum(numbers.normal(size=(ROIS, CHANNELS, SIDE, SIDE)), 0).astype(np.float32)
    return x, (numbers.normal(size=(ROIS, 4, SIDE, SIDE)) * 1e-4).astype(np.float32)


def _weight_chains(x: np.ndarray, gradient: np.ndarray, lanes: int) -> np.ndarray:
    """The gradient of the weights [4, C, 3, 3], the pixels of all RoIs dealt out in turn to `lanes` sums."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    sums = np.zeros((lanes, 4, CHANNELS, 3, 3), x.dtype)
    for number, (roi, row, column) in enumerate(np.ndindex(ROIS, SIDE, SIDE)):
        window = padded[roi, :, row : row + 3, column : column + 3]
        sums[number % lanes] += gradient[roi, :, row, column, None, None, None] * window
    return sums.sum(0, dtype=x.dtype)


def _jittor(x: np.ndarray, other: np.ndarray) -> np.ndarray:
    from jrdp.machine import runtime

    runtime.prepare()
    import jittor as jt

    if x.ndim == 3:
        return jt.nn.conv2d(jt.array(x[None]), jt.array(other), padding=1).numpy()[0]
    weight = jt.zeros((4, CHANNELS, 3, 3))
    return jt.grad((jt.nn.conv2d(jt.array(x), weight, padding=1) * jt.array(other)).sum(), weight).numpy()


def _torch(x: np.ndarray, other: np.ndarray) -> np.ndarray:
    import torch

    if x.ndim == 3:
        return torch.conv2d(torch.tensor(x[None]), torch.tensor(other), padding=1).numpy()[0]
    weight = torch.zeros((4, CHANNELS, 3, 3), requires_grad=True)
    (torch.conv2d(torch.tensor(x), weight, padding=1) * torch.tensor(other)).sum().backward()
    return weight.grad.numpy()


if __name__ == "__main__":
    main()
