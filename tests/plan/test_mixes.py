"""Mixes: what is pruned never matters, and limits hold for the whole of a mix."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.plan.offers import every_mix, hauls, limits, make_offer, offers, recoveries
from tidemill.plan.bill import Haul, Work, make_bill
from tidemill.plan.hazard import Recovery
from tidemill.plan.mixes import Limits, cheapest_mix, lone_mix
from tidemill.plan.offers import Offer


@given(
    st.lists(offers, min_size=1, max_size=5), st.integers(1, 6), hauls, recoveries, st.floats(1, 50)
)
def test_without_limits_it_is_the_cheapest_of_all(
    pool: list[Offer], world: int, haul: Haul, recovery: Recovery, hours: float
) -> None:
    work = Work(world=world, hours=hours, haul=haul, recovery=recovery)
    possible = [
        mix
        for mix in every_mix(pool, world)
        if sum(offer.gpus * count for offer, count in mix) == world
        and all(offer.available is None or count <= offer.available for offer, count in mix)
    ]
    found = cheapest_mix(pool, work, Limits())
    if found is None:
        assert not possible
        return
    least = min(make_bill(mix, work).total for mix in possible)
    assert make_bill(found, work).total <= least + 10


@given(offers, st.integers(1, 8), hauls, recoveries, limits)
def test_one_offer_alone_needs_no_search(
    offer: Offer, world: int, haul: Haul, recovery: Recovery, limit: Limits
) -> None:
    work = Work(world=world, hours=3.0, haul=haul, recovery=recovery)
    assert lone_mix(offer, work, limit) == cheapest_mix([offer], work, limit)


def test_a_limit_by_the_hour_prefers_what_is_cheaper_by_the_hour() -> None:
    # Cheaper in all, since it starts at once, but dearer by the hour.
    quick = make_offer(id="quick", usd_per_hour=3.0)
    slow = make_offer(id="slow", usd_per_hour=2.9, down_mbps=1.0)
    work = Work(world=2, hours=1.0, haul=Haul(image_gib=8.0), recovery=Recovery(stall_s=1.0))
    assert cheapest_mix([quick, slow], work, Limits()) == ((quick, 2),)
    assert cheapest_mix([quick, slow], work, Limits(usd_per_hour=5.85)) == ((slow, 2),)
    both = cheapest_mix([quick, slow], work, Limits(usd_per_hour=5.95))
    assert sorted(both or (), key=lambda item: item[0].id) == [(quick, 1), (slow, 1)]
    assert cheapest_mix([quick, slow], work, Limits(usd_per_hour=5.0)) is None


def test_no_more_machines_than_there_are() -> None:
    few, dear = make_offer(id="few", available=1), make_offer(id="dear", usd_per_hour=9.0)
    work = Work(world=3, hours=1.0, haul=Haul(), recovery=Recovery(stall_s=1.0))
    assert cheapest_mix([few, dear], work, Limits()) == ((few, 1), (dear, 2))
