"""What is done with all parameters of a network at once, in a few launches; CUDA only."""

from __future__ import annotations

from typing import Sequence

from .compile import Kernels

MAX_NUMBERS = 64  # kManyArrays in kernels/many.cuh
KERNELS = Kernels(cpu=None, cuda="many.cuh")


def sgd(
    weights: Sequence,
    gradients: Sequence,
    momenta: Sequence,
    rate: float,
    momentum: float,
    decay: float,
    kernels: Kernels = KERNELS,
) -> tuple[list, list]:
    """A step of SGD as `jt.optim.SGD` takes it: v = momentum * v + (decay * w + g), w = w - rate * v.

    Args:
        weights, gradients, momenta: Vars float32, the same number of each and of the same shapes.

    Returns:
        The new weights and the new momenta, Vars of these shapes to be handed to `update`; the given ones stay as they are.
    """
    count = len(weights)
    if not count == len(gradients) == len(momenta):
        raise ValueError(f"sgd: {count} weights, {len(gradients)} gradients, {len(momenta)} momenta")
    arrays = [*weights, *gradients, *momenta]
    for index, array in enumerate(arrays):
        if array.dtype != "float32" or list(array.shape) != list(weights[index % count].shape):
            raise ValueError(
                f"sgd: array {index} is {array.dtype} {list(array.shape)}, expected float32 "
                f"{list(weights[index % count].shape)}"
            )
    lines = ['Sgd sgd = sgd_begin(data["rate"], data["momentum"], data["decay"]);']
    for k in range(count):
        inputs = ", ".join(f"in{k + part * count}_p" for part in range(3))
        lines.append(f"sgd_add(sgd, {inputs}, out{k}_p, out{k + count}_p, in{k}->num);")
    lines.append("sgd_flush(sgd);")
    shapes = [array.shape for array in weights] * 2
    data = {"rate": rate, "momentum": momentum, "decay": decay}
    new = kernels.run("\n".join(lines), arrays, shapes, ["float32"] * len(shapes), data)
    return new[:count], new[count:]


def report(numbers: Sequence, arrays: Sequence, kernels: Kernels = KERNELS):
    """Var [n + k] float32: the `numbers`, n Vars [1], then for each of k `arrays` 1 where it holds NaN or infinity, else 0.

    All that the host wants to know of a training step, in one array, so that it waits once.
    """
    if len(numbers) > MAX_NUMBERS:
        raise ValueError(f"report: at most {MAX_NUMBERS} numbers, got {len(numbers)}")
    for index, value in enumerate([*numbers, *arrays]):
        if value.dtype != "float32" or (index < len(numbers) and list(value.shape) != [1]):
            raise ValueError(f"report: entry {index} is {value.dtype} {list(value.shape)}")
    lines = ["Report report = report_begin(out0_p);"]
    lines += [f"report_number(report, in{k}_p);" for k in range(len(numbers))]
    lines.append(f"report_numbers_end(report, {len(arrays)});")
    lines += [f"report_array(report, in{k}_p, in{k}->num);" for k in range(len(numbers), len(numbers) + len(arrays))]
    lines.append("report_flush(report);")
    inputs = [*numbers, *arrays]
    (found,) = kernels.run("\n".join(lines), inputs, [[len(inputs)]], ["float32"], {})
    return found.stop_grad()
