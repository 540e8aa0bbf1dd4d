"""Every second of a run is a step that counts, or a loss with a name."""

from __future__ import annotations

import math
from dataclasses import asdict

import pytest

from tests.report.histories import History
from tidemill.report.goodput import Goodput, Losses, measure_goodput, say_goodput
from tidemill.report.ledger import make_run_report
from tidemill.spec.progress import EventKind


def measure(history: History) -> Goodput:
    report = make_run_report(history.events)
    assert report is not None
    goodput = measure_goodput(report)
    assert goodput.steps_s + goodput.losses.total == pytest.approx(goodput.wall_s)
    return goodput


def losses(history: History) -> dict[str, float]:
    """Those that are not nothing."""
    found = asdict(measure(history).losses)
    return {name: round(value, 6) for name, value in found.items() if value > 1e-6}


def test_an_undisturbed_run() -> None:
    history = History()
    history.start()
    history.now_s += 3  # until its first step
    history.steps(0, 9, seconds=2.0)
    history.now_s += 1
    history.finish(10)
    goodput = measure(history)
    assert (goodput.wall_s, goodput.steps_s) == (24, 20)
    assert goodput.share == pytest.approx(20 / 24)
    assert losses(history) == {"other": 4}


def test_a_change_of_workers_costs_what_was_redone_and_the_time_between_steps() -> None:
    history = History()
    history.start()
    history.steps(0, 7, seconds=1.0)
    history.now_s += 2
    history.start(restored=6, source="memory")
    history.now_s += 0.5
    history.steps(6, 6, seconds=1.0)
    history.rejoin(7, place_s=0.75)
    history.steps(7, 9, seconds=1.0)
    goodput = measure(history)
    assert (goodput.wall_s, goodput.steps_s) == (8 + 3.5 + 4, 10)
    assert losses(history) == {"restarts": 2.75, "redone": 2, "waiting": 0.75}


def test_where_nobody_measured_it_the_time_without_an_attempt_was_waiting() -> None:
    history = History()
    history.start()
    history.steps(0, 4, seconds=1.0)
    history.now_s += 9
    history.start(restored=5)  # a second later
    history.now_s += 2
    history.start(restored=5)  # this one failed on its way up
    history.now_s += 3
    history.steps(5, 5, seconds=1.0)
    assert losses(history) == {"waiting": 10 + 3, "restarts": 3}


def test_the_time_after_a_stop_on_request_is_none_of_the_runs() -> None:
    history = History()
    history.start()
    history.steps(0, 4, seconds=1.0)
    history.add(EventKind.stopped, step=5)
    history.now_s += 3 * 86400
    history.start(restored=5)
    history.now_s += 2
    history.steps(5, 9, seconds=1.0)
    goodput = measure(history)
    assert (goodput.wall_s, goodput.steps_s) == (12, 10)
    assert losses(history) == {"other": 2}


def test_saving_is_a_loss() -> None:
    history = History()
    history.start()
    history.steps(0, 4, seconds=1.0)
    history.now_s += 1.5
    history.save(5, stall_s=0.25)
    history.steps(5, 9, seconds=1.0)
    assert losses(history) == {"saving": 0.25, "other": 1.25}


@pytest.mark.parametrize("odd", [None, math.nan, math.inf, -1.0, "long", 1e9])
def test_odd_measures_break_no_account(odd: object) -> None:
    history = History()
    history.start()
    history.steps(0, 4, seconds=1.0)
    history.start(restored=5)
    history.steps(5, 9, seconds=1.0)
    history.rejoin(6, place_s=odd)
    goodput = measure(history)
    assert 0 <= goodput.share <= 1
    assert goodput.losses.restarts + goodput.losses.waiting == pytest.approx(1.0)


def test_a_run_without_steps_has_no_share() -> None:
    history = History()
    history.start()
    assert measure(history).share == 0


def test_what_is_said() -> None:
    account = Goodput(wall_s=723.0, steps_s=673.2, losses=Losses(restarts=20.0, redone=5.04))
    assert say_goodput(account) == (
        "93.1% of 12m 03s in steps that count; lost: 20s restarts, 5.0s redone"
    )
    assert say_goodput(Goodput(wall_s=9.0, steps_s=9.0, losses=Losses(other=0.04))) == (
        "100.0% of 9.0s in steps that count"
    )
