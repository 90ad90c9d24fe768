"""Parameters and multiply-adds of a network by stage, for any configuration. Nothing is computed: shapes suffice."""

from __future__ import annotations

from dataclasses import dataclass

import jittor as jt
import numpy as np
from jittor import nn

from jrdp.config import ModelConfig
from jrdp.models.layers import Conv
from jrdp.models.rdpnet import RDPNet
from jrdp.models.state import tensor_info

# Names of the tensors of each stage, in the order of computation. "pyramid" is the FPN with what enhances it.
STAGES = {
    "backbone": "backbone.body.",
    "pyramid": "backbone.fpn.",
    "head": "rpn.",
    "masks": "roi_heads.mask.",
}


@dataclass(frozen=True)
class Cost:
    """parameters: numbers in the stage's trained or frozen parameters, without the batch norms' buffers.

    multiply_adds: of its convolutions for one picture; RoIAlign, resizing and norms are not counted.
    """

    stage: str
    parameters: int
    multiply_adds: int


def count_cost(config: ModelConfig, height: int = 320, width: int = 480, rois: int = 100) -> list[Cost]:
    """The cost of each stage for one padded picture of height x width (multiples of 32) and so many RoIs."""
    model = RDPNet(config)
    done: list[int] = []
    for module in model.modules():
        if isinstance(module, (Conv, nn.Conv, nn.ConvTranspose)):
            _count_calls(module, done)

    boxes = np.tile(np.array([[0, 0, 0, width - 1, height - 1]], np.float32), (rois, 1))
    counted = {}
    # Level by level, as on a CPU: a GPU's canvas has zeros between the levels, which would count.
    with jt.flag_scope(use_cuda=0, log_silent=1), jt.no_grad():
        # Jittor computes when a value is asked for; here only shapes are.
        maps = model.backbone.body(jt.zeros((1, 3, height, width)))
        counted["backbone"] = _take(done)
        levels = model.backbone.fpn(*maps[-3:])
        counted["pyramid"] = _take(done)
        model.rpn.head(levels)
        counted["head"] = _take(done)
        model.roi_heads.mask(levels, jt.array(boxes))
        counted["masks"] = _take(done)
    tensors = tensor_info(model)
    costs = []
    for stage, prefix in STAGES.items():
        shapes = [i.shape for name, i in tensors.items() if name.startswith(prefix) and i.kind == "parameter"]
        costs.append(Cost(stage, sum(int(np.prod(shape)) for shape in shapes), counted[stage]))
    return costs


def cost_table(costs: list[Cost]) -> str:
    """A table with a last line for the sums."""
    total = Cost("total", sum(c.parameters for c in costs), sum(c.multiply_adds for c in costs))
    lines = [f"{'stage':<10}{'parameters':>14}{'multiply-adds':>18}"]
    for cost in [*costs, total]:
        lines.append(f"{cost.stage:<10}{cost.parameters:>14,}{cost.multiply_adds / 1e9:>16.2f} G")
    return "\n".join(lines)


def _count_calls(module: nn.Module, done: list[int]) -> None:
    """Let each call of this one convolution note its multiply-adds."""
    transposed = isinstance(module, nn.ConvTranspose)

    def counted(run):
        def call(x: jt.Var) -> jt.Var:
            y = run(x)
            # Every output (every input, where transposed) meets the weights of one filter.
            filters = module.weight.shape[0]
            done.append(int(np.prod((x if transposed else y).shape)) * int(np.prod(module.weight.shape)) // filters)
            return y

        return call

    module.execute = counted(module.execute)
    if isinstance(module, Conv):
        module.in_lanes = counted(module.in_lanes)


def _take(done: list[int]) -> int:
    count = sum(done)
    done.clear()
    return count
