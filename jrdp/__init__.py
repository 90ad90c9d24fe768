"""jrdp: salient instance segmentation (RDPNet, Wu et al., IEEE TIP 2021) in Jittor.

    import jrdp
    model = jrdp.load("r50_isod.pth")
    result = model.predict("photo.jpg")
    result.boxes, result.scores, result.masks
    result.save("out.png")
"""

from jrdp import runtime

__version__ = "0.1.0"

runtime.prepare()
