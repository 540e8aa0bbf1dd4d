"""Attempts join into one curve, and what was taken back is accounted for."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest

from tests.report.histories import SAMPLES, TOKENS, History
from tidemill.report.events import joined_steps
from tidemill.report.ledger import Ending, RunReport, in_order, make_run_report
from tidemill.spec.progress import Event, EventKind


def origins(events: list[Event]) -> list[tuple[int, int]]:
    """(step, attempt) along the joined curve."""
    return [(event.fields["step"], event.attempt) for event in joined_steps(events)]


def report_of(history: History) -> RunReport:
    report = make_run_report(history.events)
    assert report is not None
    return report


def test_the_newest_attempt_wins() -> None:
    history = History()
    history.start()
    history.steps(0, 7)
    history.start(restored=5)
    history.steps(5, 9)
    assert origins(history.events) == [(n, 1) for n in range(5)] + [(n, 2) for n in range(5, 10)]


def test_restoring_takes_back_steps_before_they_are_taken_again() -> None:
    history = History()
    history.start()
    history.steps(0, 7)
    history.start(restored=5)
    assert origins(history.events) == [(n, 1) for n in range(5)]
    history.steps(5, 5)
    assert origins(history.events) == [*((n, 1) for n in range(5)), (5, 2)]


def test_restoring_an_older_checkpoint_takes_back_more_than_one_attempt() -> None:
    history = History()
    history.start()
    history.steps(0, 4)
    history.start(restored=4)
    history.steps(4, 8)
    history.start(restored=2)
    history.steps(2, 2)
    assert origins(history.events) == [(0, 1), (1, 1), (2, 3)]


def test_steps_without_a_restore_start_the_run_afresh() -> None:
    history = History()
    history.start()
    history.steps(0, 7)
    history.start()
    assert len(joined_steps(history.events)) == 8
    history.steps(0, 1)
    assert origins(history.events) == [(0, 2), (1, 2)]


def test_an_attempt_that_failed_on_its_way_up_takes_back_nothing() -> None:
    history = History()
    history.start()
    history.steps(0, 3)
    history.start()
    history.add(EventKind.failed, rank=0, error="no port")
    assert len(joined_steps(history.events)) == 4
    assert report_of(history).last_step == 4


def test_a_late_event_of_an_older_attempt_is_still_an_older_attempts() -> None:
    history = History()
    history.start()
    history.steps(0, 7)
    late = history.events.pop()
    history.start(restored=5)
    history.steps(5, 6)
    late = replace(late, at_s=history.now_s + 1)
    events = [*history.events, late]
    assert origins(events)[-1] == (6, 2)
    report = make_run_report(events)
    assert report is not None
    assert [attempt.attempt for attempt in report.attempts] == [1, 2]


def test_sparse_steps_join_where_they_are() -> None:
    history = History()
    history.start()
    for step in (0, 10, 20, 30):
        history.step(step)
    history.start(restored=25)
    history.step(30)
    history.step(31)
    assert origins(history.events) == [(0, 1), (10, 1), (20, 1), (30, 2), (31, 2)]


def test_events_without_a_step_do_no_harm() -> None:
    history = History()
    history.start()
    history.add(EventKind.step, loss=1.0)
    history.add(EventKind.restored)
    history.steps(0, 1)
    assert origins(history.events) == [(0, 1), (1, 1)]
    assert report_of(history).last_step == 2


@pytest.mark.parametrize("seed", range(20))
def test_the_curve_is_what_the_newest_state_lived(seed: int) -> None:
    """Against a run that keeps, for each step of its state, the attempt that took it."""
    rng = random.Random(seed)
    history = History()
    lived: list[int] = []
    for attempt in range(1, 8):
        base = rng.randint(0, len(lived))
        history.start(restored=base or None)
        steps = rng.randint(1, 9)
        history.steps(base, base + steps - 1)
        lived = lived[:base] + [attempt] * steps
    assert origins(history.events) == list(enumerate(lived))


def test_the_account_of_a_run() -> None:
    history = History()
    history.start(world=4)
    history.steps(0, 7, seconds=0.5)
    history.evaluate(8)
    history.start(world=2, restored=5)
    history.step(5, applied=False)
    history.steps(6, 9, seconds=0.25)
    history.evaluate(10)
    history.finish(10)
    report = report_of(history)
    first, second = report.attempts
    assert (first.ending, second.ending, report.ending) == (
        Ending.cut,
        Ending.finished,
        Ending.finished,
    )
    assert (first.from_step, first.to_step) == (0, 8)
    assert (second.from_step, second.to_step) == (5, 10)
    assert (report.redone_steps, report.redone_s) == (3, 1.5)
    assert (second.redone_steps, second.redone_s) == (0, 0)
    assert report.tokens == 10 * TOKENS
    assert report.training_s == 6 * 0.5 + 4 * 0.25
    assert report.skipped_steps == (5,)
    assert [event.fields["step"] for event in report.evaluations] == [10]
    assert first.tokens_per_s == TOKENS / 0.5
    assert report.duration_s == 4.0 + 1.5


def test_a_recorded_step_stands_for_those_since_the_one_before() -> None:
    history = History()
    history.start()
    for step in (0, 10, 20):
        history.step(step, seconds=0.5)
    history.start(restored=15)
    for step in (20, 24):
        history.step(step, seconds=0.5)
    report = report_of(history)
    assert report.tokens == 25 * TOKENS
    assert report.redone_steps == 10
    assert report.last_step == 25


def test_checkpoints_are_accounted_for_by_what_became_of_them() -> None:
    history = History()
    history.start()
    history.steps(0, 9)
    history.save(10)
    history.fail_save(10)
    history.keep_near(10)
    history.add(EventKind.near_refused, step=10, reason="full")
    history.add(EventKind.checkpoint_refused, name="step-9", reason="torn")
    history.start(restored=10, source="near")
    history.start(restored=10)
    report = report_of(history)
    kinds = {
        "saved": EventKind.checkpoint_saved,
        "failed_saves": EventKind.checkpoint_failed,
        "near": EventKind.near_kept,
        "near_refused": EventKind.near_refused,
        "refused": EventKind.checkpoint_refused,
    }
    for name, kind in kinds.items():
        assert [event.kind for event in getattr(report, name)] == [kind]
    assert [event.attempt for event in report.restored] == [2, 3]
    assert [attempt.source for attempt in report.attempts] == ["", "near", "storage"]


def test_no_events_no_account() -> None:
    assert make_run_report([]) is None


def test_validations_join_as_steps_do_where_samples_are_not_told() -> None:
    history = History()
    history.start()
    for step in range(8):
        history.step(step, samples=None)
        history.evaluate(step + 1)
    history.start()
    history.add(EventKind.restored, step=5)
    assert origins(history.events) == [(n, 1) for n in range(5)]
    found = [event.fields["step"] for event in report_of(history).evaluations]
    assert found == [1, 2, 3, 4, 5]


def test_the_last_word_is_the_last() -> None:
    history = History()
    history.start()
    history.steps(0, 2)
    history.add(EventKind.stopped, step=3)
    history.add(EventKind.failed, rank=1, error="no more room", traceback="at last")
    report = report_of(history)
    (attempt,) = report.attempts
    assert (report.ending, attempt.error, attempt.traceback) == (
        Ending.failed,
        "no more room",
        "at last",
    )


def test_a_step_that_does_not_say_whether_it_was_applied_was_not_skipped() -> None:
    history = History()
    history.start()
    history.add(EventKind.step, step=0)
    history.step(1, applied=None)
    history.step(2, applied=False)
    assert report_of(history).skipped_steps == (2,)


@pytest.mark.parametrize("odd", [math.nan, math.inf, None, "many"])
def test_an_odd_amount_counts_for_nothing(odd: object) -> None:
    history = History()
    history.start()
    history.steps(0, 2, seconds=0.5)
    history.step(3, seconds=0.5, tokens=odd)
    history.events[-1].fields["seconds"] = odd
    report = report_of(history)
    assert (report.tokens, report.training_s) == (3 * TOKENS, 1.5)


def test_steps_that_are_not_told_in_full_are_steps_nevertheless() -> None:
    history = History()
    history.start()
    for step in range(12):
        if step % 10:
            history.add(EventKind.used, step=step, samples=(step + 1) * SAMPLES)
        else:
            history.step(step)
    report = report_of(history)
    assert [event.fields["step"] for event in report.steps] == [0, 10]
    assert (report.last_step, report.attempts[0].to_step) == (12, 12)
    history.start()
    history.add(EventKind.used, step=0)
    assert report_of(history).steps == ()  # it began afresh


def test_a_group_that_ended_by_agreement_was_not_killed() -> None:
    history = History()
    history.start()
    history.steps(0, 3)
    history.add(EventKind.resizing, step=4, cause="grow")
    history.start(restored=4, source="memory")
    history.steps(4, 5)
    history.rejoin(5)
    history.add(EventKind.straggler, rank=1)
    report = report_of(history)
    assert [attempt.ending for attempt in report.attempts] == [Ending.resized, Ending.cut]
    assert [event.attempt for event in report.rejoined] == [2]
    assert [event.kind for event in report.signs] == [EventKind.straggler]


def test_what_is_told_late_belongs_to_its_own_attempt_and_counts_once() -> None:
    history = History()
    history.start()
    history.steps(0, 5)
    late = [replace(event, fields=event.fields | {"late": 2}) for event in history.events[-3:]]
    del history.events[-2:]
    history.start(restored=6)
    events = [*history.events[:-1], *late, history.events[-1]]
    assert [(e.attempt, e.kind.value, e.fields.get("step")) for e in in_order(events)] == [
        (1, "attempt_started", None),
        *((1, "step", step) for step in range(6)),
        (2, "attempt_started", None),
        (2, "restored", 6),
    ]
    report = make_run_report(events)
    assert report is not None
    assert (report.tokens, report.attempts[0].to_step) == (6 * TOKENS, 6)
    assert report.attempts[0].ended_s == late[-1].at_s


@pytest.mark.parametrize("odd", [None, [], {}, "x"])
def test_odd_events_that_are_told_late_do_no_harm(odd: object) -> None:
    history = History()
    history.start()
    history.add(EventKind.step, step=odd, late=odd)
    history.add(EventKind.step, step=odd)
    assert len(in_order(history.events)) == 2
