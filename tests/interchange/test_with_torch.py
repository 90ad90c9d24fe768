"""The same files in torch's own hands; run where torch is installed, skipped elsewhere."""

from collections import OrderedDict

import numpy as np
import pytest

from jrdp import interchange
from jrdp.errors import UserError
from jrdp.interchange import BFloat16, WeightFile, layout, training_state

torch = pytest.importorskip("torch")


def tensors_of_every_kind():
    torch.manual_seed(0)
    base = torch.randn(12)
    return OrderedDict(
        float32=torch.randn(2, 3, 4),
        transposed=torch.randn(4, 5).t(),
        expanded=torch.randn(3, 1).expand(3, 4),
        shared_start=base[:5],
        shared_middle=base[3:9],
        float64=torch.randn(3, dtype=torch.float64),
        float16=torch.randn(2, 2).half(),
        bfloat16=torch.randn(2, 5).bfloat16(),
        int64=torch.tensor([2**40, -1]),
        uint8=torch.arange(4, dtype=torch.uint8),
        bool=torch.tensor([True, False]),
        scalar=torch.tensor(2.5),
        empty=torch.zeros(0, 3),
    )


def same(array, tensor):
    if tensor.dtype == torch.bfloat16:
        bits = tensor.contiguous().view(torch.int16).numpy().view(np.uint16)
        return isinstance(array, BFloat16) and np.array_equal(array.bits, bits)
    expected = tensor.numpy()
    return array.dtype == expected.dtype and array.shape == expected.shape and np.array_equal(array, expected)


@pytest.mark.parametrize("zipped", [True, False])
def test_reads_what_this_torch_writes(zipped, tmp_path):
    state = tensors_of_every_kind()
    torch.save({"model": state, "iteration": 5}, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    file = interchange.read(tmp_path / "x.pth")
    assert list(file.tensors) == list(state) and file.iteration == 5
    assert all(same(file.tensors[name], tensor) for name, tensor in state.items())


def unusual_tensors():
    plain = torch.ones(2, 3)
    tensors = {
        "sparse": plain.to_sparse(),
        "sparse csr": plain.to_sparse_csr(),
        "quantised": torch.quantize_per_tensor(plain, 0.1, 0, torch.qint8),
        "quantised by channel": torch.quantize_per_channel(plain, plain[:, 0], torch.zeros(2), 0, torch.quint8),
        "complex": torch.complex(plain, plain),
        "meta": plain.to("meta"),
        "negative view": torch.complex(plain, plain).conj().imag,
    }
    for dtype in ("float8_e4m3fn", "float8_e5m2", "uint16", "uint32"):
        if hasattr(torch, dtype):
            tensors[dtype] = plain.to(getattr(torch, dtype))
    return tensors


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_of_other_kinds_are_left_out_beside_the_weights_and_named_among_them(zipped, tmp_path):
    path = tmp_path / "x.pth"
    for kind, tensor in unusual_tensors().items():
        weights = {"a": torch.ones(2), "b": torch.zeros(3)}
        torch.save({"model": weights, "extra": {"x": tensor}}, path, _use_new_zipfile_serialization=zipped)
        file = interchange.read(path)
        assert all(same(file.tensors[name], weights[name]) for name in weights) and file.others == ["extra"], kind
        torch.save({"model": {**weights, "w": tensor}}, path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(UserError, match=r"its entry 'w' is a .*\(not built\), not a tensor") as caught:
            interchange.read(path)
        remedies = {"sparse": "to_dense()", "quant": "dequantize()", "float8": "float()", "uint": "float()", "negative": "resolve_neg()"}
        assert all(remedy in str(caught.value) for start, remedy in remedies.items() if kind.startswith(start)), kind


@pytest.mark.parametrize("legacy", [False, True])
def test_torch_reads_what_we_write(legacy, tmp_path):
    state = tensors_of_every_kind()
    torch.save(state, tmp_path / "x.pth")
    file = interchange.read(tmp_path / "x.pth")
    file.scheduler, file.iteration, file.metadata = {"last_epoch": 2**40}, 5, {"config": {"a": 1}}
    interchange.write(tmp_path / "y.pth", file, legacy=legacy)
    options = [{"weights_only": True}, {"weights_only": False}] + ([] if legacy else [{"mmap": True}])
    for option in options:
        loaded = torch.load(tmp_path / "y.pth", map_location="cpu", **option)
        assert isinstance(loaded["model"], OrderedDict) and list(loaded["model"]) == list(state)
        assert loaded["iteration"] == 5 and loaded["scheduler"] == {"last_epoch": 2**40}
        for name, tensor in state.items():
            found = loaded["model"][name]
            assert found.dtype == tensor.dtype and found.shape == tensor.shape and torch.equal(found, tensor), name


@pytest.mark.parametrize("name", ["resnet50", "resnet101", "resnext101_32x8d"])
def test_torchvision_backbones_fill_ours_exactly(name, tmp_path):
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    model = getattr(torchvision.models, name)(weights=None).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(1e-6, 1)
            module.weight.data.uniform_(0.5, 1.5)
    torch.save(model.state_dict(), tmp_path / "x.pth")
    file = interchange.read(tmp_path / "x.pth")
    backbone = {"resnet50": "r50", "resnet101": "r101", "resnext101_32x8d": "x101"}[name]
    expected = {entry.name: entry.shape for entry in layout.backbone_layout(backbone)}
    matched = interchange.match(expected, file)
    left_out = {row.source for row in matched.rows if row.target is None}
    assert left_out == {"fc.weight", "fc.bias", *[name for name in model.state_dict() if "num_b" in name]}
    # The stem and its batch norm, computed from our numbers without any eps.
    image = torch.randn(1, 3, 32, 32)
    named = {key: torch.from_numpy(value.copy()) for key, value in matched.tensors.items() if "stem." in key}
    stem = {key.rsplit("stem.", 1)[1]: value for key, value in named.items()}
    scale = stem["bn1.weight"] * stem["bn1.running_var"].rsqrt()
    shift = stem["bn1.bias"] - stem["bn1.running_mean"] * scale
    x = torch.nn.functional.conv2d(image, stem["conv1.weight"], stride=2, padding=3)
    ours = x * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)
    with torch.no_grad():
        theirs = model.bn1(model.conv1(image))
    assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5 * theirs.abs().max())
    # Without the eps of torchvision's batch norm the same comparison fails.
    wrong = stem["bn1.weight"] * (stem["bn1.running_var"] - 1e-5).clamp(min=1e-12).rsqrt()
    wrong = x * wrong.view(1, -1, 1, 1) + (stem["bn1.bias"] - stem["bn1.running_mean"] * wrong).view(1, -1, 1, 1)
    assert not torch.allclose(wrong, theirs, rtol=1e-5, atol=1e-5 * theirs.abs().max())


