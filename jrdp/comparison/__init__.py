"""Comparison across frameworks: the PyTorch twin, `jrdp compare`, and its reports.

The modules `twin*` and `worker_torch` are the only ones in jrdp that import torch (extra `[torch]`); the modules that a
command runs in its own process import neither framework and start `worker_jittor` and `worker_torch` as children.
"""
