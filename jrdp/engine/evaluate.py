"""`jrdp test`: detections of a dataset as COCO results, and their metrics."""

from __future__ import annotations

from pathlib import Path

from tqdm import tqdm

from jrdp.config import Config
from jrdp.data.transforms import batch_images
from jrdp.files import make_folder, write_json
from jrdp.engine.inference import detect_batch
from jrdp.evaluation.coco_metrics import evaluate_with_curves, format_metrics
from jrdp.evaluation.plots import write_pr_curves
from jrdp.evaluation.results import box_results, mask_results
from jrdp.ops import paste_mask_rle


def evaluate_datasets(network, config: Config, test_sets: list, out: Path) -> dict:
    """Test `network` on `[(name, CocoDataset)]`; a single set goes to `out`, several to `out/NAME`.

    Returns:
        per set name the contents of its `metrics.json`.
    """
    metrics = {}
    for name, dataset in test_sets:
        folder = out if len(test_sets) == 1 else out / _folder_name(name)
        metrics[name] = evaluate_dataset(network, config, name, dataset, folder)
    return metrics


def evaluate_dataset(network, config: Config, name: str, dataset, out: Path) -> dict:
    """Write `bbox.json`, `segm.json`, `metrics.json` and `pr_curves.png` of one dataset to `out`; print the table.

    Pictures go through in the order of their ids, `test.batch_size` at a time; every detection is written, whatever
    its score, as the released test script does.
    """
    make_folder(out)
    found_boxes, found_masks = [], []
    size = config.test.batch_size
    order = dataset.sorted_indices()
    for start in tqdm(range(0, len(order), size), desc=f"testing on {name}", unit="batch", disable=None):
        batch = batch_images([dataset.image(index) for index in order[start : start + size]])
        for image_id, instances in zip(batch.image_ids, detect_batch(network, batch)):
            height, width = instances.size
            masks = paste_mask_rle(
                instances.mask_probabilities, instances.boxes, height, width, threshold=config.test.mask_threshold
            )
            found_boxes += box_results(image_id, instances.boxes, instances.scores, dataset.category_id)
            found_masks += mask_results(image_id, masks, instances.scores, dataset.category_id)
    write_json(out / "bbox.json", found_boxes)
    write_json(out / "segm.json", found_masks)
    found = {"bbox": found_boxes, "segm": found_masks}
    evaluations = {kind: evaluate_with_curves(dataset.json_path, results, kind) for kind, results in found.items()}
    metrics = {kind: evaluation.metrics for kind, evaluation in evaluations.items()}
    write_json(out / "metrics.json", metrics)
    write_pr_curves(out / "pr_curves.png", {kind: evaluation.curves for kind, evaluation in evaluations.items()})
    print(f"{name}: {len(order)} pictures")
    print(format_metrics(metrics))
    print(f"results: {out}")
    return metrics


def _folder_name(dataset: str) -> str:
    """`ecssd/imgs:ecssd/val.json` -> `ecssd_val`: what tells apart datasets that are named by their paths."""
    return dataset.rpartition(":")[2].replace(".json", "").strip("/.").replace("/", "_")
