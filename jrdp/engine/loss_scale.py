"""What the loss is multiplied by in mixed precision, so that float16 holds the gradients that are passed back."""

from __future__ import annotations

from dataclasses import dataclass

from jrdp.errors import UserError

FIXED = 1024.0
GROWTH_INTERVAL = 2000  # steps without an overflow after which the factor is doubled


@dataclass
class LossScale:
    """A factor that follows the gradients (Micikevicius et al., 2018): halved when they overflow, doubled after
    `GROWTH_INTERVAL` steps in which they did not. Always a power of two, so that it changes no bit of what fits.

    steps: how many steps went well since the factor changed.
    """

    value: float = 2.0**16
    steps: int = 0

    def overflowed(self) -> None:
        """Gradients were not finite; the step is skipped. Raises `UserError` when no factor would help."""
        if self.value <= 1:
            raise UserError(
                "gradients are not finite even with a loss scale of 1: lower solver.base_lr, or train without train.amp; "
                "last.safetensors is from before this iteration"
            )
        self.value, self.steps = self.value / 2, 0

    def went_well(self) -> None:
        self.steps += 1
        if self.steps == GROWTH_INTERVAL and self.value < 2.0**24:
            self.value, self.steps = self.value * 2, 0
