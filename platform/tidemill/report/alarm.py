"""The alarm: checkpoints that fail, told so that nobody misses it and nobody drowns in it.

A failing storage fails again and again, often for days. Each reason is a line once; from then on a
sign that stays until a checkpoint is committed counts for it, and another line comes only when the
number of lost checkpoints has doubled.
"""

from __future__ import annotations

import re

from tidemill.report.notices import one_line, say_event
from tidemill.report.quantities import count_noun
from tidemill.spec.progress import Event, EventKind

_WITH_DIGIT = re.compile(r"\w*\d\w*")


def gist(reason: object) -> str:
    """A reason without what differs from step to step and from try to try: all with a digit."""
    return _WITH_DIGIT.sub("#", one_line(reason))


class Alarm:
    """Follows the events about checkpoints of one run; one attempt's worries end with it."""

    def __init__(self) -> None:
        self._committed: int | None = None
        self._forget()

    @property
    def raised(self) -> bool:
        """Whether the newest try to save a checkpoint failed."""
        return self._tries > 0

    @property
    def sign(self) -> str:
        """What to show for as long as checkpoints fail; empty while all is well."""
        if not self.raised:
            return ""
        if not self._lost:
            return f"SAVING FAILED {self._tries:,}x"
        known = self._committed is not None
        return f"NO CHECKPOINT since step {self._committed}" if known else "NO CHECKPOINT SAVED"

    def hear(self, event: Event, total_steps: int) -> str | None:
        """Take an event of any kind but `step`.

        Args:
            event: The event.
            total_steps: Optimizer steps of the whole run.

        Returns:
            The line to show for it; None if it adds nothing to what was shown.
        """
        line = say_event(event, total_steps)
        match event.kind:
            case EventKind.attempt_started:
                self._forget()
            case EventKind.restored if event.fields.get("source", "storage") == "storage":
                self._committed = _step(event)
            case EventKind.checkpoint_saved:
                if self.raised:
                    line += f", after {count_noun(self._tries, 'failed try', 'failed tries')}"
                self._forget()
                self._committed = _step(event)
            case EventKind.checkpoint_failed:
                return self._hear_failure(event, line)
            case EventKind.near_refused:
                return line if self._is_new(f"near: {gist(event.fields.get('reason'))}") else None
            case EventKind.near_kept:
                return None
            case _:
                pass
        return line

    def _forget(self) -> None:
        self._tries = self._lost = 0
        self._failing: int | None = None
        self._told: set[str] = set()

    def _hear_failure(self, event: Event, line: str) -> str | None:
        step, final = _step(event), event.fields.get("retry_in_s") is None
        # A newer one takes the place of one that fails, which is lost without a word.
        lost = final + (self._failing not in {None, step})
        self._failing = None if final else step
        self._tries += 1
        self._lost += lost
        is_new = self._is_new(f"{final} {gist(event.fields.get('reason'))}")
        doubled = lost > 0 and self._lost & (self._lost - 1) == 0
        if not (is_new or doubled):
            return None
        if self._lost <= final:  # the line says it
            return line
        return f"{line} ({count_noun(self._lost, 'checkpoint')} lost)"

    def _is_new(self, news: str) -> bool:
        known = news in self._told
        self._told.add(news)
        return not known


def _step(event: Event) -> int | None:
    step = event.fields.get("step")
    return step if isinstance(step, int) else None
