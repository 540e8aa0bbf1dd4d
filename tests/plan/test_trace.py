"""Stays say who is there when; whatever is done to a trace, they still do."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.plan.trace import Kind, Stay, Trace, TraceEvent, draw_poisson

LENGTH_S = 100.0
moments = st.integers(0, 100).map(float)


@st.composite
def traces(draw: st.DrawFn) -> Trace:
    """Up to twelve machines within 100 s; some come back, some give notice."""
    stays: list[Stay] = []
    for number in range(draw(st.integers(0, 12))):
        since, until = sorted(draw(st.tuples(moments, moments)))
        if until == since:
            until = math.inf
        notice_s = draw(st.sampled_from([0.0, 1.0])) if until <= LENGTH_S else 0.0
        stays.append(Stay(node=f"n{number}", from_s=since, until_s=until, notice_s=notice_s))
    return Trace(
        name="drawn",
        stays=tuple(sorted(stays, key=lambda stay: stay.from_s)),
        duration_s=LENGTH_S,
    )


def up_by_events(trace: Trace, at_s: float) -> int:
    """Machines that are there according to the events so far."""
    changes = {Kind.join: 1, Kind.kill: -1, Kind.drain: -1}
    return sum(
        changes[event.kind] for event in trace.events if event.at_s + event.deadline_s <= at_s
    )


SAMPLE = Trace(
    name="sample",
    stays=(
        Stay(node="a", from_s=0, until_s=60),
        Stay(node="b", from_s=0, until_s=80, notice_s=10),
        Stay(node="c", from_s=20),
    ),
    duration_s=100,
)


def test_events_tell_what_happens_in_order() -> None:
    assert SAMPLE.events == [
        TraceEvent(at_s=0, kind=Kind.join, node="a"),
        TraceEvent(at_s=0, kind=Kind.join, node="b"),
        TraceEvent(at_s=20, kind=Kind.join, node="c"),
        TraceEvent(at_s=60, kind=Kind.kill, node="a"),
        TraceEvent(at_s=70, kind=Kind.drain, node="b", deadline_s=10),
    ]
    assert SAMPLE.node_s == 60 + 80 + 80


def test_machines_go_before_others_come() -> None:
    stays = (Stay(node="a", from_s=0, until_s=5), Stay(node="b", from_s=5))
    kinds = [event.kind for event in Trace(name="", stays=stays, duration_s=9).events]
    assert kinds == [Kind.join, Kind.kill, Kind.join]


@given(trace=traces(), at_s=moments)
def test_events_and_stays_say_the_same(trace: Trace, at_s: float) -> None:
    assert up_by_events(trace, at_s) == trace.up_at(at_s)


@given(trace=traces(), start_s=moments, at_s=moments)
def test_a_window_shows_what_is_behind_it(trace: Trace, start_s: float, at_s: float) -> None:
    seen = trace.window(start_s, 30.0)
    if at_s < seen.duration_s:
        assert seen.up_at(at_s) == trace.up_at(start_s + at_s)
        assert up_by_events(seen, at_s) == seen.up_at(at_s)
    assert all(event.at_s >= 0 for event in seen.events)


def test_a_window_that_opens_amid_a_notice_shows_the_rest_of_it() -> None:
    (event,) = [event for event in SAMPLE.window(75, 25).events if event.kind is Kind.drain]
    assert event == TraceEvent(at_s=0, kind=Kind.drain, node="b", deadline_s=5)


@given(trace=traces(), nodes=st.integers(1, 6), at_s=moments)
def test_a_clipped_trace_has_as_many_as_there_are_up_to_the_limit(
    trace: Trace, nodes: int, at_s: float
) -> None:
    assert trace.clipped(nodes).up_at(at_s) == min(nodes, trace.up_at(at_s))


@given(trace=traces(), nodes=st.integers(1, 6))
def test_a_clipped_trace_invents_nothing(trace: Trace, nodes: int) -> None:
    known = {stay.node: stay for stay in trace.stays}
    for stay in trace.clipped(nodes).stays:
        assert known[stay.node].from_s <= stay.from_s < stay.until_s == known[stay.node].until_s


def test_one_that_is_taken_is_replaced_by_one_to_spare() -> None:
    clipped = SAMPLE.clipped(2)
    assert [(stay.node, stay.from_s) for stay in clipped.stays] == [("a", 0), ("b", 0), ("c", 60)]


@given(trace=traces(), nodes=st.integers(1, 6), at_s=moments)
def test_a_thinned_trace_is_some_of_the_machines(trace: Trace, nodes: int, at_s: float) -> None:
    thinned = trace.thinned(nodes)
    assert set(thinned.stays) <= set(trace.stays)
    assert thinned.up_at(at_s) <= nodes
    most = max((trace.up_at(stay.from_s) for stay in trace.stays), default=0)
    if most <= nodes:
        assert thinned == trace
    elif trace.up_at(at_s) == most:
        assert thinned.up_at(at_s) == nodes


def test_a_thinned_trace_has_the_shape_of_the_whole() -> None:
    whole = draw_poisson(nodes=60, mean_s=4, replace_s=90, duration_s=3000, seed=1)
    few = whole.thinned(12)
    assert few.node_s / whole.node_s == pytest.approx(12 / 60, rel=0.1)


@given(trace=traces(), speed=st.sampled_from([0.5, 2.0, 8.0]), at_s=moments)
def test_a_scaled_trace_is_the_same_but_for_its_pace(
    trace: Trace, speed: float, at_s: float
) -> None:
    faster = trace.scaled(speed)
    assert faster.duration_s == trace.duration_s / speed
    assert faster.up_at(at_s / speed) == trace.up_at(at_s)
    assert faster.node_s * speed == pytest.approx(trace.node_s)


@given(trace=traces(), notice_s=st.sampled_from([0.0, 3.0, 200.0]), at_s=moments)
def test_notice_changes_when_it_is_known_and_nothing_else(
    trace: Trace, notice_s: float, at_s: float
) -> None:
    told = trace.with_notice(notice_s)
    assert told.up_at(at_s) == trace.up_at(at_s)
    for event in told.events:
        assert event.at_s >= 0
        assert event.kind is not Kind.kill or notice_s == 0
        assert event.deadline_s <= notice_s


# --- at random -------------------------------------------------------------------------------


@given(seed=st.integers(0, 50), nodes=st.integers(1, 6), replace_s=st.sampled_from([0.5, 20.0]))
def test_a_drawn_trace_keeps_its_limits(seed: int, nodes: int, replace_s: float) -> None:
    trace = draw_poisson(
        nodes=nodes, mean_s=10, replace_s=replace_s, duration_s=300, seed=seed, least=1
    )
    for stay in trace.stays:
        for moment in (stay.from_s, stay.until_s):
            if moment < trace.duration_s:
                assert 1 <= trace.up_at(moment) <= nodes
        assert stay.from_s < stay.until_s
    gone = sorted(stay.until_s for stay in trace.stays if stay.until_s < math.inf)
    came = sorted(stay.from_s for stay in trace.stays if stay.from_s)
    assert came == [at_s + replace_s for at_s in gone if at_s + replace_s < 300]
    assert len({stay.node for stay in trace.stays}) == len(trace.stays)


def test_a_seed_is_a_schedule_and_the_mean_is_kept() -> None:
    def draw(seed: int) -> Trace:
        return draw_poisson(nodes=9, mean_s=20, replace_s=5, duration_s=40_000, seed=seed)

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)
    kills = [event.at_s for event in draw(1).events if event.kind is Kind.kill]
    assert 40_000 / len(kills) == pytest.approx(20, rel=0.1)
    pauses = [after - before for before, after in pairwise(kills)]
    long = sum(pause > 20 for pause in pauses) / len(pauses)
    assert long == pytest.approx(math.exp(-1), abs=0.05)  # exponential, not regular
