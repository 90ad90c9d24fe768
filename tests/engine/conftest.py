import pytest
from safetensors.numpy import save_file


@pytest.fixture(scope="session")
def weights(seeded, tmp_path_factory):
    """The deterministic weights of R-50 as a file, which no test changes."""
    path = tmp_path_factory.mktemp("weights") / "r50.safetensors"
    save_file(seeded("r50"), str(path))
    return path
