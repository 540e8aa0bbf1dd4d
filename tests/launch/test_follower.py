"""A launch is followed from attempt to attempt, nothing lost and nothing told twice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from tests.launch.runs import CORPUS, run_of, text_run
from tidemill.errors import DataError, StorageError, TrainingError
from tidemill.launch import follower
from tidemill.launch.follower import Follower
from tidemill.launch.preflight import Preflight, Start
from tidemill.report.events import EventLog, EventTail, next_attempt, read_events
from tidemill.report.live import LiveView
from tidemill.spec.progress import Event, EventKind

LAUNCH = 4


class View:
    """Keeps what it is shown."""

    def __init__(self) -> None:
        self.batches: list[list[Event]] = []

    def feed(self, events: list[Event]) -> None:
        self.batches += [list(events)] if events else []

    @property
    def seen(self) -> list[tuple[int, str, int]]:
        """(attempt, kind, step) of every event."""
        return [
            (event.attempt, event.kind.value, event.fields["step"])
            for batch in self.batches
            for event in batch
        ]


@pytest.fixture
def ready(tmp_path: Path) -> Preflight:
    spec = text_run(tmp_path)
    return Preflight(
        spec=spec, run=run_of(spec), corpus=CORPUS, launch=LAUNCH, start=Start.resume, step=6
    )


@pytest.fixture
def record(ready: Preflight) -> Callable[..., None]:
    """Write events of an attempt, so that they are there on return."""

    def write(attempt: int, *events: tuple[EventKind, int]) -> None:
        log = EventLog(ready.run, attempt)
        for kind, step in events:
            log.record(kind, step=step)
        log.close()

    return write


@pytest.fixture
def view() -> View:
    return View()


def feed(following: Follower, view: View) -> None:
    following.feed(cast("LiveView", view))


def test_before_the_first_event(ready: Preflight, view: View) -> None:
    following = Follower(ready)
    feed(following, view)
    following.feed(None)
    assert (following.step, following.last_step, following.finished) == (6, None, False)
    assert view.batches == []


def test_only_this_launch_is_followed(
    ready: Preflight, record: Callable[..., None], view: View
) -> None:
    record(LAUNCH - 1, (EventKind.step, 8), (EventKind.finished, 9))
    following = Follower(ready)
    feed(following, view)
    assert (view.seen, following.last_step, following.finished) == ([], None, False)


def test_a_log_is_followed_as_it_grows(
    ready: Preflight, record: Callable[..., None], view: View
) -> None:
    following = Follower(ready)
    record(LAUNCH, (EventKind.restored, 5), (EventKind.step, 5))
    feed(following, view)
    assert (following.step, following.last_step) == (5, 5)
    record(LAUNCH, (EventKind.step, 6), (EventKind.checkpoint_saved, 7), (EventKind.step, 7))
    feed(following, view)
    feed(following, view)
    assert (following.step, following.last_step) == (7, 7)
    assert not following.finished
    assert [len(batch) for batch in view.batches] == [2, 3]


def test_storage_that_fails_for_a_moment_costs_no_event_and_not_the_run(
    ready: Preflight,
    record: Callable[..., None],
    view: View,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    following = Follower(ready)
    record(LAUNCH, (EventKind.step, 6))
    poll = EventTail.poll

    def fail_on_the_next_attempt(tail: EventTail) -> list[Event]:
        if tail._attempt == LAUNCH + 1:
            raise StorageError("no connection")
        return poll(tail)

    monkeypatch.setattr(EventTail, "poll", fail_on_the_next_attempt)
    feed(following, view)
    assert view.seen == []
    monkeypatch.undo()
    feed(following, view)
    assert view.seen == [(LAUNCH, "step", 6)]


def test_the_end_is_remembered(ready: Preflight, record: Callable[..., None]) -> None:
    following = Follower(ready)
    ends = ((EventKind.finished, 10), (EventKind.evaluated, 10))
    record(LAUNCH, (EventKind.checkpoint_saved, 10), *ends)
    following.feed(None)
    assert (following.step, following.finished) == (10, True)
    following.feed(None)
    assert following.finished


def test_a_stop_is_no_end(ready: Preflight, record: Callable[..., None]) -> None:
    following = Follower(ready)
    record(LAUNCH, (EventKind.checkpoint_saved, 7), (EventKind.stopped, 7))
    following.feed(None)
    assert (following.step, following.finished) == (7, False)


@pytest.mark.parametrize(
    ("source", "step"), [(None, 9), ("storage", 9), ("near", 6), ("fork", 6), ("weights", 6)]
)
def test_only_what_is_in_storage_is_a_checkpoint(
    source: str | None, step: int, ready: Preflight
) -> None:
    log = EventLog(ready.run, LAUNCH)
    log.record(EventKind.restored, step=9, **({"source": source} if source else {}))
    log.record(EventKind.checkpoint_failed, step=12, reason="no space", tries=1, retry_in_s=None)
    log.record(EventKind.near_kept, step=12, nodes=2, bytes=9, seconds=0.1)
    log.close()
    following = Follower(ready)
    following.feed(None)
    assert following.step == step


def test_it_crosses_to_the_next_attempts(
    ready: Preflight, record: Callable[..., None], view: View
) -> None:
    following = Follower(ready)
    record(LAUNCH, (EventKind.step, 6))
    feed(following, view)
    record(LAUNCH, (EventKind.step, 7), (EventKind.step, 8))
    record(LAUNCH + 1, (EventKind.restored, 6), (EventKind.step, 6))
    feed(following, view)
    assert (following.step, following.last_step) == (6, 6)
    record(LAUNCH + 1, (EventKind.step, 7))
    feed(following, view)
    record(LAUNCH + 2, (EventKind.restored, 6))
    feed(following, view)
    assert view.seen == [
        (LAUNCH, "step", 6),
        (LAUNCH, "step", 7),
        (LAUNCH, "step", 8),
        (LAUNCH + 1, "restored", 6),
        (LAUNCH + 1, "step", 6),
        (LAUNCH + 1, "step", 7),
        (LAUNCH + 2, "restored", 6),
    ]


def test_last_words_that_come_between_two_looks_are_not_lost(
    ready: Preflight,
    record: Callable[..., None],
    view: View,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    late = [(EventKind.step, 7)]

    class Tail(EventTail):
        """Just before the next attempt is looked at, the one before it says its last."""

        def __init__(self, run: Any, attempt: int) -> None:
            super().__init__(run, attempt)
            self.attempt = attempt

        def poll(self) -> list[Event]:
            if self.attempt == LAUNCH + 1 and late:
                record(LAUNCH, late.pop())
                record(LAUNCH + 1, (EventKind.restored, 6))
            return super().poll()

    monkeypatch.setattr(follower, "EventTail", Tail)
    following = Follower(ready)
    record(LAUNCH, (EventKind.step, 6))
    feed(following, view)
    feed(following, view)
    assert view.seen == [
        (LAUNCH, "step", 6),
        (LAUNCH, "step", 7),
        (LAUNCH + 1, "restored", 6),
    ]


# --- failures --------------------------------------------------------------------------------


def test_what_a_worker_says_of_a_failure_is_left_to_the_driver(
    ready: Preflight, record: Callable[..., None], view: View
) -> None:
    following = Follower(ready)
    record(LAUNCH, (EventKind.step, 6), (EventKind.failed, 7), (EventKind.step, 7))
    feed(following, view)
    assert view.seen == [(LAUNCH, "step", 6), (LAUNCH, "step", 7)]


def test_a_failure_goes_to_the_log_of_its_attempt(
    ready: Preflight, record: Callable[..., None]
) -> None:
    following = Follower(ready)
    record(LAUNCH, (EventKind.step, 6))
    record(LAUNCH + 1, (EventKind.step, 6))
    following.feed(None)
    following.note_failure(TrainingError("rank 1 failed: ValueError: dry", "Traceback: ...", 1))
    record(LAUNCH + 2, (EventKind.restored, 6))
    following.feed(None)
    following.note_failure(DataError("the packed corpus is gone"))
    failed = [event for event in read_events(ready.run) if event.kind is EventKind.failed]
    dry = {"rank": 1, "error": "ValueError: dry", "traceback": "Traceback: ...", "goes_on": False}
    gone = {"rank": None, "error": "the packed corpus is gone", "traceback": "", "goes_on": False}
    assert [(event.attempt, event.fields) for event in failed] == [
        (LAUNCH + 1, dry),
        (LAUNCH + 2, gone),
    ]


def test_after_a_failure_without_an_event_the_next_attempt_is_followed(
    ready: Preflight, record: Callable[..., None], view: View
) -> None:
    following = Follower(ready)
    following.note_failure(TrainingError("Ray could not run the workers"))
    assert next_attempt(ready.run) == LAUNCH + 1
    record(LAUNCH + 1, (EventKind.step, 0))
    feed(following, view)
    feed(following, view)
    assert view.seen == [(LAUNCH + 1, "step", 0)]
