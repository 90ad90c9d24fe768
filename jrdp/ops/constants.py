"""A number as a Var, without a kernel compiled for it and without a copy to the device."""

from __future__ import annotations

from .compile import Kernels

KERNELS = Kernels(cpu="constant.h", cuda="constant.cuh")


def constant(number: float, kernels: Kernels = KERNELS):
    """Var [1] float32, without a gradient."""
    (value,) = kernels.run('constant_set(data["number"], out0_p);', [], [[1]], ["float32"], {"number": number})
    return value.stop_grad()
