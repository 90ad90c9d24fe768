"""jrdp: salient instance segmentation (RDPNet, Wu et al., IEEE TIP 2021) in Jittor.

    import jrdp
    model = jrdp.load("r50_isod.pth")
    result = model.predict("photo.jpg")
    result.boxes, result.scores, result.masks
    result.save("out.png")
"""

from __future__ import annotations

import os
import pathlib

from jrdp.machine import importing
from jrdp.version import __version__

__all__ = ["__version__", "load", "train"]

importing.install()  # a later `import jittor` prepares the machine; until then nothing is touched


@importing.host_random_numbers()
def load(weights: str | pathlib.Path, config=None, device: str = "auto", overrides: list[str] | tuple[str, ...] = ()):
    """Read weights of any supported kind and build the network they belong to.

    Args:
        weights: a .safetensors, .pth or .pkl file, or the name of one in `weights/` or the folder `$JRDP_WEIGHTS`.
        config: a YAML file or a `jrdp.config.Config`. Without it, the configuration is the one stored in the weights,
            or is inferred from their tensors (backbone, pyramid, mask head) with released settings for the rest.
        device: "auto", "cpu" or "cuda".
        overrides: `key.key=value` strings over the configuration.

    Returns:
        A `jrdp.engine.predictor.SalientInstanceModel`; its `predict` takes a file, a PIL image or an RGB array.

    Raises:
        jrdp.errors.UserError: if the file is not a checkpoint or does not fit, or the device cannot be had.
        TypeError: for another kind of argument.
    """
    from concurrent.futures import ThreadPoolExecutor

    from jrdp import interchange
    from jrdp.engine.weights import config_of
    from jrdp.interchange.published import locate
    from jrdp.machine import runtime

    if not isinstance(weights, (str, os.PathLike)):
        raise TypeError(f"weights: expected a file or the name of one, not {type(weights).__name__}")
    given = _checked(config, overrides)
    file = interchange.read(locate(weights))
    settings = config_of(file, config, given)
    with ThreadPoolExecutor(1) as beside:  # importing Jittor takes a second
        widened = beside.submit(file.in_float32)
        runtime.start(device, tf32=settings.test.tf32)
        from jrdp.engine.predictor import build

    return build(widened.result(), settings)


@importing.host_random_numbers()
def train(
    config=None,
    out: str | pathlib.Path = "runs/train",
    dataset=None,
    model=None,
    on_step=None,
    resume: bool = False,
    device: str = "auto",
    overrides: list[str] | tuple[str, ...] = (),
) -> dict:
    """Train as `jrdp train` does, from Python.

    Args:
        config: a YAML file or a `jrdp.config.Config`; default: the released recipe.
        out: the run's folder.
        dataset: in place of `data.train`: an object with `len(dataset)` and `dataset[i] -> (picture, instances)`, see
            `jrdp.data.own`. It may be defined in the script or notebook itself, whatever the number of workers.
        model: a network to train, such as `jrdp.load(...).network` with `config=jrdp.load(...).config`; default: a new one
            of `config.model`.
        on_step: called with each `jrdp.engine.steps.Step`.
        resume: continue the run in `out`.
        device, overrides: as in `load`.

    Returns:
        `{"iteration", "losses", "metrics"}`: the last iteration's losses and, per test set, its metrics.

    Raises:
        jrdp.errors.UserError: as `jrdp train` ends with.
        TypeError: for another kind of argument; nothing has been written then.
    """
    from jrdp.config import Config, load_config
    from jrdp.machine import runtime

    settings = _checked(config, overrides)
    if on_step is not None and not callable(on_step):
        raise TypeError(f"on_step: expected a function that takes a Step, not {type(on_step).__name__}")
    given = config if isinstance(config, Config) else None
    chosen = load_config(None if given else config, settings, base=given)
    runtime.start(device, seed=chosen.train.seed, tf32=chosen.train.tf32)
    from jittor import nn

    from jrdp.engine.train import train as run

    if not isinstance(model, (type(None), nn.Module)):
        advice = "; give its .network" if isinstance(getattr(model, "network", None), nn.Module) else ""
        raise TypeError(f"model: expected a network (jittor.nn.Module), not {type(model).__name__}{advice}")
    return run(chosen, pathlib.Path(out), resume, dataset, model, on_step)


def _checked(config, overrides) -> list[str]:
    """The overrides as a list; raises `TypeError` for another kind of either."""
    from jrdp.config import Config

    if not isinstance(config, (type(None), str, os.PathLike, Config)):
        raise TypeError(f"config: expected a YAML file or a jrdp.config.Config, not {type(config).__name__}")
    if not isinstance(overrides, (list, tuple)):
        raise TypeError(f"overrides: expected a list such as ['test.batch_size=2'], not {type(overrides).__name__}")
    other = [each for each in overrides if not isinstance(each, str)]
    if other:
        raise TypeError(f"overrides: expected strings such as 'test.batch_size=2', not {other[0]!r}")
    return list(overrides)