def test_a_run_goes_on_across_the_hand_over(tmp_path):
    """Three SGD steps in torch equal two, our conversion there and back, and one more."""

    def start():
        torch.manual_seed(3)
        module = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.Conv2d(2, 1, 1))
        groups = [
            {"params": [p], "lr": 0.02 if "bias" in n else 0.01, "weight_decay": 0.0 if "bias" in n else 1e-4}
            for n, p in module.named_parameters()
        ]
        return module, torch.optim.SGD(groups, lr=0.01, momentum=0.9)

    def step(module, optimizer):
        optimizer.zero_grad()
        module(torch.ones(1, 1, 2, 2)).square().sum().backward()
        optimizer.step()

    module, optimizer = start()
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    for _ in range(2):
        step(module, optimizer)
    scheduler = {"last_epoch": 2, "milestones": [6000], "gamma": 0.1}
    checkpoint = {"model": module.state_dict(), "optimizer": optimizer.state_dict(), "scheduler": scheduler}
    torch.save({**checkpoint, "iteration": 2}, tmp_path / "x.pth", _use_new_zipfile_serialization=False)
    step(module, optimizer)

    file = interchange.read(tmp_path / "x.pth")
    shapes = {name: tuple(tensor.shape) for name, tensor in file.tensors.items()}
    state = training_state.from_pytorch(file, shapes)
    assert state.iteration == 2 and state.solver["base_lr"] == pytest.approx(0.01)
    assert state.solver["bias_lr_factor"] == pytest.approx(2) and state.solver["steps"] == [6000]
    state.solver.update(warmup_iterations=0)
    file.optimizer, file.scheduler = training_state.to_pytorch(state, list(shapes))
    interchange.write(tmp_path / "y.pth", file)

    again, other = start()
    loaded = torch.load(tmp_path / "y.pth", weights_only=True)
    again.load_state_dict(loaded["model"])
    other.load_state_dict(loaded["optimizer"])
    step(again, other)
    for ours, theirs in zip(again.parameters(), module.parameters()):
        assert torch.equal(ours, theirs)
    # Without the momentum the step is another one.
    third, fresh = start()
    third.load_state_dict(loaded["model"])
    step(third, fresh)
    assert not all(torch.equal(a, b) for a, b in zip(third.parameters(), module.parameters()))


def test_optimizer_of_the_whole_network_loads_into_torch(tmp_path):
    entries = [entry for entry in layout.network_layout("r50") if entry.trainable]
    parameters = [torch.nn.Parameter(torch.zeros(entry.shape)) for entry in entries]
    optimizer = torch.optim.SGD([{"params": [p]} for p in parameters], lr=0.1, momentum=0.9)
    momentum = {e.name: np.full(e.shape, i, np.float32) for i, e in enumerate(entries) if e.name != layout.LAST_SCALE}
    state = training_state.TrainingState(momentum, 6500)
    file = WeightFile({"x": np.zeros(1, np.float32)}, iteration=6500)
    file.optimizer, file.scheduler = training_state.to_pytorch(state, [entry.name for entry in entries])
    interchange.write(tmp_path / "x.pth", file, legacy=True)
    optimizer.load_state_dict(torch.load(tmp_path / "x.pth", weights_only=True)["optimizer"])
    for index, (entry, parameter) in enumerate(zip(entries, parameters)):
        group = optimizer.param_groups[index]
        assert group["lr"] == pytest.approx(0.0005 if "bias" in entry.name else 0.00025)
        assert group["weight_decay"] == (0 if "bias" in entry.name else 1e-4)
        if entry.name == layout.LAST_SCALE:
            assert parameter not in optimizer.state
        else:
            assert float(optimizer.state[parameter]["momentum_buffer"].flatten()[0]) == index
