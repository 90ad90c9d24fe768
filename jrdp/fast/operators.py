"""The C++ files in `kernels/` as Jittor operators: NHWC, forward only, computing in float32.

Convolutions also multiply in bfloat16, and what lies between them can be kept in it (dtype "bfloat16" of Jittor; rounded to
nearest, ties to even, by kernels of ours: Jittor's own conversion cuts off).

Sizes and options travel as numbers in `data`, so each operator is compiled once and never for a new picture size, RoI
count or batch.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import jittor as jt
import numpy as np

from jrdp.machine import runtime
from jrdp.machine.headers import stable_headers

KERNELS = stable_headers(Path(__file__).resolve().parent / "kernels")
MAX_FINER = 4  # maps that `resize_concat` takes besides the level itself

# Jittor compiles with -Ofast, where the compiler may take it that nothing is infinite or NaN, so that a comparison decides
# as it likes about what is. For the kernels that compare numbers of maps; the others carry these by what they add and
# multiply, and keep -Ofast whole, without which exp would not be vectorised. The flag comes after Jittor's own.
CARRY = "-fno-finite-math-only "


class ConvShape(NamedTuple):
    """Input `[n, h, w, in_channels]`; everything that oneDNN chooses an implementation by."""

    n: int
    h: int
    w: int
    in_channels: int
    out_channels: int
    kernel: int
    stride: int
    groups: int
    relu: bool
    add: bool  # something is added before the ReLU
    bfloat16: bool = False  # how it multiplies, and how its input is kept
    out_bfloat16: bool = False  # how its output and what is added are kept
    one_thread: bool = False  # whether one thread computes it, as in a forked process (`importing.is_forked`)

    @property
    def out_dtype(self) -> str:
        return "bfloat16" if self.out_bfloat16 else "float32"

    @property
    def out_size(self) -> tuple[int, int]:
        pad = self.kernel // 2
        return (
            (self.h + 2 * pad - self.kernel) // self.stride + 1,
            (self.w + 2 * pad - self.kernel) // self.stride + 1,
        )


class WeightLayout(NamedTuple):
    """How oneDNN wants the weights of a convolution: numbers to store, and what tells one layout from another."""

    floats: int
    identity: int


def run_kernel(
    header: str, source: str, shape: tuple, inputs: list, data: dict, flags: str = "", dtype: str = "float32"
) -> jt.Var:
    """Run `source`, which may call what `kernels/header` defines, for one output of `shape`."""
    out = jt.code(
        shape,
        dtype,
        inputs,
        cpu_header=f'#include "{header}"\n',
        cpu_src=source,
        data={name: float(value) for name, value in data.items()},
    )
    # Jittor follows includes that are found by -I, also nested ones, and compiles anew when one of them changes.
    out.compile_options = {f'FLAGS: -I"{KERNELS}" {flags}': 1}
    return out


_SHAPE_SOURCE = """
jrdp_fast::ConvShape shape{(int)data["n"], (int)data["h"], (int)data["w"], (int)data["in_channels"],
    (int)data["out_channels"], (int)data["kernel"], (int)data["stride"], (int)data["groups"],
    data["relu"] != 0, data["add"] != 0, data["bfloat16"] != 0, data["out_bfloat16"] != 0, data["one_thread"] != 0};
"""

# One operator with three tasks, because the primitives they share live in the one library that it is compiled to.
_CONVOLUTION_SOURCE = (
    _SHAPE_SOURCE
    + """
