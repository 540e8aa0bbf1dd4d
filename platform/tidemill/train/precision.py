"""Number formats, and the loss scale of the torch engines.

The scale follows the same rule on every rank without a vote: gradients are reduced before they are
judged, so a non-finite norm is non-finite everywhere. DeepSpeed brings its own scaler.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from tidemill.spec.training import PrecisionKind, PrecisionSpec

DTYPES: dict[PrecisionKind, torch.dtype] = {
    PrecisionKind.fp32: torch.float32,
    PrecisionKind.bf16: torch.bfloat16,
    PrecisionKind.fp16: torch.float16,
}


@dataclass(slots=True)
class LossScale:
    """Fixed or dynamic loss scale.

    Attributes:
        value: What the loss is multiplied by, and gradients divided by.
        window: Good steps after which the value doubles; 0 keeps it fixed.
        good_steps: Good steps since the last change.

    Source: Micikevicius et al., Mixed Precision Training, arXiv 1710.03740, section 3.2.
    """

    value: float = 1.0
    window: int = 0
    good_steps: int = 0

    def update(self, *, finite: bool) -> None:
        """Halve after a non-finite step, double after `window` finite ones."""
        if self.window == 0:
            return
        if not finite:
            self.value, self.good_steps = max(1.0, self.value / 2), 0
            return
        self.good_steps += 1
        if self.good_steps == self.window:
            self.value, self.good_steps = self.value * 2, 0

    def state(self) -> dict[str, Any]:
        """JSON form."""
        return {"value": self.value, "good_steps": self.good_steps}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned; a fixed scale stays what the spec says."""
        if self.window:
            self.value, self.good_steps = float(state["value"]), int(state["good_steps"])


def make_loss_scale(spec: PrecisionSpec) -> LossScale:
    """The scale a fresh run starts with; 1 and fixed unless the precision is fp16."""
    if spec.kind is not PrecisionKind.fp16:
        return LossScale()
    if spec.loss_scale > 0:
        return LossScale(spec.loss_scale)
    return LossScale(2.0**spec.initial_scale_power, window=spec.scale_window)
