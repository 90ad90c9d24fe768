"""Checks cuDNN's, cuBLAS's and cuRAND's functions alone, on a device that is the host's memory, against PyTorch in float64.

    SOFTGPU_INCLUDE=TOP/include python check_libraries.py WORK_FOLDER [--small]

TOP is what build.sh made; --small takes the networks' layers at a quarter of their size.

Needs torch and numpy. Prints the worst error of each kind, relative to the largest value of the result.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from ctypes import byref, c_double, c_float, c_int, c_longlong, c_size_t, c_uint64, c_void_p
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

HERE = Path(__file__).resolve().parent
SUCCESS, BAD_PARAM, NOT_SUPPORTED = 0, 2000, 3000
FLOAT, DOUBLE, HALF, BFLOAT = 0, 1, 2, 9
NCHW, NHWC = 0, 1
TORCH = {FLOAT: torch.float32, DOUBLE: torch.float64, HALF: torch.float16, BFLOAT: torch.bfloat16}
# Half a unit in the last place of the narrow types, with room; float's sums are in double over blocks of 256.
LIMIT = {FLOAT: 1e-6, DOUBLE: 1e-14, HALF: 5e-4, BFLOAT: 4e-3}
worst: dict[str, float] = {}
checks = 0


def build(folder: Path) -> ctypes.CDLL:
    include = os.environ["SOFTGPU_INCLUDE"]
    out = folder / "libs.so"
    flags = "-std=c++17 -O3 -march=native -ffp-contract=fast -fopenmp -fPIC -w -fpermissive -shared".split()
    sources = [HERE.parent / f"{name}.cc" for name in ("cudnn", "cublas", "curand", "libs")] + [HERE / "identity.cc"]
    subprocess.run(["g++", *flags, f"-I{include}", f"-I{HERE.parent}", *map(str, sources), "-o", str(out)], check=True)
    return ctypes.CDLL(str(out))


def ok(status: int) -> None:
    assert status == SUCCESS, status


def ints(*values: int):
    return (c_int * len(values))(*values)


def pointer(t: torch.Tensor) -> c_void_p:
    return c_void_p(t.data_ptr())


def note(name: str, got: torch.Tensor, wanted: torch.Tensor, kind: int) -> None:
    global checks
    checks += 1
    got, wanted = got.double(), wanted.double()
    assert torch.isfinite(got).all(), name
    error = float((got - wanted).abs().max() / wanted.abs().max().clamp_min(1e-30))
    key = f"{name}, {str(TORCH[kind]).split('.')[1]}"
    worst[key] = max(worst.get(key, 0.0), error)
    assert error <= LIMIT[kind], (key, error, tuple(got.shape))


class Convolution:
    def __init__(self, lib, x, w, y, pad, stride, dilation, groups, kind, mode=1, filter_format=NCHW, compute=None):
        self.lib, dims = lib, x.dim()
        self.h, self.xd, self.wd, self.yd, self.c = (c_void_p() for _ in range(5))
        ok(lib.cudnnCreate(byref(self.h)))
        for d in (self.xd, self.yd):
            ok(lib.cudnnCreateTensorDescriptor(byref(d)))
        ok(lib.cudnnCreateFilterDescriptor(byref(self.wd)))
        ok(lib.cudnnCreateConvolutionDescriptor(byref(self.c)))
        for d, t in ((self.xd, x), (self.yd, y)):
            ok(lib.cudnnSetTensorNdDescriptor(d, kind, dims, ints(*t.shape), ints(*t.stride())))
        ok(lib.cudnnSetFilterNdDescriptor(self.wd, kind, filter_format, dims, ints(*w.shape)))
        compute = (DOUBLE if kind == DOUBLE else FLOAT) if compute is None else compute
        ok(lib.cudnnSetConvolutionNdDescriptor(self.c, dims - 2, ints(*pad), ints(*stride), ints(*dilation), mode, compute))
        ok(lib.cudnnSetConvolutionGroupCount(self.c, groups))
        self.scale = c_double if kind == DOUBLE else c_float

    def _run(self, size, call, algorithm, alpha, beta):
        need = c_size_t(99)
        ok(size(algorithm, byref(need)))
        space = torch.empty(max(1, need.value), dtype=torch.uint8)
        a, b = self.scale(alpha), self.scale(beta)
        if need.value:
            assert call(byref(a), algorithm, pointer(space), c_size_t(need.value - 1), byref(b)) == BAD_PARAM
        ok(call(byref(a), algorithm, pointer(space) if need.value else None, need, byref(b)))

    def forward(self, x, w, y, algorithm=1, alpha=1.0, beta=0.0):
        l = self.lib
        self._run(
            lambda g, n: l.cudnnGetConvolutionForwardWorkspaceSize(self.h, self.xd, self.wd, self.c, self.yd, g, n),
            lambda a, g, s, n, b: l.cudnnConvolutionForward(
                self.h, a, self.xd, pointer(x), self.wd, pointer(w), self.c, g, s, n, b, self.yd, pointer(y)),
            algorithm, alpha, beta)

    def data(self, w, dy, dx, algorithm=1, alpha=1.0, beta=0.0):
        l = self.lib
        self._run(
            lambda g, n: l.cudnnGetConvolutionBackwardDataWorkspaceSize(self.h, self.wd, self.yd, self.c, self.xd, g, n),
            lambda a, g, s, n, b: l.cudnnConvolutionBackwardData(
                self.h, a, self.wd, pointer(w), self.yd, pointer(dy), self.c, g, s, n, b, self.xd, pointer(dx)),
            algorithm, alpha, beta)

    def filter(self, x, dy, dw, algorithm=1, alpha=1.0, beta=0.0):
        l = self.lib
        self._run(
            lambda g, n: l.cudnnGetConvolutionBackwardFilterWorkspaceSize(self.h, self.xd, self.yd, self.c, self.wd, g, n),
            lambda a, g, s, n, b: l.cudnnConvolutionBackwardFilter(
                self.h, a, self.xd, pointer(x), self.yd, pointer(dy), self.c, g, s, n, b, self.wd, pointer(dw)),
            algorithm, alpha, beta)


def convolution(lib, n, c, size, o, kernel, stride=1, pad=0, dilation=1, groups=1, kind=FLOAT, alpha=1.0, beta=0.0,
                channels_last=False, flip=False, algorithm=1):
    dims = len(size)
    each = lambda v: (v,) * dims if isinstance(v, int) else v
    kernel, stride, pad, dilation = map(each, (kernel, stride, pad, dilation))
    torch.manual_seed(n + c + o + sum(size))
    dtype = TORCH[kind]
    x = torch.randn(n, c, *size).to(dtype)
    w = (torch.randn(o, c // groups, *kernel) / np.sqrt(c // groups * np.prod(kernel))).to(dtype)
    xr, wr = x.double().requires_grad_(), w.double().requires_grad_()
    run = (F.conv2d, F.conv3d)[dims - 2]
    wf = wr.flip(tuple(range(2, 2 + dims))) if flip else wr
    yr = run(xr, wf, None, stride, pad, dilation, groups)
    dy = torch.randn(yr.shape).to(dtype)
    yr.backward(dy.double())
    last = (torch.channels_last, torch.channels_last_3d)[dims - 2]
    lay = lambda t: t.contiguous(memory_format=last) if channels_last else t.contiguous()
    x, w, dy = lay(x), lay(w), lay(dy)
    # With a beta of 0, whatever lies in the result must not be read.
    fresh = lambda t: lay(torch.randn(t.shape).to(dtype) if beta else torch.full(t.shape, float("nan"), dtype=dtype))
    y, dx, dw = fresh(yr), fresh(xr), fresh(wr)
    y0, dx0, dw0 = (t.double().clone() if beta else 0.0 for t in (y, dx, dw))
    q = Convolution(lib, x, w, y, pad, stride, dilation, groups, kind, mode=0 if flip else 1, filter_format=NHWC if channels_last else NCHW)
    q.forward(x, w, y, algorithm, alpha, beta)
    q.data(w, dy, dx, min(algorithm, 1), alpha, beta)
    q.filter(x, dy, dw, min(algorithm, 1), alpha, beta)
    label = "convolution" + ("" if dims == 2 else " 3d") + (", alpha and beta" if beta else "")
    note(label + ": forward", y, alpha * yr.detach() + beta * y0, kind)
    note(label + ": to the image", dx, alpha * xr.grad + beta * dx0, kind)
    note(label + ": to the filter", dw, alpha * wr.grad + beta * dw0, kind)


def convolutions(lib, big: bool) -> None:
    # Of ResNet-50, ResNeXt-101 32x8d, FPN and a mask head on images of 320 x 480: (n, c, size, o, kernel, stride, pad, dilation, groups)
    scale = 1 if big else 4
    at = lambda s: (320 // s // scale, 480 // s // scale)
    net = [
        (2, 3, at(1), 64, 7, 2, 3), (1, 64, at(4), 64, 1), (1, 64, at(4), 64, 3, 1, 1), (1, 256, at(4), 128, 1, 2),
        (1, 128, at(4), 128, 3, 2, 1), (1, 512, at(8), 1024, 1, 2), (2, 256, at(16), 256, 3, 1, 1), (1, 1024, at(16), 2048, 1, 2),
        (1, 512, at(32), 512, 3, 1, 1), (1, 256, at(4), 256, 3, 1, 1, 1, 32), (1, 512, at(4), 512, 3, 2, 1, 1, 32),
        (1, 1024, at(16), 1024, 3, 1, 1, 1, 32), (1, 2048, at(32), 2048, 3, 1, 1, 1, 32), (1, 256, at(8), 256, 3, 1, 1),
        (1, 256, at(64), 12, 1), (7, 256, (14, 14), 256, 3, 1, 1), (7, 256, (28, 28), 2, 1),
    ]
    for shape in net:
        convolution(lib, *shape)
    small = [
        (2, 6, (9, 13), 8, 3, 2, 1, 2, 2), (1, 4, (8, 8), 4, 3, 3, 0), (3, 5, (7, 11), 7, (3, 2), (2, 1), (1, 0), (1, 2)),
        (2, 8, (6, 5), 8, 3, 1, 2, 2, 8), (1, 1, (5, 5), 1, 5), (1, 3, (6, 6), 2, 1, 3), (2, 4, (10, 9), 6, 2, 4, 1),
        (2, 40, (12, 17), 37, 3, 1, 4, 4), (1, 64, (1, 1), 64, 1), (5, 16, (1, 50), 24, (1, 3), 1, (0, 1)),
    ]
    for shape in small:
        for kind in TORCH:
            for last in (False, True):
                convolution(lib, *shape, kind=kind, channels_last=last)
            convolution(lib, *shape, kind=kind, alpha=0.75, beta=-0.5)
        convolution(lib, *shape, flip=True, algorithm=0)
    for kind in TORCH:
        convolution(lib, 2, 4, (5, 6, 7), 6, 3, 2, 1, 1, 2, kind=kind)
        convolution(lib, 1, 3, (4, 9, 8), 5, (2, 3, 1), (1, 2, 3), (1, 0, 2), (2, 1, 1), kind=kind, channels_last=True, beta=1.0)
    for shape in net[2:12:3]:
        for kind in (HALF, BFLOAT):
            convolution(lib, *shape, kind=kind)


def to_tf32(x: torch.Tensor) -> torch.Tensor:
    """Float32 rounded to 10 bits of mantissa, ties away from zero."""
    return ((x.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def tf32(lib) -> None:
    """Products of rounded floats, summed in float: by default in convolutions, on demand in cuBLAS, never elsewhere."""
    FMA, TF32_MODE, PEDANTIC_MODE = 3, 3, 2
    lib.allow_tf32(1)
    tie = torch.tensor([1 + 2.0**-11, -1 - 2.0**-11, 1 + 2.0**-11 - 2.0**-23, 3.0])
    assert to_tf32(tie).tolist() == [1 + 2.0**-10, -1 - 2.0**-10, 1.0, 3.0]
    torch.manual_seed(5)
    x, w = torch.randn(2, 6, 9, 11), torch.randn(8, 3, 3, 3)
    x[0, 0, 0, :4] = tie
    for math, allowed, rounded in ((0, 1, True), (1, 1, True), (FMA, 1, False), (0, 0, False)):
        lib.allow_tf32(allowed)
        cut = to_tf32 if rounded else lambda t: t
        xr, wr = cut(x).double().requires_grad_(), cut(w).double().requires_grad_()
        yr = F.conv2d(xr, wr, None, 2, 1, 1, 2)
        dy, before = torch.randn(yr.shape), torch.randn(yr.shape)
        yr.backward(cut(dy).double())
        y, dx, dw = before.clone(), torch.zeros_like(x), torch.zeros_like(w)
        q = Convolution(lib, x, w, y, (1, 1), (2, 2), (1, 1), 2, FLOAT)
        ok(lib.cudnnSetConvolutionMathType(q.c, math))
        q.forward(x, w, y, alpha=0.5, beta=1.0)  # what was there is added as it is
        q.data(w, dy, dx)
        q.filter(x, dy, dw)
        label = f"TF32 {'on' if rounded else 'off'}, "
        note(label + "convolution: forward", y, 0.5 * yr.detach() + before.double(), FLOAT)
        note(label + "convolution: to the image", dx, xr.grad, FLOAT)
        note(label + "convolution: to the filter", dw, wr.grad, FLOAT)
    h = c_void_p()
    ok(lib.cublasCreate_v2(byref(h)))
    a, b = torch.randn(20, 30), torch.randn(30, 10)
    for compute, mode, allowed, rounded in ((68, 0, 1, False), (77, 0, 1, True), (68, TF32_MODE, 1, True), (68, TF32_MODE | 16, 1, True),
                                            (69, TF32_MODE, 1, False), (68, PEDANTIC_MODE, 1, False), (77, TF32_MODE, 0, False)):
        lib.allow_tf32(allowed)
        ok(lib.cublasSetMathMode(h, mode))
        cut = to_tf32 if rounded else lambda t: t
        c = torch.empty(20, 10)
        ok(lib.cublasGemmEx(h, 0, 0, 10, 20, 30, byref(c_float(1)), pointer(b), 0, 10, pointer(a), 0, 30, byref(c_float(0)), pointer(c), 0, 10, compute, -1))
        note(f"TF32 {'on' if rounded else 'off'}, product", c, cut(a).double() @ cut(b).double(), FLOAT)
        if compute == 68:
            again = torch.empty(20, 10)
            ok(lib.cublasSgemm_v2(h, 0, 0, 10, 20, 30, byref(c_float(1)), pointer(b), 10, pointer(a), 30, byref(c_float(0)), pointer(again), 10))
            assert torch.equal(again, c)
    lib.allow_tf32(0)


def bias(lib) -> None:
    for kind in TORCH:
        dy = torch.randn(3, 5, 7, 9).to(TORCH[kind])
        db = torch.randn(1, 5, 1, 1).to(TORCH[kind])
        before = db.double().clone()
        h, yd, bd = c_void_p(), c_void_p(), c_void_p()
        ok(lib.cudnnCreate(byref(h)))
        for d, t in ((yd, dy), (bd, db)):
            ok(lib.cudnnCreateTensorDescriptor(byref(d)))
            ok(lib.cudnnSetTensorNdDescriptor(d, kind, 4, ints(*t.shape), ints(*t.stride())))
        scale = c_double if kind == DOUBLE else c_float
        ok(lib.cudnnConvolutionBackwardBias(h, byref(scale(2)), yd, pointer(dy), byref(scale(1)), bd, pointer(db)))
        note("convolution: to the bias", db, 2 * dy.double().sum((0, 2, 3), keepdim=True) + before, kind)


class Perf(ctypes.Structure):
    _fields_ = [("algo", c_int), ("status", c_int), ("time", c_float), ("memory", c_size_t), ("determinism", c_int),
                ("math", c_int), ("reserved", c_int * 3)]


def convolution_errors(lib) -> None:
    x, w, y = torch.randn(2, 6, 8, 9), torch.randn(4, 3, 3, 3), torch.empty(2, 4, 8, 9)
    make = lambda x=x, w=w, y=y, pad=1, stride=1, groups=2, kind=FLOAT, compute=FLOAT: Convolution(
        lib, x, w, y, (pad, pad), (stride, stride), (1, 1), groups, kind, compute=compute)

    def status(q, algorithm=0, space=None, size=0):
        one = c_float(1)
        return lib.cudnnConvolutionForward(q.h, byref(one), q.xd, pointer(x), q.wd, pointer(w), q.c, algorithm, space, c_size_t(size), byref(c_float(0)), q.yd, pointer(y))

    ok(status(make()))
    for wrong in (dict(groups=1), dict(groups=4), dict(pad=0), dict(stride=2), dict(y=torch.empty(2, 5, 8, 9)), dict(y=torch.empty(3, 4, 8, 9)),
                  dict(w=torch.randn(4, 2, 3, 3)), dict(compute=DOUBLE)):
        q = make(**wrong)
        assert status(q) == BAD_PARAM, wrong
        size, found, given = c_size_t(7), (Perf * 8)(), c_int(7)
        assert lib.cudnnGetConvolutionForwardWorkspaceSize(q.h, q.xd, q.wd, q.c, q.yd, 0, byref(size)) == BAD_PARAM and size.value == 0
        assert lib.cudnnGetConvolutionForwardAlgorithm_v7(q.h, q.xd, q.wd, q.c, q.yd, 8, byref(given), found) == BAD_PARAM
    mixed = make()
    ok(lib.cudnnSetTensorNdDescriptor(mixed.yd, HALF, 4, ints(2, 4, 8, 9), ints(288, 72, 9, 1)))
    assert status(mixed) == BAD_PARAM
    q = make()
    assert status(q, 1) == BAD_PARAM and status(q, 3) == NOT_SUPPORTED and status(q, 77) == BAD_PARAM
    one, zero = c_float(1), c_float(0)
    assert lib.cudnnConvolutionForward(q.h, byref(one), q.xd, None, q.wd, pointer(w), q.c, 0, None, c_size_t(0), byref(zero), q.yd, pointer(y)) == BAD_PARAM
    assert lib.cudnnConvolutionForward(None, byref(one), q.xd, pointer(x), q.wd, pointer(w), q.c, 0, None, c_size_t(0), byref(zero), q.yd, pointer(y)) == BAD_PARAM
    assert lib.cudnnSetConvolutionNdDescriptor(q.c, 2, ints(-1, 0), ints(1, 1), ints(1, 1), 1, FLOAT) == BAD_PARAM
    assert lib.cudnnSetConvolutionNdDescriptor(q.c, 2, ints(0, 0), ints(0, 1), ints(1, 1), 1, FLOAT) == BAD_PARAM
    assert lib.cudnnSetTensorNdDescriptor(q.xd, FLOAT, 4, ints(2, 0, 8, 9), ints(288, 72, 9, 1)) == BAD_PARAM
    assert lib.cudnnSetConvolutionGroupCount(q.c, 0) == BAD_PARAM

    # The searches: something that works first, and an output that they overwrite.
    q, dx, dw, dy = make(), torch.zeros_like(x), torch.zeros_like(w), torch.zeros_like(y)
    space = torch.empty(1 << 16, dtype=torch.uint8)
    calls = {
        "Forward": (dy, lambda n, f: (q.h, q.xd, pointer(x), q.wd, pointer(w), q.c, q.yd, pointer(dy), 8, n, f)),
        "BackwardData": (dx, lambda n, f: (q.h, q.wd, pointer(w), q.yd, pointer(y), q.c, q.xd, pointer(dx), 8, n, f)),
        "BackwardFilter": (dw, lambda n, f: (q.h, q.xd, pointer(x), q.yd, pointer(y), q.c, q.wd, pointer(dw), 8, n, f)),
    }
    for name, (out, arguments) in calls.items():
        for room in (0, space.numel()):
            found, given = (Perf * 8)(), c_int()
            ok(getattr(lib, f"cudnnFindConvolution{name}AlgorithmEx")(*arguments(byref(given), found), pointer(space), c_size_t(room)))
            assert given.value > 2 and found[0].status == SUCCESS and found[0].memory <= room, (name, room)
            assert torch.isnan(out).all(), name
    # Of an output with gaps, only the elements.
    gaps = torch.zeros(2, 4, 8, 18)
    part = gaps[..., ::2]
    q, found, given = make(y=part), (Perf * 8)(), c_int()
    ok(lib.cudnnFindConvolutionForwardAlgorithmEx(q.h, q.xd, pointer(x), q.wd, pointer(w), q.c, q.yd, pointer(part), 8, byref(given), found, None, c_size_t(0)))
    assert torch.isnan(part).all() and (gaps[..., 1::2] == 0).all()
    q.forward(x, w, part, 0)
    note("convolution, gaps: forward", part, F.conv2d(x.double(), w.double(), None, 1, 1, 1, 2), FLOAT)
    assert (gaps[..., 1::2] == 0).all()


def gemm(lib) -> None:
    h = c_void_p()
    ok(lib.cublasCreate_v2(byref(h)))
    R = {FLOAT: 0, DOUBLE: 1, HALF: 2, BFLOAT: 14}
    rng = np.random.default_rng(1)

    def matrix(rows, columns, extra, kind, batch=1):  # column-major with a leading dimension of rows + extra
        return torch.from_numpy(rng.standard_normal((batch, columns, rows + extra))).to(TORCH[kind])

    for m, n, k in ((1, 1, 1), (5, 7, 3), (33, 64, 100), (130, 257, 300), (512, 3, 1000), (7, 500, 2049), (64, 64, 0)):
        for ta in (0, 1, 2):
            for tb in (0, 1):
                for kind in TORCH:
                    for alpha, beta in ((1.0, 0.0), (0.5, -2.0)):
                        a = matrix(k if ta else m, m if ta else k, 2, kind, 3)
                        b = matrix(n if tb else k, k if tb else n, 1, kind, 3)
                        c = matrix(m, n, 3, kind, 3)
                        if beta == 0:
                            c.fill_(float("nan"))
                        cut = lambda t, rows: t[..., :rows].double()
                        A = cut(a, k if ta else m) if ta else cut(a, m).transpose(1, 2)
                        B = cut(b, n if tb else k) if tb else cut(b, k).transpose(1, 2)
                        wanted = alpha * (A @ B) + (beta * cut(c, m).transpose(1, 2) if beta else 0)
                        rest = c[..., m:].clone()
                        lda, ldb, ldc = a.shape[2], b.shape[2], c.shape[2]
                        scale = c_double if kind == DOUBLE else c_float
                        al, be = scale(alpha), scale(beta)
                        compute = 70 if kind == DOUBLE else 68
                        first = c.clone()
                        ok(lib.cublasGemmStridedBatchedEx(
                            h, ta, tb, m, n, k, byref(al), pointer(a), R[kind], lda, c_longlong(a[0].numel()), pointer(b), R[kind], ldb,
                            c_longlong(b[0].numel()), byref(be), pointer(c), R[kind], ldc, c_longlong(c[0].numel()), 3, compute, -1))
                        note("product, batches", c[..., :m].transpose(1, 2), wanted, kind)
                        assert torch.equal(torch.nan_to_num(c[..., m:]), torch.nan_to_num(rest))
                        once = first.clone()
                        ok(lib.cublasGemmEx(h, ta, tb, m, n, k, byref(al), pointer(a), R[kind], lda, pointer(b), R[kind], ldb, byref(be),
                                            pointer(once), R[kind], ldc, compute, -1))
                        note("product", once[0, :, :m].T, wanted[0], kind)
                        if kind in (FLOAT, DOUBLE):
                            again = first.clone()
                            call = lib.cublasSgemm_v2 if kind == FLOAT else lib.cublasDgemm_v2
                            ok(call(h, ta, tb, m, n, k, byref(al), pointer(a), lda, pointer(b), ldb, byref(be), pointer(again), ldc))
                            assert torch.equal(torch.nan_to_num(again), torch.nan_to_num(once))
                            lists = [(c_void_p * 3)(*(t[i].data_ptr() for i in range(3))) for t in (a, b, first)]
                            call = lib.cublasSgemmBatched if kind == FLOAT else lib.cublasDgemmBatched
                            ok(call(h, ta, tb, m, n, k, byref(al), lists[0], lda, lists[1], ldb, byref(be), lists[2], ldc, 3))
                            assert torch.equal(torch.nan_to_num(first), torch.nan_to_num(c))
                        if kind == HALF:
                            again = first.clone()
                            ah, bh = torch.tensor(alpha).half(), torch.tensor(beta).half()
                            ok(lib.cublasHgemm(h, ta, tb, m, n, k, pointer(ah), pointer(a), lda, pointer(b), ldb, pointer(bh), pointer(again), ldc))
                            assert torch.equal(torch.nan_to_num(again), torch.nan_to_num(once))

    a, c = torch.randn(64), torch.zeros(64)  # kept: a pointer keeps nothing alive
    one = c_float(1)
    call = lambda m=4, n=4, k=4, lda=4, ldb=4, ldc=4, ta=0, h=h, types=(0, 0, 0), compute=68: lib.cublasGemmEx(
        h, ta, 0, m, n, k, byref(one), pointer(a), types[0], lda, pointer(a), types[1], ldb, byref(one), pointer(c), types[2], ldc, compute, -1)
    ok(call())
    assert call(h=None) == 1
    for wrong in (dict(m=-1), dict(lda=3), dict(ldb=3), dict(ldc=3), dict(k=5), dict(ta=9), dict(ta=1, k=5)):
        assert call(**wrong) == 7, wrong
    for wrong in (dict(types=(1, 1, 1)), dict(types=(0, 0, 2)), dict(types=(0, 2, 0)), dict(compute=64), dict(compute=70)):
        assert call(**wrong) == 15, wrong
    ok(call(m=0))


def exact_rounding(lib) -> None:
    """Half results are the exact ones rounded once, not rounded to float between."""
    h = c_void_p()
    ok(lib.cublasCreate_v2(byref(h)))
    # 1 + 2**-11 is a tie between two halves; 2**-33 more decides, and is lost in float.
    a = torch.tensor([1.0, 2.0**-11, 2.0**-14]).half()
    b = torch.tensor([1.0, 1.0, 2.0**-19]).half()
    c = torch.empty(1).half()
    ok(lib.cublasGemmEx(h, 0, 0, 1, 1, 3, byref(c_float(1)), pointer(a), 2, 1, pointer(b), 2, 3, byref(c_float(0)), pointer(c), 2, 1, 68, -1))
    assert float(c) in (1.0, 1 + 2.0**-10)
    # Through alpha and beta the sum is formed in double: there the rest survives.
    c[0] = 2.0**-14
    ok(lib.cublasGemmEx(h, 0, 0, 1, 1, 2, byref(c_float(1)), pointer(a), 2, 1, pointer(b), 2, 3, byref(c_float(2.0**-19)), pointer(c), 2, 1, 68, -1))
    assert float(c) == 1 + 2.0**-10, float(c)


def random(lib) -> None:
    def make(seed=1, offset=None):
        g = c_void_p()
        ok(lib.curandCreateGenerator(byref(g), 100))
        ok(lib.curandSetPseudoRandomGeneratorSeed(g, c_uint64(seed)))
        if offset is not None:
            ok(lib.curandSetGeneratorOffset(g, c_uint64(offset)))
        return g

    # The published answer of Philox4x32-10 for a counter and key of zero.
    words = np.zeros(4, np.uint32)
    ok(lib.curandGenerate(make(0), words.ctypes.data_as(c_void_p), c_size_t(4)))
    assert [hex(w) for w in words] == ["0x6627e8d5", "0xe169c58d", "0xbc57ac4c", "0x9b00dbd8"], words

    def draw(g, name, n, dtype, *arguments):
        out = np.full(n, np.nan, dtype)
        ok(getattr(lib, "curandGenerate" + name)(g, out.ctypes.data_as(c_void_p), c_size_t(n), *arguments))
        return out

    n = 1 << 20
    for suffix, dtype, number in (("", np.float32, c_float), ("Double", np.float64, c_double)):
        u = draw(make(), "Uniform" + suffix, n, dtype)
        assert u.dtype == dtype and u.min() > 0 and u.max() <= 1 and abs(u.mean() - 0.5) < 2e-3 and abs(u.var() - 1 / 12) < 1e-3
        assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 5e-3
        counts = np.bincount(np.minimum((u * 64).astype(int), 63), minlength=64)
        assert ((counts - n / 64) ** 2 / (n / 64)).sum() < 120
        z = draw(make(), "Normal" + suffix, n, dtype, number(0), number(1))
        assert abs(z.mean()) < 5e-3 and abs(z.std() - 1) < 5e-3 and abs((z**4).mean() - 3) < 5e-2 and abs((z**3).mean()) < 2e-2
        assert np.allclose(draw(make(), "Normal" + suffix, n, dtype, number(3), number(0.5)), 3 + 0.5 * z, rtol=1e-5, atol=1e-5)
        assert getattr(lib, "curandGenerateNormal" + suffix)(make(), z.ctypes.data_as(c_void_p), c_size_t(7), number(0), number(1)) == 105
        # One sequence, however it is cut; another seed, another sequence; the same seed again, from the start.
        g = make()
        assert np.array_equal(np.concatenate([draw(g, "Uniform" + suffix, m, dtype) for m in (5, 4091, 1, 9000)]), u[: 5 + 4091 + 1 + 9000])
        assert not np.array_equal(draw(make(2), "Uniform" + suffix, 100, dtype), u[:100])
        ok(lib.curandSetPseudoRandomGeneratorSeed(g, c_uint64(1)))
        assert np.array_equal(draw(g, "Uniform" + suffix, 100, dtype), u[:100])
        skip = 40 * (1 if dtype == np.float32 else 2)
        assert np.array_equal(draw(make(offset=skip), "Uniform" + suffix, 60, dtype), u[40:100])
    print("random numbers: right")


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    lib = build(folder)
    random(lib)
    exact_rounding(lib)
    gemm(lib)
    bias(lib)
    tf32(lib)
    convolution_errors(lib)
    convolutions(lib, big="--small" not in sys.argv)
    for name in sorted(worst):
        print(f"{worst[name]:.2e}  {name}")
    print(f"{checks} results are right")


main()