switch ((int)data["task"]) {
    case 0: jrdp_fast::plan_convolution(shape, (float*)out_p); break;
    case 1: jrdp_fast::pack_weights(shape, in1_p, (float*)out_p, out->num); break;
    default:
        jrdp_fast::convolve(shape, in0_p, in1_p, in1->num, in2_p, (jrdp_fast::Addend)(int)data["addend"], in3_p,
                            in3_shape1, in3_shape2, out_p);
}
"""
)
_PLAN, _PACK, _RUN = 0, 1, 2
_NOTHING, _SAME_SIZE, _HALF_SIZE = 0, 1, 2


@lru_cache(maxsize=1)
def onednn_home() -> Path | None:
    """The folder with `include/` and `lib/` of the oneDNN that Jittor itself uses; None without one."""
    home = runtime.prepare().onednn.home
    if home is not None:
        return home
    import jittor_utils  # Jittor was imported before jrdp, and found its own

    folders = Path(jittor_utils.home(), ".cache", "jittor", "mkl").glob("dnnl*")
    return next((folder for folder in sorted(folders) if (folder / "lib" / "libmkldnn.so").exists()), None)


def onednn_flags() -> str:
    """For `run_kernel` of a kernel that calls oneDNN."""
    home = onednn_home()
    return f'-I"{home}/include" -L"{home}/lib" -lmkldnn -Wl,-rpath,"{home}/lib" '


def _convolution(
    shape: ConvShape, task: int, out_shape: tuple, inputs: list, addend: int = _NOTHING, dtype: str = "float32"
) -> jt.Var:
    numbers = {**shape._asdict(), "task": task, "addend": addend}
    return run_kernel("convolution.h", _CONVOLUTION_SOURCE, out_shape, inputs, numbers, onednn_flags(), dtype)


@lru_cache(maxsize=1)
def _nothing() -> tuple[jt.Var, jt.Var]:
    """Stand-ins `[1]` and `[1, 1, 1, 1]` for inputs that a task does not have."""
    return jt.array(np.zeros(1, np.float32)), jt.array(np.zeros((1, 1, 1, 1), np.float32))


@lru_cache(maxsize=4096)
def weight_layout(shape: ConvShape) -> WeightLayout:
    """The layout that oneDNN wants for the weights of such a convolution."""
    one, map_ = _nothing()
    units, identity, _, _ = _convolution(shape, _PLAN, (1, 1, 1, 4), [map_, one, one, map_]).numpy().ravel()
    return WeightLayout(16 * int(units), int(identity))


def is_slow(shape: ConvShape) -> bool:
    """Whether oneDNN has only its reference implementation for this shape on this processor."""
    one, map_ = _nothing()
    return bool(_convolution(shape, _PLAN, (1, 1, 1, 4), [map_, one, one, map_]).numpy().ravel()[3])


def pack_weights(shape: ConvShape, weights: np.ndarray) -> jt.Var:
    """`[out, in / groups, k, k]` -> as `weight_layout` says, `[floats]`."""
    one, map_ = _nothing()
    plain = jt.array(np.ascontiguousarray(weights).ravel())
    packed = _convolution(shape, _PACK, (1, 1, 1, weight_layout(shape).floats), [map_, plain, one, map_])
    return packed.reshape(-1)


def convolution(shape: ConvShape, x: jt.Var, packed: jt.Var, bias: jt.Var, addend: jt.Var | None = None) -> jt.Var:
    """The convolution of x `[N, H, W, C]`, with bias `[O]`, then the addend, then ReLU -> `[N, OH, OW, O]`.

    addend: `[N, OH, OW, O]`, or a map of half that size (rounded up), which is doubled by nearest neighbour; of the
        result's dtype.
    """
    kept = "bfloat16" if shape.bfloat16 else "float32"
    if x.dtype != kept or (addend is not None and addend.dtype != shape.out_dtype):
        raise ValueError(f"this convolution takes {kept} and adds {shape.out_dtype}")
    out_shape = (shape.n, *shape.out_size, shape.out_channels)
    if addend is None:
        return _convolution(shape, _RUN, out_shape, [x, packed, bias, x], dtype=shape.out_dtype)
    kind = _SAME_SIZE if tuple(addend.shape) == out_shape else _HALF_SIZE
    half = (shape.n, (out_shape[1] + 1) // 2, (out_shape[2] + 1) // 2, shape.out_channels)
    if kind == _HALF_SIZE and tuple(addend.shape) != half:
        raise ValueError(f"cannot add {list(addend.shape)} to {list(out_shape)}: neither that size nor half of it")
    return _convolution(shape, _RUN, out_shape, [x, packed, bias, addend], kind, shape.out_dtype)


def to_bfloat16(x: jt.Var) -> jt.Var:
    """Rounded to the nearest bfloat16, ties to even."""
    source = "for (int64_t i = 0; i < out->num; i++) jrdp_fast::put(out_p + i, in0_p[i]);"
    return run_kernel("numbers.h", source, x.shape, [x], {}, dtype="bfloat16")


_TRAINING_SOURCE = (
    _SHAPE_SOURCE
    + """
