"""How rough are the sums of one 3x3 convolution of the detection head? For section 4 of docs/parity.md.

    python scripts/parity_sums.py jittor|torch|chains

Prints one line of JSON: relative L2 distance to float64, by the number of output channels, of the framework's float32
convolution, or of float32 sums in one chain and in eight chains side by side. The input is as after a ReLU, and the sums come to
about 4, as the box regression's do before the exponential.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

CHANNELS, HEIGHT, WIDTH = 128, 10, 15
OUTPUTS = (4, 128)  # the box regression, and a layer of its tower


def main() -> None:
    side = sys.argv[1] if len(sys.argv) == 2 else ""
    if side in ("-h", "--help"):
        print(__doc__)
        return
    if side not in ("jittor", "torch", "chains"):
        sys.exit(__doc__)
    found: dict[str, dict[str, float]] = {}
    for outputs in OUTPUTS:
        x, weight = _numbers(outputs)
        exact = _chains(x.astype(np.float64), weight.astype(np.float64), 1)
        if side == "chains":
            results = {"one chain": _chains(x, weight, 1), "eight chains": _chains(x, weight, 8)}
        else:
            results = {side: _jittor(x, weight) if side == "jittor" else _torch(x, weight)}
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


def _jittor(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    from jrdp.machine import runtime

    runtime.prepare()
    import jittor as jt

    return jt.nn.conv2d(jt.array(x[None]), jt.array(weight), padding=1).numpy()[0]


def _torch(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    import torch

    return torch.conv2d(torch.tensor(x[None]), torch.tensor(weight), padding=1).numpy()[0]


if __name__ == "__main__":
    main()
