"""A training loop of one's own: python examples/train_loop.py photos train.json mine.safetensors"""

import sys

from jrdp.config import load_config
from jrdp.machine import runtime


def main(images: str, annotations: str, out: str, config: str = "configs/quickstart.yaml", steps: int = 100) -> list:
    settings = load_config(config)
    runtime.start("auto", seed=1)  # the device; before Jittor is imported
    import jittor as jt

    from jrdp.data.coco import CocoDataset
    from jrdp.data.loader import TrainLoader
    from jrdp.engine.predictor import SalientInstanceModel
    from jrdp.engine.start import start_from_scratch
    from jrdp.models.rdpnet import RDPNet
    from jrdp.models.state import trainable_parameters

    dataset = CocoDataset(images, annotations, settings.input, training=True)
    network = RDPNet(settings.model)
    parameters = list(trainable_parameters(network).values())
    optimizer = jt.optim.SGD(parameters, lr=0.001, momentum=0.9)  # or any other
    history = []
    with TrainLoader(dataset, batch_size=2, seed=1) as loader:
        for iteration, batch, targets in loader:
            if iteration == 0:
                start_from_scratch(network, batch)  # measures the frozen batch norms; not needed with trained weights
            losses = network(batch, targets)  # loss_cls, loss_reg, loss_centerness, loss_mask
            loss = losses["loss_cls"] + losses["loss_reg"] + losses["loss_centerness"] + losses["loss_mask"]
            optimizer.step(loss)
            history.append(loss.item())
            if iteration + 1 == steps:
                break
    print(f"loss {history[0]:.2f} -> {history[-1]:.2f}; in {batch.image_ids[0]}: {len(network(batch)[0])} instances")
    SalientInstanceModel(network, settings, lambda: network).save_weights(out)
    return history


if __name__ == "__main__":
    main(*sys.argv[1:])
