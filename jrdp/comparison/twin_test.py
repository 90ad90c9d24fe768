"""`jrdp compare twin-test`: weights tested with the PyTorch twin, as `jrdp test` does with Jittor."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from jrdp import interchange
from jrdp.comparison.exchange import save_arrays, save_batch
from jrdp.comparison.pair import Options, is_torch_file, resolve_config, state_of
from jrdp.comparison.process import Worker
from jrdp.data.catalog import locate
from jrdp.data.coco import CocoDataset
from jrdp.data.transforms import batch_images
from jrdp.engine.evaluate import refuse_others_results
from jrdp.evaluation.coco_metrics import evaluate, format_metrics
from jrdp.files import make_folder, write_json


def twin_test(options: Options, name: str, out: Path, limit: int | None = None, print_line=print) -> dict:
    """Write bbox.json, segm.json (COCO results) and metrics.json of one dataset to `out`; returns the metrics.

    A .pth is read by torch itself, strictly; any other file by jrdp. limit: only the first pictures, for a quick look
    (metrics then count the others as missed).
    """
    refuse_others_results(out)
    make_folder(out)
    file = interchange.read(options.weights)
    config = resolve_config(file, options)
    place = locate(name, config.data.root)
    dataset = CocoDataset(place.images, place.annotations, config.input, training=False)
    boxes: list[dict] = []
    masks: list[dict] = []
    with tempfile.TemporaryDirectory(prefix="jrdp-twin-test-") as temporary:
        folder = Path(temporary)
        with Worker("torch", options.twin_python, folder, options.threads) as torch:
            built = torch.ask("build", config=config.model_dump(mode="json"), device=options.device)
            if is_torch_file(options.weights):
                torch.ask("load_checkpoint", path=str(options.weights))
            else:
                save_arrays(folder / "start.npz", state_of(file, built["shapes"], options.seed))
                torch.ask("load", state=str(folder / "start.npz"))
            count = len(dataset) if limit is None else min(limit, len(dataset))
            for index in range(count):
                save_batch(folder / "batch.npz", batch_images([dataset.image(index)]))
                found = torch.ask("results", batch=str(folder / "batch.npz"), category_id=dataset.category_id)
                boxes += found["bbox"]
                masks += found["segm"]
                if sys.stderr.isatty():
                    print(f"\r{index + 1}/{count}", end="" if index + 1 < count else "\n", file=sys.stderr)
    write_json(out / "bbox.json", boxes)
    write_json(out / "segm.json", masks)
    metrics = {
        "bbox": evaluate(place.annotations, boxes, "bbox", ours=True),
        "segm": evaluate(place.annotations, masks, "segm", ours=True),
    }
    write_json(out / "metrics.json", metrics)
    print_line(format_metrics(metrics))
    print_line(f"results: {out}")
    return metrics
