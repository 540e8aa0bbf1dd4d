"""A simulated run does what the policy says, and its account is complete."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.plan.test_trace import traces
from tidemill.plan.costs import Costs, Rules, Stages
from tidemill.plan.goodput import LOSSES, GoodputReport, Use
from tidemill.plan.simulate import LOOK_S, simulate
from tidemill.plan.trace import Stay, Trace, draw_poisson

# A step takes 60 / world seconds, so that a trace of whole minutes has whole steps.
RULES = Rules(most=6, global_size=60, micro_size=60)
COSTS = Costs(
    kill=Stages(detect_s=2, stop_s=1, join_s=3, load_s=1, first_step_s=1),
    drain=Stages(stop_s=1, join_s=1),
    grow=Stages(detect_s=1, stop_s=1, join_s=2),
    ahead_s=10,
    step_s={1: 60.0},
    settle_s=0.5,
    back_s=0.5,
)


def trace_of(*stays: Stay, duration_s: float = 300.0) -> Trace:
    return Trace(name="made up", stays=stays, duration_s=duration_s)


def up(node: str, from_s: float = 0.0, until_s: float = math.inf, notice_s: float = 0.0) -> Stay:
    return Stay(node=node, from_s=from_s, until_s=until_s, notice_s=notice_s)


def node_s(report: GoodputReport) -> dict[str, float]:
    """Node-seconds of every use that has some."""
    return {use.value: round(found, 6) for use, found in report.node_s.items() if found}


# --- the account -----------------------------------------------------------------------------


@given(
    trace=traces(),
    least=st.integers(1, 3),
    most=st.integers(3, 6),
    replicated=st.booleans(),
    back_s=st.sampled_from([0.5, math.inf]),
    save_s=st.sampled_from([0.0, 1.5]),
    steps=st.sampled_from([0, 7]),
)
def test_losses_and_what_was_useful_are_all_there_was(
    *,
    trace: Trace,
    least: int,
    most: int,
    replicated: bool,
    back_s: float,
    save_s: float,
    steps: int,
) -> None:
    rules = replace(
        RULES,
        least=least,
        most=most,
        replicated=replicated,
        copy_every_steps=2,
        near_every_steps=3,
        save_every_steps=4,
        steps=steps,
    )
    costs = replace(COSTS, step_s={1: 7.0}, between_s=0.25, save_s=save_s, back_s=back_s)
    report = simulate(trace, rules, costs)
    assert report.total_s == math.fsum(report.node_s.values())
    assert report.total_s == math.fsum([report.node_s[Use.useful], *map(report.node_s.get, LOSSES)])  # type: ignore[arg-type]
    seen = trace.window(0.0, report.duration_s) if report.duration_s else None
    there_s = seen.node_s if seen else 0.0
    if back_s == math.inf:
        assert report.total_s == pytest.approx(there_s)
    assert report.total_s <= there_s + 1e-6  # some were given back
    assert all(found >= 0 for found in report.node_s.values())
    assert 0 <= report.goodput <= 1
    if steps:
        assert report.steps <= steps


@given(trace=traces())
def test_free_changes_lose_nothing_but_cut_off_steps(trace: Trace) -> None:
    free = replace(
        COSTS,
        kill=Stages(),
        drain=Stages(),
        grow=Stages(),
        ahead_s=0,
        settle_s=0,
        back_s=0,
        step_s={1: 1e-2},
    )
    report = simulate(trace, replace(RULES, save_every_steps=1), free)
    beyond_s = sum(max(0, trace.up_at(second) - RULES.most) for second in range(100))
    assert report.node_s[Use.detect] == report.node_s[Use.restart] == 0
    reaction_s = len(trace.stays) * (LOOK_S + 0.1) * 12
    assert report.node_s[Use.idle] <= beyond_s + reaction_s + 1e-6
    assert report.node_s[Use.recompute] <= 0.01 * 6 * len(trace.stays)


# --- what happens ----------------------------------------------------------------------------


def test_undisturbed_all_of_it_is_useful() -> None:
    report = simulate(trace_of(up("a"), up("b")), RULES, COSTS)
    assert node_s(report) == {"useful": 600.0}
    assert (report.steps, report.changes) == (10, {})


def test_a_kill_costs_the_step_at_hand_the_detection_and_the_restart() -> None:
    report = simulate(trace_of(up("a"), up("b", until_s=100)), RULES, COSTS)
    # 3 steps in 90 s, then 10 s of one that is lost on both; a group of one from 108 s on.
    assert node_s(report) == {"useful": 180 + 192, "recompute": 20, "detect": 2, "restart": 6}
    assert (report.steps, report.changes) == (3 + 3, {"kill": 1})


def test_a_drain_costs_no_step_and_the_machine_goes_back() -> None:
    report = simulate(trace_of(up("a"), up("b", until_s=200, notice_s=100)), RULES, COSTS)
    # Told at 100 s, within step 4; step 5 is the last of both, until 150 s.
    assert node_s(report) == {"useful": 300 + 148, "restart": 2, "idle": 0.5}
    assert report.changes == {"drain": 1}
    stays = replace(COSTS, back_s=math.inf)
    assert node_s(
        simulate(trace_of(up("a"), up("b", until_s=200, notice_s=100)), RULES, stays)
    ) == {"useful": 300 + 148, "restart": 2, "idle": 50}


def test_a_notice_that_is_too_short_is_a_kill() -> None:
    report = simulate(trace_of(up("a"), up("b", until_s=105, notice_s=5)), RULES, COSTS)
    assert report.changes == {"kill": 1}


def test_a_machine_joins_when_it_is_ready() -> None:
    report = simulate(trace_of(up("a"), up("b", from_s=100)), RULES, COSTS)
    # Ready at 110 s, within step 2 of 60 s each; step 3 is the last of one alone, until 180 s.
    assert node_s(report) == {"useful": 180 + 2 * 116, "restart": 8, "idle": 80}
    assert report.changes == {"grow": 1}
    assert report.steps == 3 + 3


def test_a_run_does_not_grow_for_nothing() -> None:
    two = replace(RULES, global_size=2, micro_size=2)
    report = simulate(trace_of(up("a"), up("b"), up("c", from_s=10)), two, COSTS)
    assert report.changes == {}
    assert node_s(report) == {"useful": 600.0, "idle": 290.0}


def test_a_run_does_not_grow_near_its_end() -> None:
    grown = simulate(
        trace_of(up("a"), up("b", from_s=10), duration_s=9000), replace(RULES, steps=9), COSTS
    )
    alone = simulate(
        trace_of(up("a"), up("b", from_s=10), duration_s=9000),
        replace(RULES, steps=9),
        replace(COSTS, grow=Stages(join_s=150)),
    )
    assert (grown.changes, alone.changes) == ({"grow": 1}, {})
    assert alone.duration_s == 9 * 60
    assert grown.duration_s == 2 * 60 + 4 + 7 * 30
    assert grown.steps == alone.steps == 9


def test_more_than_a_run_has_use_for_are_idle() -> None:
    report = simulate(trace_of(up("a"), up("b"), up("c")), replace(RULES, most=2), COSTS)
    assert node_s(report) == {"useful": 600.0, "idle": 300.0}


def test_one_to_spare_takes_the_place_of_one_that_is_lost() -> None:
    spare = trace_of(up("a"), up("b", until_s=60), up("c"))
    report = simulate(spare, replace(RULES, most=2), COSTS)
    # It is warm: it is in the group that forms after the kill.
    assert report.changes == {"kill": 1}
    assert node_s(report) == {
        "useful": 120 + 2 * 232,
        "detect": 2,
        "restart": 12,
        "idle": 60 + 2,
    }


def test_with_too_few_a_run_waits_and_all_are_idle() -> None:
    rules = replace(RULES, least=2)
    report = simulate(trace_of(up("a"), up("b", until_s=60), up("c", from_s=100)), rules, COSTS)
    # c is ready at 110 s; the restart of both takes 6 s from there.
    assert report.changes == {}
    assert node_s(report)["idle"] == 40
    assert node_s(report)["useful"] == 120 + 2 * 184


def test_a_kill_amid_a_restart_begins_another() -> None:
    trace = trace_of(up("a"), up("b", until_s=60), up("c", until_s=63))
    report = simulate(trace, RULES, COSTS)
    # b at 60, detected at 62, c at 63 while the group forms, detected at 65, formed at 71.
    assert node_s(report) == {
        "useful": 180 + 229,
        "detect": 4 + 2,
        "restart": 2 + 6,
    }
    assert report.changes == {"kill": 1}


@pytest.mark.parametrize(
    ("rules", "gone", "redone"),
    [
        (replace(RULES, replicated=True), 2, 0),
        (replace(RULES, replicated=False, copy_every_steps=1), 1, 0),
        (replace(RULES, replicated=False, copy_every_steps=4), 1, 3),
        (replace(RULES, replicated=False, copy_every_steps=1, near_every_steps=5), 2, 2),
        (replace(RULES, replicated=False, copy_every_steps=1, save_every_steps=6), 2, 1),
        (replace(RULES, replicated=False, copy_every_steps=0, near_every_steps=5), 1, 2),
        (replace(RULES, replicated=False, copy_every_steps=1), 2, 7),
        (replace(RULES, replicated=True, save_every_steps=5), 3, 2),
        (replace(RULES, replicated=True), 3, 7),
    ],
)
def test_steps_are_taken_again_from_the_newest_state_there_is(
    rules: Rules, gone: int, redone: int
) -> None:
    # Three workers take 7 steps of 20 s; then some go at once, neighbours in the ring if two.
    stays = [up(name, until_s=140 if n < gone else math.inf) for n, name in enumerate("abc")]
    late = [up("d", from_s=141)]
    report = simulate(trace_of(*stays, *late, duration_s=2000), rules, COSTS)
    assert report.redone == redone
    alone_s = 60.0 if report.changes == {"kill": 1} else 30.0
    assert report.node_s[Use.recompute] >= redone * min(alone_s, 30.0) - 1e-6


def test_a_ring_has_lost_nothing_unless_two_neighbours_are_gone() -> None:
    rules = replace(RULES, replicated=False)

    def redone(*gone: str) -> int:
        stays = [up(name, until_s=90 if name in gone else math.inf) for name in "abcd"]
        return simulate(trace_of(*stays), rules, COSTS).redone

    assert redone("a", "c") == redone("b", "d") == 0
    assert redone("a", "b") == redone("d", "a") == 6  # of 15 s each, all there were


def test_saves_are_a_stall() -> None:
    costs = replace(COSTS, save_s=5.0, between_s=1.0)
    rules = replace(RULES, save_every_steps=2)
    report = simulate(trace_of(up("a"), duration_s=2 * (2 * 61 + 5)), rules, costs)
    assert node_s(report) == {"useful": 240.0, "stall": 14.0}


def test_months_take_seconds_and_are_the_same_every_time() -> None:
    trace = draw_poisson(nodes=8, mean_s=1800, replace_s=120, duration_s=30 * 86400, seed=4)
    costs = replace(COSTS, step_s={8: 0.5}, ahead_s=8, settle_s=2)
    rules = replace(RULES, most=8, global_size=840, micro_size=840)
    first, second = (simulate(trace, rules, costs) for _ in range(2))
    assert first == second
    assert first.steps > 4_000_000
    assert first.changes["kill"] > 1000
    assert 0.97 < first.goodput < 0.999
