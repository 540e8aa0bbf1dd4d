"""A real run is accounted for from its events, and from when its machines were there."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tidemill.plan.costs import MEASURED, Stages
from tidemill.plan.goodput import Use
from tidemill.plan.observed import measure, observe, read_groups
from tidemill.plan.trace import Stay
from tidemill.spec.progress import Event, EventKind

EPOCH_S = float(2**20)  # so that halves stay exact


def at(at_s: float, attempt: int, kind: EventKind, **fields: Any) -> Event:
    return Event(kind=kind, at_s=EPOCH_S + at_s, attempt=attempt, fields=fields)


def steps(attempt: int, first: int, *moments: tuple[float, float]) -> list[Event]:
    """Steps from number `first` on, each from a moment to another."""
    return [
        at(until_s, attempt, EventKind.step, step=first + n, seconds=until_s - from_s)
        for n, (from_s, until_s) in enumerate(moments)
    ]


def stay(node: str, from_s: float, until_s: float = math.inf, notice_s: float = 0.0) -> Stay:
    return Stay(node=node, from_s=EPOCH_S + from_s, until_s=EPOCH_S + until_s, notice_s=notice_s)


# Three workers; c is killed at 9.5 s, amid the step after 4; the others take step 3 and 4 again.
# d comes at 12 s and joins them at 30 s.
KILLED = [
    at(0, 1, EventKind.attempt_started, world=3),
    *steps(1, 0, (0, 2), (2, 4), (4, 6), (6.5, 8), (8, 9)),
    at(6, 1, EventKind.checkpoint_saved, seconds=3.0, stall_s=0.5),
    at(11, 2, EventKind.attempt_started, world=2),
    *steps(2, 3, (13, 17), (17, 20), (20, 23), (23, 26)),
    at(
        17,
        2,
        EventKind.rejoined,
        cause="kill",
        detect_s=0.1,
        stop_s=0.5,
        decide_s=0.25,
        join_s=0.75,
        load_s=0.5,
        first_step_s=4.0,
    ),
    at(28, 3, EventKind.attempt_started, world=3),
    *steps(3, 7, (30, 32), (32, 34), (34, 36)),
    at(32, 3, EventKind.rejoined, cause="grow", stop_s=0.5, join_s=2.0, load_s=1.0, spawn_s=None),
]
MACHINES = [stay("a", -5), stay("b", -5), stay("c", -5, 9.5), stay("d", 12)]


def observed(events: list[Event], stays: list[Stay], until_s: float = 40.0) -> dict[str, float]:
    report = observe(
        events, stays, source="real", from_s=EPOCH_S, until_s=EPOCH_S + until_s, least=1
    )
    assert report.total_s == pytest.approx(
        sum(min(each.until_s, EPOCH_S + until_s) - max(each.from_s, EPOCH_S) for each in stays)
    )
    return {use.value: round(found, 3) for use, found in report.node_s.items() if found}


def test_every_second_of_a_real_run_has_a_name() -> None:
    assert observed(KILLED, MACHINES) == {
        # 8.5 s of three, the steps 5 and 6 of two, the last three of three
        "useful": 8.5 * 3 + 6 * 2 + 6 * 3,
        "recompute": 0.5 * 3 + 6 * 2,  # of the step that was cut off; and steps 3 and 4 again
        "detect": 1.5 * 2,  # from 9.5 s until the stages of the change begin, at 11 s
        "restart": 2 * 2 + 1 * 2 + 0.5 * 2 + 3.5 * 3,  # and the excess of step 3; and the growth
        "stall": 0.5 * 3,
        "idle": 14.5 + 4 * 3,  # d, until the growth begins; and all, after the last step
    }


def test_steps_and_changes_are_counted() -> None:
    report = observe(KILLED, MACHINES, source="real", from_s=EPOCH_S, until_s=EPOCH_S + 40, least=1)
    assert (report.steps, report.redone) == (10, 2)
    assert report.changes == {"kill": 1, "grow": 1}
    assert (report.source, report.duration_s) == ("real", 40)


def test_only_what_is_within_the_window_counts() -> None:
    report = observe(
        KILLED, MACHINES, source="real", from_s=EPOCH_S + 5, until_s=EPOCH_S + 8, least=1
    )
    assert report.node_s[Use.useful] == pytest.approx(2.5 * 3)
    assert report.node_s[Use.stall] == pytest.approx(0.5 * 3)
    assert (report.steps, report.redone, report.changes) == (2, 0, {})


def test_a_worker_that_goes_on_without_its_machine_counts_as_long_as_there_is_one() -> None:
    early = [stay("a", 0), stay("b", 0), stay("c", 0, 8.5), stay("d", 12)]
    # Half a second of a step, in which two machines did what three workers said.
    assert observed(KILLED, early)["useful"] == 8.5 * 3 - 0.5 + 6 * 2 + 6 * 3
    assert observed(KILLED, early)["detect"] == 2 * 2


def test_a_group_that_did_not_come_about_is_part_of_the_restart() -> None:
    failed = [
        *KILLED,
        at(10, 1, EventKind.failed, rank=2, error="gone"),
        at(10.5, 1, EventKind.failed, rank=1, error="gone as well"),
    ]
    found = observed(failed, MACHINES)
    assert found["detect"] == 0.5 * 2
    assert found["restart"] == 3 * 2 + 1 * 2 + 0.5 * 2 + 3.5 * 3


def test_costs_are_those_of_the_run() -> None:
    costs = measure(KILLED, MACHINES, MEASURED)
    assert costs.kill == Stages(
        detect_s=1.5, stop_s=0.5, decide_s=0.25, join_s=0.75, load_s=0.5, first_step_s=1
    )
    # What its stages leave unexplained of a growth comes before them.
    assert costs.grow == Stages(detect_s=0.5, stop_s=0.5, join_s=2, load_s=1)
    assert costs.drain == MEASURED.drain
    assert costs.ahead_s == pytest.approx(14)
    assert costs.step_s == {3: pytest.approx(1.75), 2: pytest.approx(3)}
    assert costs.save_s == 0.5
    assert costs.between_s == pytest.approx(0)
    assert (costs.settle_s, costs.back_s) == (MEASURED.settle_s, MEASURED.back_s)


def test_a_machine_that_the_run_left_is_given_back_after_a_while() -> None:
    drained = [
        at(0, 1, EventKind.attempt_started, world=2),
        *steps(1, 0, (0, 2), (2, 4)),
        at(5, 2, EventKind.attempt_started, world=1),
        *steps(2, 2, (5, 8), (8, 11)),
        at(8, 2, EventKind.rejoined, cause="drain", stop_s=0.25, join_s=0.5),
    ]
    stays = [stay("a", 0), stay("b", 0, 7.5, notice_s=4.5), stay("c", 0, 30, notice_s=5)]
    costs = measure(drained, stays, MEASURED)
    assert costs.back_s == 3.5  # of b; c was told afterwards
    assert costs.drain == Stages(detect_s=0.25, stop_s=0.25, join_s=0.5)
    assert costs.kill == MEASURED.kill


def test_of_a_run_that_only_trained_there_is_little_to_measure() -> None:
    calm = KILLED[:6]
    costs = measure(calm, MACHINES, MEASURED)
    assert (costs.kill, costs.ahead_s) == (MEASURED.kill, MEASURED.ahead_s)
    assert costs.between_s == pytest.approx(0.5 / 4)
    assert measure([], MACHINES, MEASURED) == MEASURED


def test_lines_told_late_take_their_place() -> None:
    groups = read_groups(KILLED[::-1])
    assert [group.attempt for group in groups] == [1, 2, 3]
    assert [step.step for step in groups[1].taken] == [3, 4, 5, 6]
    assert [group.world for group in groups] == [3, 2, 3]


def test_steps_do_not_overlap() -> None:
    events = [at(0, 1, EventKind.attempt_started, world=1), *steps(1, 0, (0, 2), (1.5, 4))]
    (group,) = read_groups(events)
    assert group.taken[1].from_s == group.taken[0].until_s
