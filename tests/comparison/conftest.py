"""What tests of both frameworks need."""

import importlib.util
import subprocess

import pytest
from twin_python import TWIN_PYTHON


@pytest.fixture(scope="session")
def both_frameworks():
    if importlib.util.find_spec("jittor") is None:
        pytest.skip("needs Jittor in this Python")
    if subprocess.run([TWIN_PYTHON, "-c", "import torch"], capture_output=True).returncode:
        pytest.skip("needs torch (extra [torch]) here or in JRDP_TWIN_PYTHON")
