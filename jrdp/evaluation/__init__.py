"""COCO metrics with AP70, result files, plots, and the error analysis. NumPy, pycocotools and matplotlib only."""
