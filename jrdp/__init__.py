"""jrdp: salient instance segmentation (RDPNet, Wu et al., IEEE TIP 2021) in Jittor.

    import jrdp
    model = jrdp.load("r50_isod.pth")
    result = model.predict("photo.jpg")
    result.boxes, result.scores, result.masks
    result.save("out.png")
"""

from __future__ import annotations

import pathlib

from jrdp.machine import importing

__version__ = "0.1.0"

importing.install()  # a later `import jittor` prepares the machine; until then nothing is touched


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
    """
    from jrdp import interchange
    from jrdp.engine.weights import config_of
    from jrdp.interchange.published import locate
    from jrdp.machine import runtime

    file = interchange.read(locate(weights))
    settings = config_of(file, config, list(overrides))
    runtime.start(device, tf32=settings.test.tf32)
    from jrdp.engine.predictor import build

    return build(file, settings)
