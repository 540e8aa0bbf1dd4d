"""A deadline is met whatever becomes of spot, and above that safety it is all price."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tidemill.plan.choice import (
    KEEP,
    MEMORY_HOURS,
    RETURN,
    Market,
    Seen,
    Standing,
    choose,
    progress_price,
)

LOOK_HOURS = 0.25
FIRM = Market(name="firm", spot=False, usd_per_hour=3.0, changeover_hours=0.5)
SPOT = Market(name="spot", spot=True, usd_per_hour=1.0, changeover_hours=0.5, uptime=0.9)


def standing(work_hours: float, left_hours: float = math.inf, **more: object) -> Standing:
    return replace(
        Standing(work_hours=work_hours, left_hours=left_hours, look_hours=LOOK_HOURS), **more
    )


# --- deadlines ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """One look of a game against the market.

    Attributes:
        markets: What is told, true or not.
        gone: Share of the look after which a spot machine is taken; 1 if it is not.
    """

    markets: tuple[Market, ...]
    gone: float


Game = Callable[[int, str], Moment]


@dataclass(frozen=True, slots=True)
class Played:
    hours: float
    late: bool
    visits: tuple[str, ...]


def play(game: Game, work_hours: float, deadline_hours: float, unsaved_hours: float) -> Played:
    """Follow the policy while the game tells it anything, and takes what it likes of spot.

    What a preemption takes is the most that it may: all progress since the run came, up to
    `unsaved_hours`.
    """
    left, at, ready, unsaved, hours, late = work_hours, "", 0.0, 0.0, 0.0, False
    visits: list[str] = []
    while left > 1e-9 and hours < 1000:
        moment = game(len(visits), at)
        run = Standing(
            work_hours=left,
            left_hours=deadline_hours - hours,
            at=at,
            ready_hours=ready,
            look_hours=LOOK_HOURS,
            unsaved_hours=unsaved_hours,
        )
        choice = choose(run, moment.markets)
        late |= choice.late
        visits.append(choice.market)
        market = next((m for m in moment.markets if m.name == choice.market), None)
        if choice.market != at:
            unsaved, ready = 0.0, market.changeover_hours if market else 0.0
            at = choice.market
        spent = LOOK_HOURS
        if market:
            taken = market.spot and moment.gone < 1
            spent = min(spent * (moment.gone if taken else 1.0), ready + left)
            gained = max(0.0, spent - ready)
            ready = max(0.0, ready - spent)
            left -= gained
            unsaved = min(unsaved + gained, unsaved_hours)
            if taken and left > 1e-9:
                left, at, ready, unsaved, spent = left + unsaved, "", 0.0, 0.0, LOOK_HOURS
        hours += spent
    return Played(hours, late, tuple(visits))


prices = st.floats(0.01, 100)
leads = st.floats(0.01, 2)


@st.composite
def spots(draw: st.DrawFn, name: str) -> Market:
    return Market(
        name=name,
        spot=True,
        usd_per_hour=draw(prices),
        available=draw(st.booleans()),
        changeover_hours=draw(leads),
        moving_usd=draw(st.floats(0, 50)),
        hazard_per_hour=draw(st.floats(0, 10)),
        loss_hours=draw(st.floats(0, 2)),
        uptime=draw(st.floats(0, 1)),
    )


@st.composite
def moments(draw: st.DrawFn, firm_hours: Sequence[float]) -> Moment:
    firm = [
        Market(name=f"firm{i}", spot=False, usd_per_hour=draw(prices), changeover_hours=hours)
        for i, hours in enumerate(firm_hours)
    ]
    spot = [draw(spots(f"spot{i}")) for i in range(draw(st.integers(0, 2)))]
    gone = draw(st.sampled_from([0.0, 0.5, 0.999]) | st.just(1.0))
    return Moment(markets=(*firm, *spot), gone=gone)


@settings(max_examples=300)
@given(data=st.data())
def test_a_deadline_is_met_whatever_becomes_of_spot(data: st.DataObject) -> None:
    firm_hours = data.draw(st.lists(leads, min_size=1, max_size=2))
    told = data.draw(st.lists(moments(firm_hours), min_size=1, max_size=12))
    work_hours = data.draw(st.floats(0.1, 6))
    deadline_hours = work_hours + min(firm_hours) + data.draw(st.floats(0, 6))
    unsaved_hours = data.draw(st.sampled_from([0.0, 0.1, 1.0]))

    def game(look: int, at: str) -> Moment:
        moment = told[look % len(told)]
        held = (replace(m, available=m.available or m.name == at) for m in moment.markets)
        return replace(moment, markets=tuple(held))

    played = play(game, work_hours, deadline_hours, unsaved_hours)
    assert played.hours <= deadline_hours + 1e-6
    assert not played.late


@pytest.mark.parametrize("unsaved_hours", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("slack_hours", [0.5, 0.74, 0.75, 0.76, 1.0, 2.1, 5.0])
@pytest.mark.parametrize("there", range(0, 40, 3))
def test_spot_that_goes_for_good_at_the_worst_moment(
    there: int, slack_hours: float, unsaved_hours: float
) -> None:
    """It tempts with being free and safe, until it is gone with all that is not saved."""
    tempting = replace(SPOT, usd_per_hour=0.0, changeover_hours=0.1, uptime=1.0)

    def game(look: int, at: str) -> Moment:
        spot = replace(tempting, available=look <= there)
        return Moment(markets=(FIRM, spot), gone=0.99 if look == there else 1.0)

    played = play(game, 6.0, 6.0 + slack_hours, unsaved_hours)
    assert played.hours <= 6.0 + slack_hours + 1e-6
    assert not played.late


def test_spot_that_never_lasts_until_it_is_ready() -> None:
    def game(look: int, at: str) -> Moment:
        return Moment(markets=(FIRM, replace(SPOT, usd_per_hour=0.0)), gone=0.9)

    played = play(game, 6.0, 12.0, 1.0)
    assert played.hours <= 12.0
    assert set(played.visits) == {"spot", "firm"}
    assert played.visits.index("firm") == played.visits.count("spot")  # and not left again


@given(work_hours=st.floats(0.1, 50), spare_hours=st.floats(0, 5), unsaved_hours=st.floats(0, 2))
def test_on_demand_is_left_only_well_above_the_net(
    work_hours: float, spare_hours: float, unsaved_hours: float
) -> None:
    free = replace(SPOT, usd_per_hour=0.0)
    run = standing(
        work_hours,
        work_hours + FIRM.changeover_hours + spare_hours,
        at="firm",
        unsaved_hours=unsaved_hours,
    )
    high = LOOK_HOURS + unsaved_hours + RETURN * FIRM.changeover_hours
    assume(abs(spare_hours - high) > 1e-6)
    assert choose(run, [FIRM, free]).market == ("spot" if spare_hours > high else "firm")


def test_the_quickest_on_demand_is_the_net() -> None:
    slow = replace(FIRM, name="slow", changeover_hours=5.0, usd_per_hour=0.5)
    assert choose(standing(10.0, 13.0), [slow, FIRM, SPOT]).market == "spot"
    assert choose(standing(10.0, 10.6), [slow, FIRM, SPOT]).market == "firm"


@given(work_hours=st.floats(1, 50), missing_hours=st.floats(0.1, 50))
def test_what_is_too_late_is_said_with_the_earliest_finish(
    work_hours: float, missing_hours: float
) -> None:
    slow = replace(FIRM, name="slow", changeover_hours=2.0, usd_per_hour=0.1)
    run = standing(work_hours, work_hours + FIRM.changeover_hours - missing_hours)
    choice = choose(run, [slow, FIRM, replace(SPOT, hazard_per_hour=0.5)])
    assert (choice.market, choice.late) == ("firm", True)
    assert choice.finish_hours == work_hours + FIRM.changeover_hours
    assert f"even on-demand is {missing_hours:.1f} h too late" in choice.reason
    assert f"{choice.finish_hours:.1f} h" in choice.reason


def test_too_late_for_a_changeover_is_not_too_late_for_luck() -> None:
    run = standing(4.0, 4.2, at="spot")
    choice = choose(run, [FIRM, replace(SPOT, hazard_per_hour=0.01)])
    assert (choice.market, choice.late) == ("spot", True)
    assert choice.finish_hours == pytest.approx(4.0, abs=0.1)


def test_who_is_late_does_not_try_spot_again() -> None:
    safe = replace(SPOT, changeover_hours=0.1)
    assert choose(standing(4.0, 4.2), [FIRM, safe]).market == "firm"


def test_without_on_demand_there_is_only_hope() -> None:
    assert choose(standing(10.0, 10.0), [SPOT]).market == "spot"
    choice = choose(standing(10.0, 10.0), [replace(SPOT, available=False)])
    assert (choice.market, choice.finish_hours) == ("", math.inf)
    assert choose(standing(10.0, 20.0), []).reason == "no machines can be had now"


# --- price -------------------------------------------------------------------------------------


def test_a_cheap_market_that_is_often_there_is_waited_for() -> None:
    away = [FIRM, replace(SPOT, available=False)]
    assert choose(standing(10.0, 20.0), away).market == ""
    assert choose(standing(10.0, 11.5), away).market == "firm"
    assert choose(standing(10.0), away).market == ""
    seldom = [FIRM, replace(SPOT, available=False, uptime=0.3)]
    assert choose(standing(10.0, 20.0), seldom).market == "firm"
    assert choose(standing(10.0, 80.0), seldom).market == ""
    never = [FIRM, replace(SPOT, available=False, uptime=0.01)]
    assert choose(standing(10.0), never).market == "firm"


def test_dear_spot_is_for_those_who_cannot_wait() -> None:
    dear = replace(SPOT, name="dear", usd_per_hour=2.0)
    markets = [FIRM, dear, replace(SPOT, available=False, uptime=0.6)]
    assert choose(standing(10.0, 40.0), markets).market == ""
    assert choose(standing(10.0, 19.0), markets).market == "dear"


def test_on_demand_that_is_cheaper_needs_no_spot() -> None:
    assert choose(standing(10.0), [replace(FIRM, usd_per_hour=0.9), SPOT]).market == "firm"


def test_frequent_preemptions_make_spot_dearer_than_it_looks() -> None:
    flaky = replace(SPOT, usd_per_hour=0.8, hazard_per_hour=2.0, loss_hours=0.2)
    steady = replace(SPOT, name="steady", hazard_per_hour=0.05, loss_hours=0.2)
    assert choose(standing(10.0, 30.0), [FIRM, flaky, steady]).market == "steady"


def test_a_move_must_pay_within_the_work_left() -> None:
    cheap = replace(SPOT, name="cheap", usd_per_hour=0.8, moving_usd=2.0)
    here = replace(SPOT, hazard_per_hour=0.01)
    markets = [FIRM, here, cheap]
    assert choose(standing(100.0, 200.0, at="spot"), markets).market == "cheap"
    assert choose(standing(5.0, 20.0, at="spot"), markets).market == "spot"


def test_small_differences_move_nobody() -> None:
    def other(share: float) -> Market:
        return replace(SPOT, name="other", usd_per_hour=share, changeover_hours=0.0)

    here = replace(SPOT, changeover_hours=0.0)
    run = standing(10.0, 40.0, at="spot")
    assert choose(run, [FIRM, here, other(1 - KEEP / 2)]).market == "spot"
    assert choose(run, [FIRM, here, other(1 - KEEP * 2)]).market == "other"


@st.composite
def fair(draw: st.DrawFn, name: str) -> Market:
    """A market in which progress is likely."""
    return Market(
        name=name,
        spot=draw(st.booleans()),
        usd_per_hour=draw(prices),
        changeover_hours=draw(st.floats(0.01, 0.5)),
        moving_usd=draw(st.floats(0, 50)),
        hazard_per_hour=draw(st.floats(0, 0.5)),
        loss_hours=draw(st.floats(0, 0.5)),
    )


@given(
    markets=st.tuples(fair("a"), fair("b"), fair("c")),
    work_hours=st.floats(1, 500),
)
def test_without_a_deadline_progress_is_bought_where_it_costs_least(
    markets: tuple[Market, ...], work_hours: float
) -> None:
    run = standing(work_hours)
    firm = tuple(m if m.spot else replace(m, hazard_per_hour=0.0) for m in markets)
    choice = choose(run, firm)
    costs = {market.name: progress_price(run, market) for market in firm}
    assert costs[choice.market] == pytest.approx(min(costs.values()))
    assert not choice.late


@pytest.mark.parametrize("hazard_per_hour", [0.1, 0.5, 1.0])
def test_the_price_of_progress_is_what_many_lives_cost(hazard_per_hour: float) -> None:
    market = replace(SPOT, hazard_per_hour=hazard_per_hour, loss_hours=0.1, moving_usd=0.4)
    dice = random.Random(1)
    paid = gained = 0.0
    for _ in range(100_000):
        life = dice.expovariate(hazard_per_hour)
        stay = min(life, market.changeover_hours + 6.0)
        paid += market.usd_per_hour * stay + market.moving_usd
        gained += max(0.0, stay - market.changeover_hours)
        gained -= market.loss_hours * (market.changeover_hours < life == stay)
    assert progress_price(standing(6.0), market) == pytest.approx(paid / gained, rel=0.02)


def test_a_market_that_takes_more_than_it_gives_has_no_price() -> None:
    hopeless = replace(SPOT, hazard_per_hour=5.0, loss_hours=0.3)
    assert progress_price(standing(10.0), hopeless) == math.inf
    assert choose(standing(10.0, 30.0), [FIRM, hopeless]).market == "firm"
    assert choose(standing(10.0), [hopeless]).market == ""


@given(
    told=st.lists(st.floats(0.01, 2), min_size=1, max_size=2).flatmap(moments),
    work_hours=st.floats(0, 20),
    left_hours=st.floats(-5, 50) | st.just(math.inf),
    at=st.sampled_from(["", "firm0", "spot0", "elsewhere"]),
)
def test_a_choice_is_one_that_can_be_had_and_says_why(
    told: Moment, work_hours: float, left_hours: float, at: str
) -> None:
    choice = choose(standing(work_hours, left_hours, at=at), told.markets)
    assert choice.market in {"", *(m.name for m in told.markets if m.available)}
    assert 10 < len(choice.reason) < 150
    assert "\n" not in choice.reason
    assert "nan" not in choice.reason
    assert choice.market in choice.reason
    assert choose(standing(work_hours, left_hours, at=at), told.markets[::-1]) == choice


def test_nothing_to_do_needs_no_machines() -> None:
    choice = choose(standing(0.0, 1.0, at="spot"), [FIRM, SPOT])
    assert (choice.market, choice.finish_hours) == ("", 0.0)


# --- what was seen -----------------------------------------------------------------------------


def test_lives_are_expected_to_be_like_those_that_were_seen() -> None:
    steady, flaky = Seen(), Seen()
    for look in range(200):
        steady = steady.after(LOOK_HOURS, up=True)
        flaky = flaky.after(LOOK_HOURS, up=look % 4 > 0)
    assert steady.hazard_per_hour < 0.04
    assert flaky.hazard_per_hour == pytest.approx(1 / 0.75, rel=0.15)
    assert steady.uptime > 0.9
    assert flaky.uptime == pytest.approx(0.75, abs=0.05)
    assert Seen().hazard_per_hour == 0.25


def test_what_is_long_ago_is_forgotten() -> None:
    bad = Seen()
    for look in range(100):
        bad = bad.after(LOOK_HOURS, up=look % 2 > 0)
    later = bad
    for _ in range(round(3 * MEMORY_HOURS / LOOK_HOURS)):
        later = later.after(LOOK_HOURS, up=True)
    assert bad.hazard_per_hour > 1.0
    assert later.hazard_per_hour < 0.1
    assert later.hours < MEMORY_HOURS