jrdp_fast::convolve_for_training(shape, (jrdp_fast::Direction)(int)data["direction"], in0_p, in1_p, out_p);
"""
)
_DIRECTIONS = ("forward", "input gradient", "weight gradient")


def training_convolution(shape: ConvShape, direction: str, first: jt.Var, second: jt.Var) -> jt.Var:
    """One of a convolution's three products in bfloat16, float32: of maps `[N, H, W, C]` in bfloat16 and float32 weights.

    direction: "forward", of the input and the weights `[O, C / groups, k, k]`; "input gradient", of the output's gradient
        and the weights; "weight gradient", of the input and the output's gradient, `[O, C / groups, k, k]`.
    """
    out_map = (shape.n, *shape.out_size, shape.out_channels)
    weights = (shape.out_channels, shape.in_channels // shape.groups, shape.kernel, shape.kernel)
    out_shape = (out_map, (shape.n, shape.h, shape.w, shape.in_channels), weights)[_DIRECTIONS.index(direction)]
    numbers = {**shape._asdict(), "direction": _DIRECTIONS.index(direction)}
    inputs = [first, second]
    return run_kernel("convolution_training.h", _TRAINING_SOURCE, out_shape, inputs, numbers, onednn_flags())


def to_nhwc(x: jt.Var, dtype: str = "float32") -> jt.Var:
    """`[N, C, H, W]`, float32 -> `[N, H, W, C]`, kept as `dtype`."""
    n, c, h, w = x.shape
    source = "jrdp_fast::transpose(in0_p, in0_shape0, in0_shape1, in0_shape2 * in0_shape3, out_p);"
    return run_kernel("transpose.h", source, (n, h, w, c), [x], {}, dtype=dtype)


def to_nchw(x: jt.Var) -> jt.Var:
    """`[N, H, W, C]` -> `[N, C, H, W]`, float32."""
    n, h, w, c = x.shape
    source = "jrdp_fast::transpose(in0_p, in0_shape0, in0_shape1 * in0_shape2, in0_shape3, out_p);"
    return run_kernel("transpose.h", source, (n, c, h, w), [x], {})


_WINOGRAD_SOURCE = """
if (data["pack"] != 0)
    jrdp_fast::winograd_pack(in1_p, data["out_channels"], data["in_channels"], out_p);
else
    jrdp_fast::winograd(in0_p, in1_p, in2_p, data["relu"] != 0, in0_shape0, in0_shape1, in0_shape2, in0_shape3,
                        out_shape3, out_p);
"""


def _winograd(out_shape: tuple, inputs: list, **numbers: int) -> jt.Var:
    return run_kernel("winograd.h", _WINOGRAD_SOURCE, out_shape, inputs, numbers, CARRY)


def winograd_pack(weights: np.ndarray) -> jt.Var:
    """3x3 weights `[O, C, 3, 3]`, O a multiple of 32, C of 16 -> transformed, `[36 * O * C]`."""
    out_channels, in_channels = weights.shape[:2]
    one, map_ = _nothing()
    plain = jt.array(np.ascontiguousarray(weights).ravel())
    shape = (1, 1, 1, 36 * out_channels * in_channels)
    packed = _winograd(shape, [map_, plain, one], pack=1, out_channels=out_channels, in_channels=in_channels, relu=0)
    return packed.reshape(-1)


def winograd(x: jt.Var, packed: jt.Var, bias: jt.Var, relu: bool) -> jt.Var:
    """3x3 convolution of stride 1 by Winograd's algorithm: `[N, H, W, C]` -> `[N, H, W, O]`."""
    out_channels = bias.shape[0]
    shape = (*x.shape[:3], out_channels)
    return _winograd(shape, [x, packed, bias], pack=0, out_channels=out_channels, in_channels=x.shape[3], relu=relu)


_GROUP_NORM_SOURCE = """
jrdp_fast::group_norm(in0_p, in1_p, in2_p, in0_shape0, in0_shape1 * in0_shape2, in0_shape3, (int)data["groups"],
                      data["eps"], data["relu"] != 0, out_p);
"""


