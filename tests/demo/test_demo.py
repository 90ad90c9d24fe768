"""The page of `jrdp demo`: what it shows and gives to download, and the line without gradio."""

import json
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from jrdp import visualize
from jrdp.demo.answers import COLUMNS, answer
from jrdp.demo.page import build, need_gradio
from jrdp.engine.predictor import Prediction
from jrdp.errors import UserError
from jrdp.structures import Instances


@pytest.fixture
def prediction():
    photo = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    boxes = np.array([[5, 5, 24, 34], [40, 10, 69, 49]], np.float32)
    masks = np.zeros((2, 60, 80), bool)
    masks[0, 5:35, 5:25] = masks[1, 10:50, 40:70] = True
    return Prediction(photo, Instances(boxes, np.array([0.9, 0.4], np.float32), np.ones((2, 32, 32), np.float32),
                                       (60, 80), masks))


@pytest.mark.parametrize("threshold, count", [(0.5, 1), (0.3, 2), (0.95, 0)])
def test_the_threshold_chooses_what_is_shown_and_written(prediction, tmp_path, threshold, count):
    overlay, rows, files = answer(prediction, threshold, tmp_path)
    assert len(rows) == count and all(len(row) == len(COLUMNS) for row in rows)
    assert [row[3] for row in rows] == [600, 1200][:count]
    np.testing.assert_array_equal(overlay, prediction.overlay(threshold))
    np.testing.assert_array_equal(np.asarray(Image.open(files[0])), overlay)
    index = np.asarray(Image.open(files[1]))
    np.testing.assert_array_equal(index, visualize.index_mask(prediction.above(threshold).masks))
    results = json.loads(open(files[2]).read())
    assert [round(r["score"], 3) for r in results] == [0.9, 0.4]  # every detection, as `jrdp predict`
    assert results[0]["bbox"] == [5, 5, 20, 30] and "segmentation" in results[0]


def test_without_gradio_the_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(UserError, match=r"jrdp\[demo\]"):
        need_gradio()


def test_what_is_refused_is_told_on_the_page(tmp_path):
    gradio = pytest.importorskip("gradio")

    class Diverged:
        def predict(self, photo):
            raise UserError("the network's answers are not finite")

    predict = next(iter(build(Diverged(), tmp_path).fns.values())).fn
    with pytest.raises(gradio.Error, match="answers are not finite"):
        predict(np.zeros((4, 4, 3), np.uint8))


SERVE = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from jrdp import endings
from jrdp.demo.page import serve
endings.leave(endings.run(lambda: serve(None, {port})))
"""


@pytest.mark.parametrize("name, code", [("SIGINT", 130), ("SIGTERM", 143)])
def test_an_interrupted_page_is_no_good_end(name, code):
    pytest.importorskip("gradio")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", SERVE.format(port=port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert f"127.0.0.1:{port} is the page" in process.stdout.readline()
        process.send_signal(getattr(signal, name))
        told = process.communicate(timeout=60)[1]
    assert process.returncode == code and told.splitlines()[-1].startswith("jrdp: ") and "Traceback" not in told


def test_the_page_can_be_imported_before_jittor_is_made_ready():
    """So that the device and TF32 can still be chosen, and that nothing but the missing package is waited for."""
    code = "import sys, jrdp.demo.page; print('jittor' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout == "False\n"
