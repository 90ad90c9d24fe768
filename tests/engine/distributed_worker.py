"""One rank of the data-parallel test (not a test itself): python distributed_worker.py SAMPLE_FOLDER OUT.npz"""

import sys

import numpy as np

from jrdp.machine import runtime


def main(sample, out):
    runtime.start("cpu", seed=5)
    from jrdp.config import load_config
    from jrdp.data.catalog import load_dataset
    from jrdp.data.loader import TrainLoader
    from jrdp.engine import distributed
    from jrdp.engine.solver import Solver
    from jrdp.models.rdpnet import RDPNet
    from jrdp.models.state import trainable_parameters

    training = f"data.train=[{sample}/imgs:{sample}/train.json]"
    config = load_config(None, ["input.min_size=64", "input.max_size=96", training])
    dataset = load_dataset(config.data.train, config, training=True)
    loader = TrainLoader(dataset, 2, seed=0, rank=distributed.rank(), world_size=distributed.world_size())
    _, batch, targets = next(iter(loader))
    model = RDPNet(config.model)
    solver = Solver(trainable_parameters(model), config.solver)
    losses = model.losses(batch, targets, all_reduce=distributed.all_reduce)
    solver.backward(sum(losses.values()))
    gradients = {name: value.numpy() for name, value in solver.gradients().items()}
    values = distributed.mean_over_ranks({name: value.item() for name, value in losses.items()})
    print(f"rank {distributed.rank()} of {distributed.world_size()}: {len(batch)} pictures, {values}")
    if distributed.is_main():
        np.savez(out, pictures=len(batch), losses=np.array(list(values.values())), **gradients)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
