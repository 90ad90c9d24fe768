"""How fixtures/ was made: the same small checkpoint saved by torch (2.14) in both formats, and its values for NumPy.

    python tests/interchange/make_fixtures.py        (needs torch; the tests do not)
"""

from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch

folder = Path(__file__).resolve().parent / "fixtures"
folder.mkdir(exist_ok=True)
torch.manual_seed(0)
base = torch.randn(12)
state = OrderedDict(
    float32=torch.randn(2, 3, 4),
    transposed=torch.randn(4, 5).t(),
    strided=torch.randn(6, 6)[::2, 1::2],
    expanded=torch.randn(3, 1).expand(3, 4),
    shared_start=base[:5],
    shared_middle=base[3:9],
    float64=torch.randn(3, dtype=torch.float64),
    float16=torch.randn(2, 2).half(),
    bfloat16=torch.randn(2, 5).bfloat16(),
    int64=torch.tensor([2**40, -1]),
    int32=torch.tensor([1, -(2**31)], dtype=torch.int32),
    uint8=torch.arange(4, dtype=torch.uint8),
    bool=torch.tensor([True, False]),
    scalar=torch.tensor(2.5),
    empty=torch.zeros(0, 3),
    parameter=torch.nn.Parameter(torch.randn(2, 2)),
)
module = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.Conv2d(2, 1, 1))
optimizer = torch.optim.SGD([{"params": [p]} for p in module.parameters()], lr=0.1, momentum=0.9)
scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 4])
module(torch.ones(1, 1, 2, 2)).sum().backward()
optimizer.step()
checkpoint = {
    "model": OrderedDict(("module." + name, value) for name, value in state.items()),
    "optimizer": optimizer.state_dict(),
    "scheduler": scheduler.state_dict(),
    "iteration": 7,
}
torch.save(checkpoint, folder / "torch_zip.pth")
torch.save(checkpoint, folder / "torch_legacy.pth", _use_new_zipfile_serialization=False)
torch.save(OrderedDict(state), folder / "torch_bare.pth")
values = {name: value.detach() for name, value in state.items()}
values["bfloat16"] = values["bfloat16"].view(torch.int16)
values = {name: np.array(value.numpy(), order="C") for name, value in values.items()}
values["bfloat16"] = values["bfloat16"].view(np.uint16)
values["momentum_0"] = optimizer.state_dict()["state"][0]["momentum_buffer"].numpy()
np.savez(folder / "values.npz", **values)
