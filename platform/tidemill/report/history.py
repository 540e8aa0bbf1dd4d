"""Which samples a run has used, as its logs tell it: one line for every step of its one history.

`ledger` joins attempts for people and makes the best of what it finds. This is for proof: it joins
them by the same rules, keeps doubts, and holds numbers alone, because a run has millions of steps.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tidemill.report.ledger import STEPS
from tidemill.report.tail import Place, is_history, place_of
from tidemill.spec.progress import Cursor, Event, EventKind

UNTOLD = -1
AFTERWARDS = frozenset(
    {
        EventKind.checkpoint_saved,
        EventKind.near_kept,
        EventKind.resizing,
        EventKind.stop_requested,
        EventKind.stopped,
        EventKind.finished,
        EventKind.evaluated,
    }
)
"""Told only once every step before them is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Flaw:
    """Steps of which something is not as it should be.

    Attributes:
        first: Number of the first one.
        last: Number of the last one.
        attempt: The attempt that told of them; 0 if none did.
        problem: What is wrong.
    """

    first: int
    last: int
    attempt: int
    problem: str


class History:
    """The steps that the newest state descends from, in parallel arrays.

    Attributes:
        steps: Their numbers, ascending.
        attempts: Attempts that took them.
        samples: Samples of the run used so far, after each; `UNTOLD` if the line does not say.
        counts: Samples each used; likewise.
        digests: Which they were, see `order.mark`; means nothing where the count is untold.
        base: Where the history begins: at 0, or where another run was left.
        origin: What it goes on from there; empty at 0.
        reached: Steps taken in the newest state that is known to have been.
        restores: (attempt, step, samples) of every state that was restored.
        repeats: Steps that an attempt tells twice.
        newest: The newest attempt that told of anything.
        taken_back: Steps that were told and are not part of the history.
    """

    def __init__(self) -> None:
        self.steps, self.attempts = array("q"), array("q")
        self.samples, self.counts = array("q"), array("q")
        self.digests = array("Q")
        self.base, self.origin = Cursor(), ""
        self.reached = self.newest = self.taken_back = 0
        self.restores: list[tuple[int, int, int]] = []
        self.repeats: list[Flaw] = []
        self._rooted = Cursor()
        self._rooted_attempt = 0
        self._places: dict[int, Place] = {}

    def take(self, event: Event) -> None:
        """Add an event; those of one log in its order, logs in the order of their attempts."""
        step, attempt = _whole(event.fields.get("step")), event.attempt
        self.newest = max(self.newest, attempt)
        if step < 0:
            return
        if is_history(event):
            place, told = place_of(event), self._places.get(attempt)
            if "late" in event.fields and told is not None and place <= told:
                return
            self._places[attempt] = place if told is None else max(place, told)
        if event.kind is EventKind.restored:
            self._go_back(event, step)
        elif event.kind in STEPS:
            self._go_on(event, step)
        elif event.kind in AFTERWARDS and attempt >= self._rooted_attempt:
            self.reached = max(self.reached, step)

    def _go_back(self, event: Event, step: int) -> None:
        samples = _whole(event.fields.get("samples"))
        self._rooted, self._rooted_attempt = Cursor(step=step, samples=samples), event.attempt
        source = event.fields.get("source")
        if source in {"fork", "weights"}:
            self._keep(0)
            self.restores.clear()
            self.base = self._rooted
            self.origin = str(event.fields.get("run" if source == "fork" else "checkpoint", "?"))
        else:
            left = len(self.steps)
            while left and self.steps[left - 1] >= step:
                left -= 1
            self._keep(left)
            self.restores.append((event.attempt, step, samples))
        self.reached = step

    def _go_on(self, event: Event, step: int) -> None:
        attempt, fields = event.attempt, event.fields
        if attempt > self._rooted_attempt:  # it began afresh
            self._keep(0)
            self.restores.clear()
            self.base, self.origin, self.reached = Cursor(), "", 0
            self._rooted, self._rooted_attempt = Cursor(), attempt
        if attempt < self._rooted_attempt and step >= self._rooted.step:
            self.taken_back += 1
            return
        if self.steps and step <= self.steps[-1]:
            self.repeats.append(
                Flaw(first=step, last=step, attempt=attempt, problem="taken again, or told twice")
            )
            return
        samples, count = _whole(fields.get("samples")), _whole(fields.get("count"))
        digest = _word(fields.get("digest"))
        told = digest is not None and UNTOLD not in (samples, count)
        self.steps.append(step)
        self.attempts.append(attempt)
        self.samples.append(samples)
        self.counts.append(count if told else UNTOLD)
        self.digests.append(digest or 0)
        self.reached = max(self.reached, step + 1)

    def _keep(self, length: int) -> None:
        self.taken_back += len(self.steps) - length
        for held in (self.steps, self.attempts, self.samples, self.counts, self.digests):
            del held[length:]


def make_history(events: Iterable[Event]) -> History:
    """Join the events of a run; as they are in its logs, one log after the other."""
    history = History()
    for event in events:
        history.take(event)
    return history


def _whole(value: Any) -> int:
    return value if isinstance(value, int) and 0 <= value < 2**62 else UNTOLD


def _word(value: Any) -> int | None:
    try:
        word = int(value, 16) if isinstance(value, str) else -1
    except ValueError:
        return None
    return word if 0 <= word < 2**64 else None
