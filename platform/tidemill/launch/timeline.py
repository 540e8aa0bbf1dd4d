"""Timeline: where the seconds between two groups went."""

from __future__ import annotations

import time
from typing import Any

from tidemill.launch.policy import Cause


class Timeline:
    """Seconds of each stage of one change, measured where it happens.

    Stages follow one another without a gap: `detect` (from when the first rank ended its part to
    when the controller hears of it), `stop` (the old group ends), `decide` (nodes are looked at),
    `place` (there are not enough of them), `spawn` (processes are ready), `join` (they know each
    other). The worker adds `load` and `first_step`.

    Args:
        cause: Why the group changes.
        size: Workers of the old group.
        detect_s: Seconds that passed before the controller heard.
    """

    def __init__(self, cause: Cause, size: int = 0, detect_s: float = 0.0) -> None:
        self.cause = cause
        self._began_s = self._last_s = time.monotonic()
        self._fields: dict[str, Any] = {
            "cause": cause.value,
            "before": size,
            "detect_s": detect_s,
        }

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self._began_s

    def mark(self, stage: str) -> None:
        """A stage is over; one that comes twice adds up."""
        now_s = time.monotonic()
        key = f"{stage}_s"
        self._fields[key] = self._fields.get(key, 0.0) + now_s - self._last_s
        self._last_s = now_s

    def note(self, **fields: Any) -> None:
        """Add what was found."""
        self._fields |= fields

    def fields(self) -> dict[str, Any]:
        """As it goes to the worker that will record it."""
        return dict(self._fields)
