"""Time an exported ONNX file in ONNX Runtime against jrdp's own engine, in turn on the same pictures and threads.

    OMP_NUM_THREADS=2 python scripts/export_speed.py model.onnx weights.safetensors PICTURE...

Both are given the resized picture and answer boxes, scores and mask probabilities; decoding the file, resizing and
pasting are outside. Prints the median over all pictures and rounds, and how far apart the answers are.
"""

import argparse
import os
import sys
import time

import numpy as np
import onnxruntime

import jrdp
from jrdp.data.transforms import batch_images, prepare_image, read_image, resize_image

ROUNDS = 5


def main(target: str, weights: str, *pictures: str) -> None:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS", os.cpu_count()))
    session = onnxruntime.InferenceSession(target, options)
    model = jrdp.load(weights, device="cpu")
    times, apart = {"jrdp": [], "onnxruntime": []}, np.zeros(3)
    for picture in pictures:
        image = read_image(picture)
        prepared, resized = prepare_image(image, model.config.input), np.asarray(resize_image(image, model.config.input))
        for number in range(ROUNDS + 1):  # the first one packs weights for this size
            start = time.perf_counter()
            wanted = model.engine.detect(batch_images([prepared]))[0]
            middle = time.perf_counter()
            found = session.run(["boxes", "scores", "masks"], {"image": resized})
            end = time.perf_counter()
            if number:
                times["jrdp"].append(middle - start)
                times["onnxruntime"].append(end - middle)
        if len(found[0]) != len(wanted):
            sys.exit(f"{picture}: {len(wanted)} instances, {len(found[0])} in ONNX Runtime")
        pairs = zip(found, (wanted.boxes, wanted.scores, wanted.mask_probabilities))
        apart = np.maximum(apart, [np.abs(a - b).max() for a, b in pairs])
    ours, theirs = (1000 * float(np.median(values)) for values in times.values())
    print(f"{len(pictures)} pictures, {ROUNDS} rounds, {options.intra_op_num_threads} threads, medians")
    print(f"jrdp {ours:.0f} ms, ONNX Runtime {onnxruntime.__version__} {theirs:.0f} ms, ratio {theirs / ours:.2f}")
    print(f"largest difference: boxes {apart[0]:.1e} px, scores {apart[1]:.1e}, mask probabilities {apart[2]:.1e}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="the file of jrdp export")
    parser.add_argument("weights", help="what it was exported from")
    parser.add_argument("pictures", nargs="+")
    chosen = parser.parse_args()
    main(chosen.model, chosen.weights, *chosen.pictures)
