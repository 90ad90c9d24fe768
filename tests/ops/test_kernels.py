"""How operators are put together, what they refuse, and the smallest of them."""

from types import SimpleNamespace

import jittor as jt
import pytest

from jrdp.ops import compile
from jrdp.ops.compile import CONSTANT, Kernels, constant, need_float32


@pytest.fixture
def texts(monkeypatch):
    """What `run` gives to Jittor, of each call: positional arguments, keyword arguments; and what it returns."""
    given = []

    def code(*args, **more):
        made = [SimpleNamespace() for _ in args[0]]
        given.append((args, more, made))
        return made

    monkeypatch.setattr(jt, "code", code)
    return given


def test_which_text_is_for_which_device(texts):
    shapes, dtypes, inputs = [[1], [2]], ["float32", "int32"], ["x"]
    both = Kernels(cpu="a.h", cuda="a.cuh")
    for kernels in (both, both.shimmed(), Kernels(cpu=None, cuda="b.cuh")):
        made = kernels.run('f(data["n"]);', inputs, shapes, dtypes, {"n": True})
        assert made is texts[-1][2]
    assert all(args == (shapes, dtypes, inputs) and more.pop("data") == {"n": 1.0} for args, more, _ in texts)

    def include(name):
        return f'#include "{compile.KERNELS / name}"\n'

    of_both, of_shim, of_cuda = (more for _, more, _ in texts)
    assert of_both == {
        "cuda_header": include("a.cuh"), "cuda_src": 'f(data["n"]);', "cpu_header": include("a.h"), "cpu_src": 'f(data["n"]);'
    }  # fmt: skip
    assert of_shim == {"cpu_header": include("cuda_shim.h") + include("a.cuh"), "cpu_src": 'f(data["n"]);'}
    assert of_cuda == {"cuda_header": include("b.cuh"), "cuda_src": 'f(data["n"]);'}
    assert (both.need_cuda_scratch, both.shimmed().need_cuda_scratch) == (False, True) and (compile.KERNELS / "nms.h").is_file()
    # On a CPU without fast mathematics, told to the first of the outputs, of which Jittor takes it.
    for _, _, (first, second) in texts:
        (options,) = first.compile_options
        assert "-fno-fast-math" in options and "-ffp-contract=off" in options and f'-I"{compile.KERNELS}"' in options
        assert not vars(second)


@pytest.mark.parametrize("data", [{}, {"n": 1}, {"n": 1, "m": 2, "k": 3}, {"n": 1, "k": 2}])
def test_a_number_that_is_missing_or_too_many_is_noticed(data, texts):
    with pytest.raises(AssertionError, match="source and data disagree"):
        Kernels(cpu="a.h", cuda="a.cuh").run('f(data["n"], data["m"]);', [], [[1]], ["float32"], data)
    assert not texts


@pytest.mark.parametrize("shape, dtype, fits", [
    ((2, 6), "float32", True), ((9, 6), "float32", True), ((2, 5), "float32", False), ((2, 6), "float64", False),
    ((2, 6, 1), "float32", False), ((2,), "float32", False), ((2, 5), "int32", False),
])  # fmt: skip
def test_need_float32(shape, dtype, fits):
    value = SimpleNamespace(shape=shape, ndim=len(shape), dtype=dtype)
    if fits:
        need_float32("x", value, "N", 6)
    else:
        with pytest.raises(ValueError) as caught:
            need_float32("x", value, "N", 6)
        assert str(caught.value) == f"x: expected float32 [N, 6], got {dtype} {list(shape)}"


def test_constant(where):
    value = constant(-2.5, where(CONSTANT))
    assert value.shape == [1] and value.dtype == "float32" and value.is_stop_grad() and value.numpy().tolist() == [-2.5]
    other = constant(7, where(CONSTANT))
    assert other.numpy().tolist() == [7.0] and value.numpy().tolist() == [-2.5]
