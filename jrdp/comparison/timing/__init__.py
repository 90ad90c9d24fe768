"""`jrdp bench`: `run.run_bench` times everything beside the PyTorch twin, `cost.count_cost` counts multiplications.

Nothing is imported here: the twin's process, whose Python need not have Jittor, comes through this file too.
"""
