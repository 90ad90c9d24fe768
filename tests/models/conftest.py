"""One R-50 with the weights of the goldens, run once over each picture."""

import pytest
from golden_pictures import Forward, picture_batch, run

from jrdp.config import Config
from jrdp.models.rdpnet import RDPNet
from jrdp.models.state import assign_state


@pytest.fixture(scope="session")
def r50(seeded) -> RDPNet:
    model = RDPNet(Config().model)
    assign_state(model, seeded("r50"))
    return model


@pytest.fixture(scope="session")
def forward(r50, golden):
    """`forward("a_480x320")` -> the stages and instances of that picture, computed once."""
    cache = {}

    def result(name: str) -> Forward:
        if name not in cache:
            cache[name] = run(r50, picture_batch(golden, name))
        return cache[name]

    return result
