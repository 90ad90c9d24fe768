"""`jrdp test` loses nothing when it is interrupted: what is found is on disk, and `--resume` does the rest."""

import json

import pytest

from jrdp.config import Config
from jrdp.data.coco import CocoDataset
from jrdp.engine.evaluate import PARTIAL, Asked, Found, evaluate_found
from jrdp.errors import UserError


def finder(test_sets, stop_at=None):
    """Finds the ground truth's own square in every picture, and stops at the batch whose number is given."""
    asked = []

    def find(number, batches):
        dataset = test_sets[number][1]
        for batch in batches:
            if len(asked) == stop_at:
                raise KeyboardInterrupt
            asked.append((number, batch))
            entry = {"image_id": dataset.image_id(batch[0]), "category_id": 1, "score": 0.5 + 0.01 * batch[0]}
            square = {"segmentation": {"size": list(dataset.original_size(batch[0])), "counts": _counts(dataset, batch[0])}}
            yield Found([{**entry, "bbox": [4.0, 4.0, 21.0, 21.0]}], [{**entry, **square}])

    return find, asked


def _counts(dataset, index):
    import numpy as np

    from jrdp.data.rle import encode_mask

    mask = np.zeros(dataset.original_size(index), bool)
    mask[4:25, 4:25] = True
    return encode_mask(mask)["counts"]


def test_an_interrupted_test_is_continued(tiny_set, tmp_path, capsys):
    images, annotations = tiny_set.write()
    config = Config()
    sets = [(name, CocoDataset(images, annotations, config.input, training=False)) for name in ("x/a.json", "x/b.json")]
    whole = evaluate_found(finder(sets)[0], config, sets, tmp_path / "whole", Asked({"w": 1}))
    assert not list(tmp_path.glob(f"whole/*/{PARTIAL}")) and whole["x/a.json"]["segm"]["AP"] > 0.5

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        evaluate_found(finder(sets, stop_at=4)[0], config, sets, out, Asked({"w": 1}))
    assert "1 batches of x/b.json are kept" in capsys.readouterr().err
    with pytest.raises(UserError, match="--resume with other inputs"):
        evaluate_found(finder(sets)[0], config, sets, out, Asked({"w": 2}, resume=True))
    find, asked = finder(sets)
    assert evaluate_found(find, config, sets, out, Asked({"w": 1}, resume=True)) == whole
    assert asked == [(1, [1]), (1, [2])]  # neither the first set nor the first batch of the second again
    for name in ("x_a", "x_b"):
        for file in ("bbox.json", "segm.json", "metrics.json"):
            assert (out / name / file).read_bytes() == (tmp_path / "whole" / name / file).read_bytes()
    assert not list(out.glob(f"*/{PARTIAL}"))

    annotations.write_text(json.dumps({**tiny_set.data, "info": {}}))  # another test set under the same name
    with pytest.raises(KeyboardInterrupt):
        evaluate_found(finder(sets, stop_at=1)[0], config, sets, out, Asked({"w": 1}))
    annotations.write_text(json.dumps(tiny_set.data, indent=1))
    with pytest.raises(UserError, match="other inputs"):
        evaluate_found(finder(sets)[0], config, sets, out, Asked({"w": 1}, resume=True))
