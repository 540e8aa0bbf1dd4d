"""The tail of a run's history: what its processes remember and no log may tell.

Rank 0 alone writes the log, and what it had not written dies with it. But every rank knows the
values of every step. So each process remembers its newest ones, and when a new group forms, its
first rank writes down what the old one could not.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, groupby
from pathlib import Path
from typing import Any, Protocol

from tidemill.errors import StorageError
from tidemill.report.codec import decode_events, encode_fields, encode_line
from tidemill.report.ledger import STEPS, steps_taken
from tidemill.report.sinks import find_logs
from tidemill.spec.progress import Event, EventKind, Recorder
from tidemill.storage import Location, read_bytes

MOST_REMEMBERED = 8192
END_BYTES = 2**16
HISTORY = STEPS | {EventKind.restored, EventKind.evaluated}
"""What a history is made of, beside the start of each attempt."""

Place = tuple[int, int]
"""Of an event of the history within its attempt, where every rank records the same ones."""

logger = logging.getLogger(__name__)


class Tail:
    """Remembers the newest events of a history; one per process, outlives attempts."""

    def __init__(self) -> None:
        self._events: deque[Event] = deque(maxlen=MOST_REMEMBERED)

    def note(self, event: Event) -> None:
        """Remember what happened, if it is part of the history."""
        if is_history(event):
            self._events.append(event)

    def offer(self, told: Told, attempt: int) -> list[str]:
        """What is remembered of attempts before this one and not told: lines of a log, in order."""
        return [
            encode_line(event.kind, event.at_s, event.attempt, encode_fields(event.fields))
            for event in self._events
            if event.attempt < attempt and not told.has(event)
        ]


class Told:
    """How far the logs of a run tell its history.

    Within an attempt, lines are written in order, and those told late before its own. So once an
    attempt has told of a step of its own, there is nothing more to say of those before it.

    Args:
        since: The newest attempt that told of a step itself; 0 if none did.
        places: Of the newest event of each attempt that was found in a log.
    """

    def __init__(self, since: int = 0, places: dict[int, Place] | None = None) -> None:
        self.since = since
        self.places = places or {}

    def add(self, event: Event) -> None:
        """Take note of an event that is in a log."""
        if is_history(event):
            place = place_of(event)
            self.places[event.attempt] = max(place, self.places.get(event.attempt, place))

    def has(self, event: Event) -> bool:
        """Whether the logs have it."""
        newest = self.places.get(event.attempt)
        return event.attempt < self.since or (newest is not None and place_of(event) <= newest)


class Remembering:
    """A recorder that also fills the tail; that of every rank.

    Args:
        tail: Of this process.
        attempt: Number of this attempt.
        recorder: Takes every event, on rank 0.
    """

    def __init__(self, tail: Tail, attempt: int, recorder: Recorder | None = None) -> None:
        self._tail = tail
        self._attempt = attempt
        self._recorder = recorder

    def record(self, kind: EventKind, **fields: Any) -> None:
        """See `Recorder.record`."""
        self._tail.note(Event(kind=kind, at_s=time.time(), attempt=self._attempt, fields=fields))
        if self._recorder is not None:
            self._recorder.record(kind, **fields)

    def flush(self) -> None:
        """See `Recorder.flush`."""
        if self._recorder is not None:
            self._recorder.flush()


class Scribe(Protocol):
    """Writes the log of an attempt; an `EventLog`."""

    def told(self) -> Told:
        """How far the logs of the run tell its history."""
        ...

    def tell_late(self, event: Event) -> None:
        """Write down what happened before."""
        ...


def catch_up(
    tail: Tail, attempt: int, log: Scribe | None, gather: Callable[[Any], Sequence[Any]]
) -> None:
    """Write down what some rank remembers and no log tells. Collective, before a state is restored.

    From then on every rank remembers it, also one that was not there: it may be the only one left
    when the first rank is lost before it has written anything.

    Args:
        tail: Of this process.
        attempt: Number of this attempt.
        log: Of this attempt, on rank 0; None on the others.
        gather: Gives every rank the JSON values of all ranks, by rank.
    """
    seen = log.told() if log is not None else Told()
    since, places = gather([seen.since, [[one, *at] for one, at in seen.places.items()]])[0]
    told = Told(since, {one: (taken, then) for one, taken, then in places})
    mine = tail.offer(told, attempt)
    known = merge([mine])
    for where, event in merge(gather(mine)).items():
        if where not in known:
            tail.note(event)
        if log is not None:
            log.tell_late(event)


def merge(offered: Iterable[Iterable[str]]) -> dict[tuple[int, Place], Event]:
    """What ranks offer, each event once, by attempt and place, in the order of these."""
    found: dict[tuple[int, Place], Event] = {}
    for event in decode_events("".join(chain(*offered)).encode()):
        found.setdefault((event.attempt, place_of(event)), event)
    return dict(sorted(found.items()))


def is_history(event: Event) -> bool:
    """Whether an event is part of the history."""
    if event.kind in HISTORY:
        return isinstance(event.fields.get("step"), int)
    return event.kind is EventKind.attempt_started


def place_of(event: Event) -> Place:
    """Where an event of the history stands within its attempt."""
    if event.kind is EventKind.attempt_started:
        return -1, 0
    return steps_taken(event), int(event.kind is EventKind.evaluated)


def see_how_far(logs: Iterable[tuple[int, Iterable[list[Event]]]]) -> Told:
    """How far logs tell, read from their ends.

    Args:
        logs: Attempts, the newest first, and what there is to read of the log of each, its end
            first. No more is read than is needed.
    """
    told = Told()
    for attempt, ends in logs:
        for events in ends:
            for event in events:
                told.add(event)
            if any(event.kind in STEPS and event.attempt == attempt for event in events):
                told.since = attempt
                return told
    return told


def read_told(events: Location) -> Told:
    """How far the logs in a directory tell.

    Storage that cannot be read tells nothing; that costs lines told twice, which do no harm.
    """
    try:
        logs = reversed([(attempt, place) for attempt, _, place in find_logs(events)])
        attempts = groupby(logs, key=lambda log: log[0])
        return see_how_far(
            (attempt, _ends([place for _, place in group])) for attempt, group in attempts
        )
    except StorageError as error:
        logger.warning("some of %s may be told twice: %s", events, error)
        return Told()


def _ends(places: Sequence[Location]) -> Iterator[list[Event]]:
    """The segments of a log, the newest first; of a local file, ever more of its end."""
    if not places[0].is_local:
        for place in places:
            yield decode_events(read_bytes(place))
        return
    path, size = Path(places[0].path), END_BYTES
    try:
        with path.open("rb") as file:
            length = start = file.seek(0, os.SEEK_END)
            while start > 0:
                start = max(0, length - size)
                file.seek(start)
                end = file.read(length - start)
                yield decode_events(end[end.find(b"\n") + 1 :] if start else end)
                size *= 4
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error}") from error
