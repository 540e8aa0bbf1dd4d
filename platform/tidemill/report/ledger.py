"""What the events of a run add up to: one curve, and the account of every attempt.

A run's history is what its newest state descends from: an attempt that restores step N takes back
every step after N that earlier attempts had taken, whether or not it ever takes them again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby, pairwise
from typing import Any

from tidemill.report.notices import number
from tidemill.spec.progress import Event, EventKind


class Ending(StrEnum):
    """How an attempt, and so far the run, has ended."""

    finished = "finished"
    stopped = "stopped"
    failed = "failed"
    resized = "resized"
    """Its workers agreed to end it, so that others could join or leave."""
    cut = "cut"
    """No last word: it was killed, lost its machine, or is still going on."""


_LAST_WORDS = {
    EventKind.finished: Ending.finished,
    EventKind.stopped: Ending.stopped,
    EventKind.failed: Ending.failed,
    EventKind.resizing: Ending.resized,
}
STEPS = frozenset({EventKind.step, EventKind.used})
"""Every step of the optimizer is one of these."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptReport:
    """One attempt, as its events tell it.

    Attributes:
        attempt: Its number.
        started_s: Time of its first event, seconds since the epoch.
        ended_s: Time of its last event, seconds since the epoch.
        fields: The fields of its `attempt_started`; empty if there was none.
        from_step: Steps taken in the state it restored; 0 for a fresh start.
        source: Where that came from: `storage`, `near`, `fork`, `weights`; empty for a fresh start.
        to_step: Steps taken in the last state it is known to have reached.
        ending: How it ended.
        error: The error of a failed one, in one line.
        traceback: Where it was raised; empty if that is not known.
        tokens_per_s: Training tokens per second spent in steps; 0 if it took none.
        redone_steps: Steps it took that later attempts took back.
        redone_s: Seconds it spent in them.
        steps_s: When its first recorded step began and its last one ended; None if it took none.
    """

    attempt: int
    started_s: float
    ended_s: float
    fields: dict[str, Any]
    from_step: int
    source: str
    to_step: int
    ending: Ending
    error: str
    traceback: str
    tokens_per_s: float
    redone_steps: int
    redone_s: float
    steps_s: tuple[float, float] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport:
    """A run, as the events of all its attempts tell it.

    Where only every Nth step was recorded, a recorded step stands for those since the one before.

    Attributes:
        attempts: In order; never empty.
        steps: The one curve, see `joined_steps`.
        evaluations: The validations along that curve.
        saved: Every `checkpoint_saved`, also those that were removed or refused since.
        failed_saves: Every `checkpoint_failed`, also those that a later try made good.
        near: Every `near_kept`.
        near_refused: Every `near_refused`.
        restored: Every `restored`.
        refused: Every `checkpoint_refused`.
        rejoined: Every `rejoined`.
        signs: Every `notice`, `straggler` and `hung`.
        last_step: Steps taken or skipped so far, taken-back ones left out.
        tokens: Tokens that the curve was trained on.
        training_s: Seconds spent in the steps of the curve.
        skipped_steps: Numbers of the curve's steps that were skipped, for gradients not finite.
    """

    attempts: tuple[AttemptReport, ...]
    steps: tuple[Event, ...]
    evaluations: tuple[Event, ...]
    saved: tuple[Event, ...]
    failed_saves: tuple[Event, ...]
    near: tuple[Event, ...]
    near_refused: tuple[Event, ...]
    restored: tuple[Event, ...]
    refused: tuple[Event, ...]
    rejoined: tuple[Event, ...]
    signs: tuple[Event, ...]
    last_step: int
    tokens: int
    training_s: float
    skipped_steps: tuple[int, ...]

    @property
    def ending(self) -> Ending:
        """How the newest attempt ended."""
        return self.attempts[-1].ending

    @property
    def redone_steps(self) -> int:
        """Steps taken more than once, or taken and taken back."""
        return sum(attempt.redone_steps for attempt in self.attempts)

    @property
    def redone_s(self) -> float:
        """Seconds spent in steps that were taken back."""
        return sum(attempt.redone_s for attempt in self.attempts)

    @property
    def duration_s(self) -> float:
        """Seconds that attempts lasted, without the time between them."""
        return sum(attempt.ended_s - attempt.started_s for attempt in self.attempts)


def joined_steps(events: Iterable[Event]) -> list[Event]:
    """One step event per step number, as the run's newest state has lived it.

    The newest attempt wins where attempts overlap, and what an older attempt did after the cursor
    that a newer one restored is left out. An attempt that took steps without restoring anything
    started the run afresh.

    Args:
        events: Events of any attempts; within an attempt in the order they were recorded.
    """
    return _joined(in_order(events), EventKind.step)


def in_order(events: Iterable[Event]) -> list[Event]:
    """Attempts in order, and what was told late beside what it belongs to, unless that is there.

    Args:
        events: Events of any attempts; within an attempt in the order they were recorded.
    """
    ordered = sorted(events, key=lambda event: event.attempt)
    if not any("late" in event.fields for event in ordered):
        return ordered
    told = {_identity(event) for event in ordered if "late" not in event.fields}
    kept: list[Event] = []
    for event in ordered:
        identity = _identity(event)
        if "late" in event.fields and identity in told:
            continue
        told.add(identity)
        kept.append(event)
    return kept


