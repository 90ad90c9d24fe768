"""The Python that has torch: this one, or the one in JRDP_TWIN_PYTHON."""

import os
import sys

TWIN_PYTHON = os.environ.get("JRDP_TWIN_PYTHON", sys.executable)
