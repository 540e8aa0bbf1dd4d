"""Every second of every machine is counted once, under one name."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.plan.goodput import LOSSES, GoodputReport, Span, Use, add_up
from tidemill.plan.trace import Stay

moments = st.integers(0, 60).map(float)
USED = [use for use in Use if use is not Use.idle]


@st.composite
def lives(draw: st.DrawFn) -> tuple[list[Stay], list[Span]]:
    """Some machines, and groups of more or fewer workers than there are machines."""
    stays: list[Stay] = []
    for number in range(draw(st.integers(0, 5))):
        since, until = sorted(draw(st.tuples(moments, moments)))
        stays.append(Stay(node=f"n{number}", from_s=since, until_s=until or math.inf))
    edges = sorted(draw(st.lists(moments, max_size=8)))
    spans = [
        Span(
            from_s=since,
            until_s=until,
            use=draw(st.sampled_from(USED)),
            members=draw(st.integers(0, 6)),
        )
        for since, until in list(pairwise(edges))[:: draw(st.integers(1, 2))]
    ]
    return stays, spans


@given(lives=lives(), least=st.integers(1, 3))
def test_nothing_is_counted_twice_and_nothing_is_left_out(
    lives: tuple[list[Stay], list[Span]], least: int
) -> None:
    stays, spans = lives
    found = add_up(stays, spans, from_s=5.0, until_s=50.0, least=least)
    expected = dict.fromkeys(Use, 0)
    for second in range(5, 50):  # all moments are whole, so a second is of one kind
        up = sum(stay.from_s <= second < stay.until_s for stay in stays)
        left = up
        for span in spans:
            if span.from_s <= second < span.until_s and up >= least:
                expected[span.use] += min(span.members, up)
                left -= min(span.members, up)
        expected[Use.idle] += left
    assert found == pytest.approx(expected)
    report = GoodputReport(source="", duration_s=45, node_s=found, steps=0, redone=0, changes={})
    assert report.total_s == math.fsum([*(found[use] for use in LOSSES), found[Use.useful]])
    if report.total_s:
        assert sum(report.share(use) for use in Use) == pytest.approx(1)


def test_uses_of_one_group() -> None:
    stays = [
        Stay(node="a", from_s=0),
        Stay(node="b", from_s=0, until_s=10),
        Stay(node="c", from_s=4),
    ]
    spans = [
        Span(from_s=0, until_s=10, use=Use.useful, members=2),
        Span(from_s=10, until_s=11, use=Use.detect, members=2),  # b is gone, c no member
        Span(from_s=11, until_s=14, use=Use.restart, members=2),
        Span(from_s=14, until_s=20, use=Use.useful, members=2),
    ]
    found = add_up(stays, spans, from_s=0, until_s=20, least=1)
    assert found == {
        Use.useful: 20 + 12,
        Use.detect: 2,
        Use.restart: 6,
        Use.recompute: 0,
        Use.stall: 0,
        Use.idle: 6,
    }


def test_fewer_than_the_run_can_go_on_with_are_idle() -> None:
    stays = [Stay(node="a", from_s=0), Stay(node="b", from_s=0, until_s=4)]
    spans = [Span(from_s=0, until_s=10, use=Use.restart, members=2)]
    found = add_up(stays, spans, from_s=0, until_s=10, least=2)
    assert (found[Use.restart], found[Use.idle]) == (8, 6)


def test_a_report_says_shares_of_all_node_time() -> None:
    node_s = dict.fromkeys(Use, 0.0) | {Use.useful: 75.0, Use.idle: 20.0, Use.stall: 5.0}
    report = GoodputReport(
        source="real", duration_s=50, node_s=node_s, steps=9, redone=1, changes={"kill": 2}
    )
    assert report.goodput == 0.75
    assert report.to_plain() == {
        "source": "real",
        "duration_s": 50,
        "node_s": 100.0,
        "goodput": 0.75,
        "lost": {"detect": 0, "restart": 0, "recompute": 0, "stall": 0.05, "idle": 0.2},
        "steps": 9,
        "redone": 1,
        "changes": {"kill": 2},
    }


def test_no_machines_are_no_goodput() -> None:
    node_s = add_up([], [], from_s=0, until_s=9, least=1)
    empty = GoodputReport(source="", duration_s=9, node_s=node_s, steps=0, redone=0, changes={})
    assert (empty.total_s, empty.goodput) == (0, 0)
