"""The same network in plain PyTorch, written separately; imported only where torch is installed."""
