"""What the events of a run add up to: one curve, and the account of every attempt.

A run's history is what its newest state descends from: an attempt that restores step N takes back
every step after N that earlier attempts had taken, whether or not it ever takes them again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidemill.spec.progress import Event, EventKind

if TYPE_CHECKING:
    from collections.abc import Iterable


def joined_steps(events: Iterable[Event]) -> list[Event]:
    """One step event per step number, as the run's newest state has lived it.

    The newest attempt wins where attempts overlap, and what an older attempt did after the cursor
    that a newer one restored is left out. An attempt that took steps without restoring anything
    started the run afresh.

    Args:
        events: Events of any attempts; within an attempt in the order they were recorded.
    """
    return _joined(events, EventKind.step)


def joined_evaluations(events: Iterable[Event]) -> list[Event]:
    """One `evaluated` event per step number, joined as `joined_steps` joins steps."""
    return _joined(events, EventKind.evaluated)


def _joined(events: Iterable[Event], kind: EventKind) -> list[Event]:
    kept: dict[int, Event] = {}
    rooted = 0
    for event in sorted(events, key=lambda event: event.attempt):
        step = event.fields.get("step")
        if not isinstance(step, int):
            continue
        if event.kind is EventKind.restored:
            kept = {number: old for number, old in kept.items() if number <= step}
            rooted = event.attempt
        elif event.kind is EventKind.step and event.attempt > rooted:
            kept = {number: old for number, old in kept.items() if old.attempt == event.attempt}
            rooted = event.attempt
        if event.kind is kind:
            kept[step] = event
    return [kept[step] for step in sorted(kept)]
