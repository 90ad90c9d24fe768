"""The page: a photograph in, a threshold, the instances and their files out."""

from __future__ import annotations

import importlib
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from jrdp.errors import UserError

if TYPE_CHECKING:
    from jrdp.engine.predictor import SalientInstanceModel

ADDRESS = "127.0.0.1"  # this machine alone


def need_gradio():
    """The gradio module, which asks nobody on the network about its version. Raises `UserError` without it."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        return importlib.import_module("gradio")
    except ImportError as error:
        raise UserError("jrdp demo needs the gradio package: pip install 'jrdp[demo]'") from error


def build(model: SalientInstanceModel, folder: Path):
    """The page (`gradio.Blocks`) for `model`; files to download go to new folders in `folder`.

    The network runs once a photograph, one photograph at a time; moving the threshold only draws again.
    """
    from jrdp.demo.answers import COLUMNS, answer  # imports Jittor, which only starting the model makes ready

    gradio = need_gradio()
    one_at_a_time = threading.Lock()

    def draw(prediction, threshold: float):
        if prediction is None:
            return None, [], None
        with one_at_a_time:  # pasting masks runs kernels, as the network does
            return tuple(answer(prediction, threshold, Path(tempfile.mkdtemp(dir=folder))))

    def predict(photo):
        if photo is None:
            return None
        with one_at_a_time:
            try:
                return model.predict(photo)
            except UserError as error:
                raise gradio.Error(str(error), print_exception=False) from error

    with gradio.Blocks(title="jrdp", analytics_enabled=False) as page:
        gradio.Markdown("# jrdp: salient instances")
        kept = gradio.State(None)
        with gradio.Row():
            photo = gradio.Image(type="numpy", label="photograph")
            overlay = gradio.Image(type="numpy", label="instances", interactive=False)
        threshold = gradio.Slider(0.0, 1.0, value=0.5, step=0.01, label="threshold of the score")
        table = gradio.Dataframe(headers=COLUMNS, interactive=False, label="instances above the threshold")
        files = gradio.File(file_count="multiple", interactive=False, label="download")
        shown = [overlay, table, files]
        # Drawn in a second step, with the threshold of that moment: it may be moved while the network runs.
        photo.change(predict, [photo], [kept]).then(draw, [kept, threshold], shown)
        threshold.change(draw, [kept, threshold], shown, trigger_mode="always_last")  # dragged or typed
    return page


def serve(model: SalientInstanceModel, port: int) -> None:
    """Serve the page on this machine alone until interrupted."""
    with tempfile.TemporaryDirectory(prefix="jrdp-demo-") as folder:
        page = build(model, Path(folder))
        try:
            page.launch(server_name=ADDRESS, server_port=port, share=False, allowed_paths=[folder], quiet=True,
                        prevent_thread_lock=True)
        except OSError as error:
            reason = str(error).partition(". ")[0]  # without gradio's own advice
            raise UserError(f"cannot serve the page on {ADDRESS}:{port}: {reason}; choose another --port") from error
        print(f"http://{ADDRESS}:{port} is the page; Ctrl-C ends it", flush=True)
        try:
            while True:  # gradio's own way of waiting takes an interruption for a good end
                time.sleep(3600)
        finally:
            page.close(verbose=False)
