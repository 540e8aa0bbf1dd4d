"""The guard: counts skipped steps, and stops a run that does nothing but skip them.

A skipped step leaves the state as it was, so a run whose gradients are never finite again would
spend the rest of its budget standing still. All ranks hear of the same outcomes, and so come to the
same decision without a vote.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tidemill.errors import HopelessError
from tidemill.spec.training import PrecisionKind, PrecisionSpec
from tidemill.train.engine import Engine, Outcome


class Guard:
    """Counts skipped steps; a part of the state, kept as the scalar `guard`.

    Args:
        precision: What the run computes in, and how many skipped steps in a row it bears.
        engine: Asked for the fp16 loss scale when there is a failure to tell.

    Attributes:
        skipped: Steps skipped so far, those of earlier attempts included.
        in_a_row: How many of them were the newest steps.
    """

    def __init__(self, precision: PrecisionSpec, engine: Engine) -> None:
        self.skipped = self.in_a_row = 0
        self._precision = precision
        self._engine = engine

    def note(self, outcome: Outcome, step: int) -> None:
        """Count a step.

        Args:
            outcome: What became of it.
            step: Its number.

        Raises:
            HopelessError: It was skipped, and so were as many steps as the run bears in a row; on
                every rank.
        """
        if outcome.applied:
            self.in_a_row = 0
            return
        self.skipped += 1
        self.in_a_row += 1
        if 0 < self._precision.max_skipped_steps <= self.in_a_row:
            steps = "1 step was" if self.in_a_row == 1 else f"{self.in_a_row} steps in a row were"
            raise HopelessError(
                f"step {step}: {steps} skipped because gradients were not finite in "
                f"{self._computed()}; go on from an earlier state under another name= "
                f"(checkpoint.from_run=, checkpoint.from_step=) with {self._remedy()}; or bear "
                "more of them: precision.max_skipped_steps="
            )

    def state(self) -> dict[str, int]:
        """JSON form."""
        return {"skipped": self.skipped, "in_a_row": self.in_a_row}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` returned."""
        self.skipped, self.in_a_row = int(state["skipped"]), int(state["in_a_row"])

    def _computed(self) -> str:
        kind = self._precision.kind
        if kind is not PrecisionKind.fp16:
            return kind.value
        scale = self._engine.state().scalars["loss_scale"]["value"]
        return f"{kind.value} at loss scale {scale:g}"

    def _remedy(self) -> str:
        match self._precision.kind, self._precision.loss_scale:
            case PrecisionKind.fp32, _:
                return "a lower optim.lr"
            case PrecisionKind.bf16, _:
                return "a lower optim.lr or precision=fp32"
            case PrecisionKind.fp16, 0:
                return "a lower optim.lr or precision=bf16"
            case _:
                return "a lower precision.loss_scale (0 adapts it), precision=bf16 or a lower lr"
