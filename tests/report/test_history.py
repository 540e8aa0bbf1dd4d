"""The history is joined as the curve is, every doubt is kept, and nothing is told twice."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tests.report.histories import SAMPLES, History
from tidemill.report.events import joined_steps
from tidemill.report.history import UNTOLD, make_history
from tidemill.spec.progress import Cursor, Event, EventKind


def lived(history: History) -> list[tuple[int, int]]:
    """(step, attempt) along the history."""
    made = make_history(history.events)
    return list(zip(made.steps, made.attempts, strict=True))


def started(last: int = 7) -> History:
    history = History()
    history.start()
    history.steps(0, last)
    return history


def test_a_restore_takes_back_what_came_after_it() -> None:
    history = started()
    history.start(restored=5)
    history.steps(5, 6)
    assert lived(history) == [*((n, 1) for n in range(5)), (5, 2), (6, 2)]
    made = make_history(history.events)
    assert (made.taken_back, made.newest, made.reached) == (3, 2, 7)
    assert made.restores == [(2, 5, 5 * SAMPLES)]


def test_steps_without_a_restore_begin_afresh() -> None:
    history = started()
    history.start(restored=3)
    history.start()
    assert len(lived(history)) == 3
    history.steps(0, 1)
    assert lived(history) == [(0, 3), (1, 3)]
    assert make_history(history.events).restores == []


@pytest.mark.parametrize("seed", range(20))
def test_it_is_joined_as_the_curve_is(seed: int) -> None:
    rng = random.Random(seed)
    history, reached = History(), 0
    for _ in range(7):
        base = rng.randint(0, reached)
        history.start(restored=base or None)
        reached = base + rng.randint(1, 9)
        history.steps(base, reached - 1)
    curve = [(event.fields["step"], event.attempt) for event in joined_steps(history.events)]
    assert lived(history) == curve


@pytest.mark.parametrize("kind", [EventKind.step, EventKind.used])
def test_each_step_brings_what_it_used(kind: EventKind) -> None:
    history = History()
    history.start()
    history.add(kind, step=0, samples=8, count=8, digest="ffffffffffffffff")
    history.add(kind, step=1, samples=16, count=8, digest="0")
    made = make_history(history.events)
    assert (list(made.samples), list(made.counts)) == ([8, 16], [8, 8])
    assert list(made.digests) == [2**64 - 1, 0]


@pytest.mark.parametrize(
    "odd",
    [
        {"count": None},
        {"count": "8"},
        {"count": -1},
        {"count": 2**70},
        {"digest": None},
        {"digest": "x"},
        {"digest": "-1"},
        {"digest": "1" * 17},
        {"digest": 5},
        {"samples": None},
    ],
)
def test_what_does_not_tell_its_samples_is_untold(odd: dict[str, Any]) -> None:
    history = History()
    history.start()
    fields = {"step": 0, "samples": 8, "count": 8, "digest": "00000000000000ff"}
    history.add(EventKind.step, **(fields | odd))
    made = make_history(history.events)
    assert (list(made.steps), list(made.counts)) == ([0], [UNTOLD])


@pytest.mark.parametrize("odd", [None, "x", -1, 1.5, 2**70, []])
def test_events_without_a_step_do_no_harm(odd: object) -> None:
    history = started(1)
    for kind in EventKind:
        history.add(kind, step=odd)
    assert lived(history) == [(0, 1), (1, 1)]


def test_a_step_that_is_taken_again_without_a_restore_is_kept_as_a_doubt() -> None:
    history = started(5)
    history.step(3)
    history.step(6)
    made = make_history(history.events)
    assert list(made.steps) == [*range(7)]
    assert [(flaw.first, flaw.last, flaw.attempt) for flaw in made.repeats] == [(3, 3, 1)]


def late(history: History, kind: EventKind, attempt: int, **fields: Any) -> None:
    """Tell in the newest attempt's log what happened in another."""
    event = Event(kind=kind, at_s=0.0, attempt=attempt, fields=fields | {"late": history.attempt})
    history.events.append(event)


def test_what_is_told_late_closes_the_gap_that_was_left() -> None:
    history = started(5)
    history.attempt += 1
    late(history, EventKind.step, 1, step=6, samples=56)
    late(history, EventKind.evaluated, 1, step=7)
    history.add(EventKind.restored, step=7, samples=56)
    history.steps(7, 8)
    assert lived(history) == [*((n, 1) for n in range(7)), (7, 2), (8, 2)]


def test_what_is_told_late_and_was_told_before_changes_nothing() -> None:
    history = started(5)
    history.start(restored=6)
    history.steps(6, 7)
    expected = lived(history)
    history.attempt += 1
    for step in (4, 5):
        late(history, EventKind.step, 1, step=step)
    late(history, EventKind.restored, 2, step=6, samples=6 * SAMPLES)
    for step in (6, 7):
        late(history, EventKind.step, 2, step=step)
    assert lived(history) == expected
    assert make_history(history.events).repeats == []


def test_an_attempt_whose_own_log_is_gone_is_told_late_with_what_it_restored() -> None:
    history = started(7)
    history.attempt += 2
    late(history, EventKind.attempt_started, 2)
    late(history, EventKind.restored, 2, step=5, samples=5 * SAMPLES)
    late(history, EventKind.step, 2, step=5, samples=6 * SAMPLES)
    history.add(EventKind.restored, step=6, samples=6 * SAMPLES)
    history.steps(6, 6)
    assert lived(history) == [*((n, 1) for n in range(5)), (5, 2), (6, 3)]


def test_what_is_told_late_of_a_step_that_was_taken_back_stays_taken_back() -> None:
    history = started(5)
    history.start(restored=4)
    late(history, EventKind.step, 1, step=6)
    history.steps(4, 4)
    assert lived(history) == [*((n, 1) for n in range(4)), (4, 2)]


@pytest.mark.parametrize(
    ("kind", "reached"),
    [
        (EventKind.finished, 12),
        (EventKind.stopped, 12),
        (EventKind.checkpoint_saved, 12),
        (EventKind.near_kept, 12),
        (EventKind.evaluated, 12),
        (EventKind.resizing, 12),
        (EventKind.hung, 8),
        (EventKind.notice, 8),
    ],
)
def test_what_says_that_steps_were_taken_is_remembered(kind: EventKind, reached: int) -> None:
    history = started()
    history.add(kind, step=12)
    assert make_history(history.events).reached == reached
    history.start(restored=4)
    assert make_history(history.events).reached == 4


def test_a_fork_begins_where_the_other_run_was() -> None:
    history = History()
    for _ in range(2):
        history.start()
        history.add(
            EventKind.restored, step=100, samples=999, source="fork", run="base", checkpoint="c"
        )
        history.step(100, samples=1007)
    made = make_history(history.events)
    assert (made.base, made.origin) == (Cursor(step=100, samples=999), "base")
    assert (list(made.steps), list(made.attempts), made.restores) == ([100], [2], [])


def test_weights_are_a_beginning_too() -> None:
    history = History()
    history.start()
    history.add(EventKind.restored, step=0, samples=0, source="weights", checkpoint="s3://w")
    history.steps(0, 1)
    made = make_history(history.events)
    assert (made.base, made.origin, made.restores) == (Cursor(), "s3://w", [])
    assert len(made.steps) == 2
