"""What Jittor needs from the machine: its own stable source folder, oneDNN, Python's headers, a CUDA toolkit.

Each module finds one thing, arranges it under Jittor's cache folder, and says in a sentence what it chose or why not.
Nothing here imports Jittor, and nothing outside the cache folder is written.
"""
