"""Training, testing and predicting with a network from `jrdp.models`."""
