"""From files on disk to network input: catalog, COCO annotations, transforms, loader, and tools for datasets."""
