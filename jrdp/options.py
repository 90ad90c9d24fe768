"""What the options of `jrdp` and `jrdp compare` have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Optional

from jrdp.interchange.published import locate


def find_weights(weights: Optional[Path]) -> Optional[Path]:
    """The file that an option for weights means: a path, or a name that is looked up."""
    return None if weights is None else locate(weights)
