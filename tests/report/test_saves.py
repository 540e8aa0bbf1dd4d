"""The account of checkpoints: what was lost and why, what they cost, what they were good for."""

from __future__ import annotations

import math

import pytest

from tests.report.histories import NO_SPACE, History
from tidemill.report.ledger import make_run_report
from tidemill.report.saves import name_steps, quote, tell_saves
from tidemill.spec.progress import EventKind


def tell(history: History) -> list[str]:
    report = make_run_report(history.events)
    assert report is not None
    return list(tell_saves(report))


def started() -> History:
    history = History()
    history.start()
    return history


def test_nothing_is_said_of_nothing() -> None:
    history = started()
    history.steps(0, 3)
    assert tell(history) == []


def test_what_was_saved_and_what_it_cost() -> None:
    history = started()
    for step, stall_s in ((100, 0.002), (200, 0.03), (300, 0.01)):
        history.steps(step - 100, step - 1, seconds=0.5)
        history.save(step, stall_s=stall_s)
    newest = "`step-0000000300-a0001` (3.00 MiB in 0.2s, training stopped 10 ms)"
    assert tell(history) == [
        f"3 saved, 9.00 MiB in all; newest {newest}",
        "training stopped 42 ms for them, 30 ms at most; 0.03% of the time spent in steps",
    ]


def test_logs_that_tell_no_stall_are_of_versions_that_stopped_for_all_of_it() -> None:
    history = started()
    history.steps(0, 9, seconds=0.5)
    history.save(5)
    history.save(10)
    assert tell(history)[1] == (
        "training stopped 0.5s for them, 0.2s at most; 10.00% of the time spent in steps"
    )


def test_a_share_that_is_next_to_nothing_is_not_rounded_to_it() -> None:
    history = started()
    history.steps(0, 9, seconds=100)
    history.save(10, stall_s=0.002)
    assert tell(history)[1].endswith("; less than 0.01% of the time spent in steps")


def test_without_steps_there_is_no_share() -> None:
    history = started()
    history.save(0, stall_s=0.002)
    assert tell(history)[1] == "training stopped 2 ms for them, 2 ms at most"


def test_lost_checkpoints_come_first_and_reasons_are_counted() -> None:
    history = started()
    history.save(100)
    for step in (200, 300, 400):
        for tries in (1, 2):
            history.fail_save(step, tries=tries, retry_in_s=None if tries == 2 else 0.5)
    history.fail_save(500, "s3://b: no | `connection`")
    history.save(500)
    lost, space, connection, *_ = tell(history)
    assert lost == "**3 checkpoints lost**, of step 200, 300, 400"
    assert space == f"6 failed tries: `{NO_SPACE.format(step=400)}`"
    assert connection == "1 failed try: `s3://b: no \\| 'connection'`"


def test_a_later_try_makes_a_failure_good_in_its_own_attempt_only() -> None:
    history = started()
    history.fail_save(100)
    history.save(100)
    assert tell(history)[0].startswith("1 failed try: ")
    history.fail_save(200)
    history.start(restored=100)
    history.save(200)
    assert tell(history)[0] == "**1 checkpoint lost**, of step 200"


def test_near_copies() -> None:
    history = started()
    for step in (20, 40):
        history.keep_near(step)
        history.add(EventKind.near_refused, step=step + 10, reason=f"{step} GiB is too much")
    assert tell(history) == [
        "2 near copies; newest of step 40 on 2 nodes (3.00 MiB in 50 ms)",
        "2 near copies refused: `40 GiB is too much`",
    ]


def test_where_attempts_were_restored_from() -> None:
    history = started()
    for source in ("fork", "near", None, "storage", "near", "memory", "to|morrow"):
        history.start(restored=5, source=source)
    (line,) = tell(history)
    *told, unknown = line.split(", ")
    assert told == [
        "7 attempts restored: 1 from another run",
        "2 from near memory",
        "2 from storage",
        "1 from the memory of workers",
    ]
    assert unknown == "1 `to\\|morrow`"


def test_odd_fields_break_nothing() -> None:
    history = started()
    kinds = (
        EventKind.checkpoint_saved,
        EventKind.checkpoint_failed,
        EventKind.near_kept,
        EventKind.near_refused,
        EventKind.restored,
    )
    for kind in kinds:
        history.add(kind)
        for odd in (None, "x", [], {}, -math.inf, True):
            names = ("step", "bytes", "seconds", "stall_s", "nodes", "name", "reason", "source")
            history.add(kind, **dict.fromkeys(names, odd))
    assert all("\n" not in line for line in tell(history))


@pytest.mark.parametrize(("count", "last"), [(1, "0"), (20, "19"), (21, "…"), (500, "…")])
def test_not_all_of_many_steps_are_named(count: int, last: str) -> None:
    named = name_steps(range(count)).split(", ")
    assert (len(named), named[-1]) == (min(count, 21), last)


def test_what_is_quoted_is_no_markdown() -> None:
    assert quote("a|b\n`c`") == "`a\\|b 'c'`"