def group_norm(
    x: jt.Var, weight: jt.Var, bias: jt.Var, groups: int, eps: float, relu: bool, dtype: str = "float32"
) -> jt.Var:
    """Group norm of `[N, H, W, C]`, float32, over pixels and C / groups channels, then ReLU if asked; kept as `dtype`.

    A group that holds what is infinite or NaN becomes NaN.
    """
    numbers = {"groups": groups, "eps": eps, "relu": relu}
    return run_kernel("group_norm.h", _GROUP_NORM_SOURCE, x.shape, [x, weight, bias], numbers, CARRY, dtype)


_POOL_SOURCE = "jrdp_fast::max_pool(in0_p, in0_shape0, in0_shape1, in0_shape2, in0_shape3, out_p);"


def max_pool(x: jt.Var) -> jt.Var:
    """3x3 maximum of stride 2, padding 1: `[N, H, W, C]` -> `[N, ceil(H / 2), ceil(W / 2), C]` of the same dtype."""
    n, h, w, c = x.shape
    return run_kernel("pooling.h", _POOL_SOURCE, (n, (h + 1) // 2, (w + 1) // 2, c), [x], {}, dtype=x.dtype)


_CONCAT_SOURCE = """
const jrdp_fast::Map<in0_type> maps[4] = {{in2_p, (int)in2_shape1, (int)in2_shape2}, {in3_p, (int)in3_shape1, (int)in3_shape2},
                                {in4_p, (int)in4_shape1, (int)in4_shape2}, {in5_p, (int)in5_shape1, (int)in5_shape2}};
jrdp_fast::resize_concat(in0_p, data["attend"] != 0 ? in1_p : nullptr, maps, (int)data["maps"], in0_shape0, in0_shape1,
                         in0_shape2, in0_shape3, out_p);
"""


def resize_concat(finer: list, level: jt.Var, attention: jt.Var | None = None) -> jt.Var:
    """Up to four finer maps `[N, h, w, C]` at the size of `level`, then `level` itself: `[N, H, W, (len + 1) * C]`.

    All of one dtype. attention: logits `[N, H, W, C]`; the resized maps, not the level, are multiplied by their sigmoid.
    """
    if not 1 <= len(finer) <= MAX_FINER:
        raise ValueError(f"resize_concat takes 1 to {MAX_FINER} finer maps, not {len(finer)}")
    n, h, w, c = level.shape
    unused = [level] * (MAX_FINER - len(finer))
    inputs = [level, level if attention is None else attention, *finer, *unused]
    numbers = {"maps": len(finer), "attend": attention is not None}
    shape = (n, h, w, c * (len(finer) + 1))
    return run_kernel("resize_concat.h", _CONCAT_SOURCE, shape, inputs, numbers, dtype=level.dtype)


_ROI_SOURCE = """
jrdp_fast::roi_align(in0_p, in0_shape0, in0_shape1, in0_shape2, in0_shape3, in1_p, in1_shape0,
                     data["add_coarse"] != 0 ? in2_p : nullptr, in2_shape1, (float)data["scale"],
                     (int)data["sampling"], out_shape1, out_p);
"""


def roi_align(
    features: jt.Var,
    rois: jt.Var,
    size: int,
    scale: float,
    coarse: jt.Var | None = None,
    sampling: int = 2,
    dtype: str = "float32",
) -> jt.Var:
    """Pool rois `[R, 5]` (image, x1, y1, x2, y2 in network pixels) from `[N, H, W, C]` -> `[R, size, size, C]`.

    coarse: `[R, q, q, C]`, resized bilinearly to `size` and added. dtype: in which the result is kept; all else is float32.

    Raises `RuntimeError`, when the result is computed, for a RoI that names an image outside the batch.
    """
    inputs = [features, rois, features if coarse is None else coarse]
    numbers = {"scale": scale, "sampling": sampling, "add_coarse": coarse is not None}
    shape = (rois.shape[0], size, size, features.shape[3])
    return run_kernel("roi_align.h", _ROI_SOURCE, shape, inputs, numbers, dtype=dtype)
