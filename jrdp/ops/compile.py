"""How the kernel files in `kernels/` become Jittor operators, and what these have in common."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import jittor as jt

from jrdp.machine.headers import stable_headers

KERNELS = stable_headers(Path(__file__).resolve().parent / "kernels")

# Jittor finds the headers that headers include, to notice when they change, on the include path only.
INCLUDE = f'FLAGS: -I"{KERNELS}" '

# Jittor compiles with -Ofast. Ours decide by the last bit (an overlap against a threshold, a sample against the
# border), so on the CPU they are compiled as written; the flags come after Jittor's own. (CUDA: host_device.h.)
EXACT = "-fno-fast-math -ffp-contract=off "


@dataclass(frozen=True)
class Kernels:
    """The two headers that define the same functions, one for each device; without one for the CPU it runs on CUDA only.

    A source text given to `run` calls those functions by name, so one text serves both. The headers are included by
    their absolute path: Jittor then notices when they, or what they include, change.
    """

    cpu: str | None
    cuda: str
    shim: bool = False  # run the CUDA header's kernels on the CPU

    def shimmed(self) -> Kernels:
        """The CUDA kernels on the CPU, one thread after the other: for tests on machines without a GPU."""
        return replace(self, shim=True)

    @property
    def need_cuda_scratch(self) -> bool:
        return self.shim or jt.flags.use_cuda

    def run(self, source: str, inputs: list, shapes: list, dtypes: list, data: dict) -> list:
        """Call `source` on `inputs`; returns one Var per shape. `data`: numbers that may change without recompiling."""
        # A number that is missing from `data` would read 0 without a word, so every name is checked to be in the text.
        unused = [name for name in data if f'data["{name}"]' not in source]
        if unused or source.count('data["') != len(data):
            raise AssertionError(f"source and data disagree: {sorted(data)} against {source}")
        if self.shim:
            # Naming the shim also makes the text another one: Jittor looks an operator up by its CUDA text first, even
            # on a CPU, and would take the shimmed operator for the plain one.
            texts = {"cpu_header": _include("cuda_shim.h") + _include(self.cuda), "cpu_src": source}
        else:
            texts = {"cuda_header": _include(self.cuda), "cuda_src": source}
            if self.cpu is not None:
                texts.update(cpu_header=_include(self.cpu), cpu_src=source)
        numbers = {name: float(value) for name, value in data.items()}
        outputs = jt.code(shapes, dtypes, inputs, data=numbers, **texts)
        outputs[0].compile_options = {INCLUDE if jt.flags.use_cuda else INCLUDE + EXACT: 1}
        return outputs


def _include(name: str) -> str:
    return f'#include "{KERNELS / name}"\n'


CONSTANT = Kernels(cpu="constant.h", cuda="constant.cuh")


def constant(number: float, kernels: Kernels = CONSTANT):
    """A number as a Var [1] float32 without a gradient, without a kernel compiled for it and without a copy to the device."""
    (value,) = kernels.run('constant_set(data["number"], out0_p);', [], [[1]], ["float32"], {"number": number})
    return value.stop_grad()


def need_float32(name: str, value, *shape) -> None:
    """Raise ValueError unless the Var `value` is float32 of this shape; a letter stands for a dimension of any length."""
    fits = value.ndim == len(shape) and all(isinstance(n, str) or n == m for n, m in zip(shape, value.shape))
    if not fits or value.dtype != "float32":
        expected = ", ".join(map(str, shape))
        raise ValueError(f"{name}: expected float32 [{expected}], got {value.dtype} {list(value.shape)}")
