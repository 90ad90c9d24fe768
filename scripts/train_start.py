"""Train the filters of the packaged backbone start (`generated_r50`): `python scripts/train_start.py OUT.npz`.

The whole network learns on generated pictures (`jrdp data sample` with another seed than the quickstart's), its backbone
cut down to what the packaged file keeps, with batch norm that learns. What is written are the kept filters and their
batch norms as scale and shift, float32; `jrdp/interchange/packed_backbone.py` packs and unpacks them. `--pack OUT.npz` writes the file.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np

from jrdp.config import load_config
from jrdp.dataset_tools.sample import write_sample
from jrdp.interchange import packed_backbone
from jrdp.interchange.safetensors_file import write_safetensors
from jrdp.machine import runtime

SEED = 20_000
EPS = 1e-5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--pictures", type=int, default=1500)
    parser.add_argument("--iterations", type=int, default=400)
    parser.add_argument("--decay", type=int, default=1500, help="iterations over which the rate falls to 0, as a cosine")
    parser.add_argument("--pack", action="store_true", help="pack OUT.npz into the package instead of training")
    parser.add_argument("--rate", type=float, default=4e-4)
    parser.add_argument("--batch", type=int, default=4)
    options = parser.parse_args()
    if options.pack:
        with open(packed_backbone.PATH, "wb") as stream:
            metadata = {"format": "pt", "jrdp": json.dumps({"packed": packed_backbone.NAME})}
            write_safetensors(stream, packed_backbone.pack(dict(np.load(options.out))), metadata)
        return
    folder = options.out.parent / "start_pictures"
    if not (folder / "train.json").exists():
        write_sample(folder, train=options.pictures, val=1, seed=SEED)
    settings = ["model.backbone.freeze_at=0", "model.fcos.post_nms_top_n=16", "data.root=.", "data.test=[]"]
    settings += [f"data.train=[{folder}/imgs:{folder}/train.json]"]
    config = load_config(Path(__file__).parent.parent / "configs" / "quickstart.yaml", settings)
    runtime.start("cpu", seed=1)
    run(config, options)


def run(config, options) -> None:
    import jittor as jt
    from jittor import nn

    from jrdp.data.catalog import load_dataset
    from jrdp.data.loader import TrainLoader
    from jrdp.models.layers import FrozenBatchNorm
    from jrdp.models.rdpnet import RDPNet
    from jrdp.models.state import named_tensors, trainable_parameters

    class TwoCopies(nn.Module):
        """C5 of the packaged start: every second pixel of C4, twice."""

        def execute(self, x):
            half = x[:, :, ::2, ::2]
            return jt.concat([half, half], dim=1)

    class LearningNorm(nn.BatchNorm):
        """Batch norm over the batch, called as the frozen one is."""

        def execute(self, x, add=None, rectify=False):
            y = super().execute(x)
            y = y if add is None else y + add
            return nn.relu(y) if rectify else y

    model = RDPNet(config.model)
    body = model.backbone.body
    for name, blocks in packed_backbone.KEPT.items():
        layer = getattr(body, name)
        setattr(body, name, nn.Sequential(*list(layer.layers.values())[:blocks]))
    body.layer4 = TwoCopies()
    norms = {}
    _learn_norms(body, FrozenBatchNorm, LearningNorm, norms)
    parameters = trainable_parameters(model)
    optimizer = jt.optim.Adam(list(parameters.values()), lr=options.rate, betas=(0.9, 0.99))
    dataset = load_dataset(config.data.train, config, training=True)
    loader = TrainLoader(dataset, batch_size=options.batch, seed=1, workers=0, flip_probability=0.5)
    cpu = time.process_time()
    recent: list[float] = []
    for iteration, batch, targets in loader:
        progress = iteration / options.decay
        optimizer.lr = options.rate * min(1, (iteration + 1) / 50) * 0.5 * (1 + math.cos(math.pi * min(1, progress)))
        losses = model.losses(batch, targets)
        total = sum(losses.values())
        optimizer.step(total)
        recent.append(total.item())
        if not math.isfinite(recent[-1]):
            raise SystemExit(f"the loss is not finite at iteration {iteration + 1}")
        if iteration % 20 == 19:
            seconds = time.process_time() - cpu
            print(f"{iteration + 1}/{options.iterations}  loss {np.mean(recent[-20:]):.3f}  {seconds:.0f} s of CPU", flush=True)
        if iteration + 1 == options.iterations:
            _save(options.out, named_tensors(body), norms)
            return


def _learn_norms(module, frozen, learning, found: dict, prefix: str = "") -> None:
    """Replace frozen batch norms below `module` by ones that learn; `found` gets them by name."""
    members = module.layers if hasattr(module, "layers") else vars(module)
    for name, member in list(members.items()):
        if isinstance(member, frozen):
            members[name] = found[prefix + name] = learning(member.weight.shape[0], eps=EPS, momentum=0.05)
        elif hasattr(member, "modules") and not isinstance(member, learning):
            _learn_norms(member, frozen, learning, found, f"{prefix}{name}.")


def _save(path: Path, tensors: dict, norms: dict) -> None:
    kept = {name: value.numpy() for name, value in tensors.items() if value.ndim == 4}
    for name, norm in norms.items():
        scale = norm.weight.numpy() / np.sqrt(norm.running_var.numpy() + EPS)
        kept[f"{name}.weight"], kept[f"{name}.bias"] = scale, norm.bias.numpy() - norm.running_mean.numpy() * scale
    np.savez(path, **kept)


if __name__ == "__main__":
    main()