def steps_taken(event: Event) -> int:
    """Steps the run has taken or skipped as of `event`, which has a `step`.

    An event of a step holds the number of that step, and the first one has number 0; every other
    kind holds the step of the cursor, which is a count already.
    """
    return int(event.fields["step"]) + (event.kind in STEPS)


def make_run_report(events: Iterable[Event]) -> RunReport | None:
    """Add up the events of a run; None if there are none.

    Args:
        events: As for `joined_steps`.
    """
    ordered = in_order(events)
    if not ordered:
        return None
    steps = _joined(ordered, EventKind.step)
    kept = {(event.attempt, event.fields["step"]) for event in steps}
    by_attempt = groupby(ordered, key=lambda event: event.attempt)
    attempts = tuple(_attempt_report(list(group), kept) for _, group in by_attempt)
    weights = _steps_told(steps, 0)
    return RunReport(
        attempts=attempts,
        steps=tuple(steps),
        evaluations=tuple(_joined(ordered, EventKind.evaluated)),
        saved=tuple(_of_kind(ordered, EventKind.checkpoint_saved)),
        failed_saves=tuple(_of_kind(ordered, EventKind.checkpoint_failed)),
        near=tuple(_of_kind(ordered, EventKind.near_kept)),
        near_refused=tuple(_of_kind(ordered, EventKind.near_refused)),
        restored=tuple(_of_kind(ordered, EventKind.restored)),
        refused=tuple(_of_kind(ordered, EventKind.checkpoint_refused)),
        rejoined=tuple(_of_kind(ordered, EventKind.rejoined)),
        signs=tuple(_of_kind(ordered, EventKind.notice, EventKind.straggler, EventKind.hung)),
        last_step=max(attempts[-1].to_step, steps_taken(steps[-1]) if steps else 0),
        tokens=round(_total(steps, "tokens", weights)),
        training_s=_total(steps, "seconds", weights),
        skipped_steps=tuple(
            int(event.fields["step"]) for event in steps if event.fields.get("applied") is False
        ),
    )


def _attempt_report(events: Sequence[Event], kept: set[tuple[int, int]]) -> AttemptReport:
    last_words = [event for event in events if event.kind in _LAST_WORDS]
    ending = _LAST_WORDS[last_words[-1].kind] if last_words else Ending.cut
    last = last_words[-1].fields if last_words else {}
    started = next(_of_kind(events, EventKind.attempt_started), None)
    restored = next(filter(_has_step, _of_kind(events, EventKind.restored)), None)
    from_step = steps_taken(restored) if restored else 0
    steps = [event for event in _of_kind(events, EventKind.step) if _has_step(event)]
    weights = _steps_told(steps, from_step)
    redone = [
        0 if (event.attempt, event.fields["step"]) in kept else weight
        for event, weight in zip(steps, weights, strict=True)
    ]
    seconds = _total(steps, "seconds", weights)
    reached = [steps_taken(event) for event in events if _has_step(event)]
    return AttemptReport(
        attempt=events[0].attempt,
        started_s=events[0].at_s,
        ended_s=max(event.at_s for event in events),
        fields=dict(started.fields) if started else {},
        from_step=from_step,
        source=str(restored.fields.get("source", "storage")) if restored else "",
        to_step=max(reached, default=0),
        ending=ending,
        error=str(last.get("error", "")),
        traceback=str(last.get("traceback", "")),
        tokens_per_s=_total(steps, "tokens", weights) / seconds if seconds > 0 else 0.0,
        redone_steps=sum(redone),
        redone_s=_total(steps, "seconds", redone),
        steps_s=(steps[0].at_s - _total(steps[:1], "seconds", [1]), steps[-1].at_s)
        if steps
        else None,
    )


def _identity(event: Event) -> tuple[int, EventKind, int | None]:
    return event.attempt, event.kind, event.fields["step"] if _has_step(event) else None


def _joined(events: Iterable[Event], kind: EventKind) -> list[Event]:
    kept: dict[int, Event] = {}
    rooted = 0
    for event in events:
        if not _has_step(event):
            continue
        if event.kind is EventKind.restored:
            kept = {number: old for number, old in kept.items() if not _is_after(old, event)}
            rooted = event.attempt
        elif event.kind in STEPS and event.attempt > rooted:
            kept = {number: old for number, old in kept.items() if old.attempt == event.attempt}
            rooted = event.attempt
        if event.kind is kind:
            kept[event.fields["step"]] = event
    return [kept[step] for step in sorted(kept)]


def _is_after(event: Event, restored: Event) -> bool:
    """Whether `event` tells of a state beyond the one that was restored."""
    samples = event.fields.get("samples"), restored.fields.get("samples")
    if event.kind is EventKind.step and all(isinstance(count, int) for count in samples):
        return event.fields["samples"] > restored.fields["samples"]
    return steps_taken(event) > restored.fields["step"]


def _has_step(event: Event) -> bool:
    return isinstance(event.fields.get("step"), int)


def _of_kind(events: Iterable[Event], *kinds: EventKind) -> Iterator[Event]:
    return (event for event in events if event.kind in kinds)


def _steps_told(steps: Sequence[Event], base: int) -> list[int]:
    """How many steps each event stands for: those since the one before, at least one."""
    taken = [base, *(steps_taken(event) for event in steps)]
    return [max(1, after - before) for before, after in pairwise(taken)]


def _total(steps: Sequence[Event], field: str, weights: Sequence[int]) -> float:
    values = (number(event.fields, field) for event in steps)
    weighed = zip(values, weights, strict=True)
    return sum(value * weight for value, weight in weighed if math.isfinite(value))
