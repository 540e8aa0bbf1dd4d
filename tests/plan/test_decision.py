"""What a plan says to do now is what its choices, prices and deadline make of it."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.plan.offers import make_offer, offers
from tests.plan.test_forecast import FACTS, SPEC
from tidemill.plan.choice import Choice
from tidemill.plan.decision import decide
from tidemill.plan.forecast import Forecaster, forecast
from tidemill.plan.offers import Offer
from tidemill.spec.placement import Spot

FIRM = make_offer(id="firm", gpus=4, usd_per_hour=12.0)
SPOT = make_offer(id="spot", gpus=4, usd_per_hour=4.0, spot=True)
LONG = replace(SPEC, steps=100_000)


def decided(deadline: str, *offers: Offer) -> Choice:
    choices = forecast(Forecaster(LONG, FACTS), offers).placement.choices
    assert len(choices) == len(offers)
    return decide(Forecaster(replace(LONG, deadline=deadline), FACTS), choices)


def test_spot_is_for_those_who_have_time() -> None:
    hours = forecast(Forecaster(LONG, FACTS), [FIRM]).placement.choices[0].elapsed_h
    relaxed = decided(f"{3 * hours:.0f}h", FIRM, SPOT)
    assert relaxed.market == f"1 x {SPOT.name}"
    assert not relaxed.late
    pressed = decided(f"{hours * 1.005:.2f}h", FIRM, SPOT)
    assert pressed.market == f"1 x {FIRM.name}"
    assert not pressed.late
    assert "only on-demand is sure to meet the deadline" in pressed.reason


@settings(max_examples=100)
@given(
    st.lists(offers, min_size=1, max_size=5, unique_by=lambda offer: offer.id),
    st.sampled_from([2000, LONG.steps]),
    st.sampled_from([1, 5, 30, 400]),
)
def test_nobody_waits_for_what_is_there_and_late_is_what_no_on_demand_machine_can_do(
    pool: list[Offer], steps: int, hours: int
) -> None:
    spec = replace(SPEC, steps=steps)
    choices = forecast(Forecaster(spec, FACTS), pool).placement.choices
    if not choices:
        return
    chosen = decide(Forecaster(replace(spec, deadline=f"{hours}h"), FACTS), choices)
    by_name = {choice.name: choice for choice in choices}
    assert chosen.market in by_name, "nothing is cheaper later: all that is known is there now"
    firm = [c for c in choices if not any(offer.spot for offer, _ in c.machines)]
    assert chosen.late is (bool(firm) and all(c.elapsed_h > hours for c in firm))
    if chosen.late:
        assert by_name[chosen.market] in firm
        assert chosen.finish_hours > hours


def test_spot_that_saves_nothing_is_left_alone() -> None:
    dear = replace(SPOT, usd_per_hour=11.9, provider="vast")
    assert decided("200h", FIRM, dear).market == f"1 x {FIRM.name}"


def test_who_is_late_is_told_and_takes_the_fastest() -> None:
    slow = make_offer(id="slow", gpu="A100-SXM4-80GB", gpus=4, usd_per_hour=1.0)
    late = decided("1h", FIRM, slow)
    assert late.late
    assert late.market == f"1 x {FIRM.name}"
    assert "too late" in late.reason


def test_of_machines_of_any_speed_work_is_what_is_paid_for() -> None:
    # Four times as slow at a third of the price is dearer.
    slow = make_offer(id="slow", gpu="A10", gpus=4, usd_per_hour=4.0)
    fast = replace(FIRM, usd_per_hour=12.0)
    assert decided("2000h", fast, slow).market == f"1 x {fast.name}"
    assert decided("2000h", fast, replace(slow, usd_per_hour=0.5)).market == f"1 x {slow.name}"


def test_a_run_without_on_demand_takes_what_there_is() -> None:
    spec = replace(LONG, placement=replace(LONG.placement, spot=Spot.only), deadline="500h")
    forecaster = Forecaster(spec, FACTS)
    choices = forecast(forecaster, [FIRM, SPOT]).placement.choices
    assert decide(forecaster, choices).market == f"1 x {SPOT.name}"
