"""The bill: terms that add up to the cent, and each of them by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.plan.offers import hauls, make_offer, offers, recoveries
from tidemill.plan.bill import (
    MICRO_PER_CENT,
    Bill,
    Haul,
    Work,
    fetch_s,
    in_cents,
    make_bill,
    waiting_s,
)
from tidemill.plan.hazard import Recovery, losses_per_hour
from tidemill.plan.offers import Offer, Rates

micros = st.integers(0, 10**12)


@given(st.dictionaries(st.text(min_size=1), micros, min_size=1))
def test_cents_add_up_to_the_rounded_sum(terms: dict[str, int]) -> None:
    cents = in_cents(terms)
    assert sum(cents.values()) == (sum(terms.values()) + MICRO_PER_CENT // 2) // MICRO_PER_CENT
    assert all(abs(cents[name] - terms[name] / MICRO_PER_CENT) < 1 for name in terms)


@given(
    st.lists(st.tuples(offers, st.integers(1, 5)), min_size=1, max_size=4),
    st.floats(0.1, 200),
    hauls,
    recoveries,
)
def test_terms_are_never_negative_and_add_up(
    machines: list[tuple[Offer, int]], hours: float, haul: Haul, recovery: Recovery
) -> None:
    world = sum(offer.gpus * count for offer, count in machines)
    bill = make_bill(machines, Work(world=world, hours=hours, haul=haul, recovery=recovery))
    assert bill.total == sum(bill.terms.values())
    assert all(micro >= 0 for micro in bill.terms.values())
    assert sum(bill.cents().values()) == round(math.floor(bill.total / MICRO_PER_CENT + 0.5))


def test_every_term_by_hand() -> None:
    rates = Rates(
        disk_usd_per_gib_month=0.073,
        egress_usd_per_gib=0.05,
        ingress_usd_per_gib=0.01,
        boot_s=360.0,
    )
    offer = make_offer(usd_per_hour=10.0, gpus=2, down_mbps=8589.934592, rates=rates, spot=True)
    haul = Haul(
        dataset_gib=700.0,
        image_gib=20.0,
        disk_gib=30.0,
        checkpoint_gib=4.0,
        saves=25,
        kept=2,
        home="aws",
        home_egress_usd_per_gib=0.09,
        home_usd_per_gib_month=0.73,
    )
    recovery = Recovery(stall_s=36.0, redone_s=324.0)
    bill = make_bill([(offer, 3)], Work(world=6, hours=5.0, haul=haul, recovery=recovery))
    assert fetch_s(offer, haul) == pytest.approx(720.0)
    wait_h = waiting_s(offer, haul) / 3600
    assert wait_h == pytest.approx(0.3)
    lost = losses_per_hour(offer) * 3 * 5.0
    expected = {
        "gpus": 150.0,
        "disk": 3 * 750 * 0.073 / 730 * 5.3,
        "storage": 708 * 0.73 / 730 * 5.0,
        "transfer_in": 3 * (700 * 0.09 + 720 * 0.01),
        "transfer_out": 100 * 0.05,
        "waiting": 9.0,
        "losses": lost * (30.0 * 0.1 + 3.0 + 700 * 0.09 + 720 * 0.01),
    }
    found = {name: micro / 1e6 for name, micro in bill.terms.items()}
    assert found == pytest.approx(expected, abs=1e-5)


def test_what_is_next_to_its_data_pays_no_transfer() -> None:
    haul = Haul(dataset_gib=100.0, checkpoint_gib=10.0, saves=9, home="aws", home_region="here")
    haul_out = Haul(dataset_gib=100.0, checkpoint_gib=10.0, saves=9, home_egress_usd_per_gib=0.09)
    offer = make_offer(provider="aws", region="here", rates=Rates(egress_usd_per_gib=0.09))
    near, far = (
        make_bill([(offer, 1)], Work(world=1, hours=1, haul=h, recovery=Recovery(stall_s=1)))
        for h in (haul, haul_out)
    )
    assert (near.transfer_in, near.transfer_out) == (0, 0)
    assert (far.transfer_in, far.transfer_out) == (9_000_000, 8_100_000)


def test_time_is_rounded_up_to_what_is_billed() -> None:
    hourly = make_offer(usd_per_hour=6.0, rates=Rates(step_s=3600.0))
    exact = make_offer(usd_per_hour=6.0)
    work = Work(world=1, hours=1.25, haul=Haul(), recovery=Recovery(stall_s=0.0))
    assert make_bill([(hourly, 1)], work).gpus == 12_000_000
    assert make_bill([(exact, 1)], work).gpus == 7_500_000


def test_who_starts_for_free_pays_no_waiting() -> None:
    offer = make_offer(rates=Rates(boot_s=600.0, free_boot=True))
    work = Work(world=1, hours=2, haul=Haul(image_gib=8.0), recovery=Recovery(stall_s=0.0))
    assert make_bill([(offer, 1)], work).waiting == 0


def test_others_that_wait_for_another_machine_are_paid_for() -> None:
    offer = make_offer(spot=True, usd_per_hour=5.0, rates=Rates(boot_s=720.0))
    alone, waiting = (
        make_bill(
            [(offer, 4)],
            Work(world=4, hours=10, haul=Haul(), recovery=Recovery(stall_s=0.0, replaced=replaced)),
        ).losses
        for replaced in (False, True)
    )
    lost = losses_per_hour(offer) * 4 * 10
    assert alone == pytest.approx(lost * 5.0 * 0.2 * 1e6, abs=1)
    assert waiting == pytest.approx(lost * 20.0 * 0.2 * 1e6, abs=1)


def test_an_empty_bill_is_nothing() -> None:
    assert Bill().total == 0
    assert Bill().usd == 0.0
