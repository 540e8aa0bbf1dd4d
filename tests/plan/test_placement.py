"""Placement: never worse than trying everything, never past a limit, and able to say why."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.plan.offers import (
    every_mix,
    hours,
    is_allowed,
    make_offer,
    offers,
    questions,
)
from tidemill.plan.bill import MICRO, Haul, make_bill, make_share, waiting_s
from tidemill.plan.hazard import HOUR_S, Recovery
from tidemill.plan.mixes import Limits
from tidemill.plan.offers import Offer
from tidemill.plan.placement import Choice, Machines, Question, explain, place
from tidemill.spec.placement import Network


def as_choice(mix: Machines, question: Question) -> Choice:
    """A mix as it would be billed."""
    world = sum(offer.gpus * count for offer, count in mix)
    machines = sum(count for _, count in mix)
    slowest = min((offer.network for offer, _ in mix), key=lambda network: network.rank)
    took = max(hours(offer.gpu, world, None if machines == 1 else slowest) for offer, _ in mix)
    work = question.work(world, took, alone=machines == 1)
    standing_h = sum(make_share(offer, work).standing_h * count for offer, count in mix)
    wait_h = max(waiting_s(offer, question.haul) for offer, _ in mix) / HOUR_S
    return Choice(
        machines=mix,
        world=world,
        hours=took,
        elapsed_h=took + wait_h + standing_h,
        bill=make_bill(mix, work),
    )


@settings(max_examples=300)
@given(st.lists(offers, min_size=1, max_size=6), questions)
def test_never_worse_than_trying_everything(pool: list[Offer], question: Question) -> None:
    # Of one region, all machines are connected alike.
    connected = {(offer.provider, offer.region): offer.network for offer in pool}
    pool = [replace(offer, network=connected[offer.provider, offer.region]) for offer in pool]
    every = [as_choice(mix, question) for mix in every_mix(pool, max(question.worlds))]
    allowed = [choice for choice in every if is_allowed(choice, question)]
    best = place(pool, question).best
    if best is None:
        assert not allowed
        return
    assert is_allowed(best, question)
    assert best.bill == as_choice(best.machines, question).bill
    cheapest = min(choice.bill.total for choice in allowed)
    assert best.bill.total <= cheapest + 10  # millionths: terms are rounded one by one


@given(st.lists(offers, min_size=1, max_size=6), questions)
def test_every_offer_is_used_or_refused_for_a_reason(pool: list[Offer], question: Question) -> None:
    answer = place(pool, question)
    used = {offer.name for choice in answer.choices for offer, _ in choice.machines}
    told = {refusal.subject for refusal in answer.refused}
    assert used | told == {offer.name for offer in pool}
    assert not used & told
    assert all(refusal.reason for refusal in answer.refused)
    totals = [choice.bill.total for choice in answer.choices]
    assert totals == sorted(totals)
    assert all(is_allowed(choice, question) for choice in answer.choices)


def ask(**wanted: object) -> Question:
    usual: dict[str, object] = {
        "worlds": (1, 2, 4, 8),
        "hours": hours,
        "haul": Haul(image_gib=8.0, dataset_gib=10.0),
        "recovery": lambda _hours, _alone: Recovery(stall_s=2.0),
        "network": Network.private,
        "limits": Limits(),
    }
    return Question(**usual | wanted)  # type: ignore[arg-type]


def test_two_regions_do_not_train_together() -> None:
    here = make_offer(id="a", region="here", available=2)
    there = make_offer(id="b", region="there", available=2)
    best = place([here, there], ask(worlds=(4,))).best
    assert best is None
    best = place([here, replace(there, region="here")], ask(worlds=(4,))).best
    assert best is not None
    assert best.world == 4


def test_a_machine_without_a_network_trains_alone() -> None:
    alone = make_offer(gpus=4, network=Network.public)
    best = place([alone], ask(worlds=(4, 8))).best
    assert best is not None
    assert best.machines == ((alone, 1),)


def test_a_deadline_buys_more_machines() -> None:
    offer = make_offer()
    slow = place([offer], ask()).best
    fast = place([offer], ask(limits=Limits(hours=3.0))).best
    assert slow is not None
    assert fast is not None
    assert fast.world > slow.world
    assert fast.elapsed_h <= 3.0 < slow.elapsed_h


def test_a_cheap_gpu_with_dear_transfer_loses_and_the_reason_is_transfer() -> None:
    haul = Haul(
        dataset_gib=2000.0, home="aws", home_region="us-east-1", home_egress_usd_per_gib=0.09
    )
    near = make_offer(provider="aws", id="near", usd_per_hour=4.0)
    far = make_offer(provider="vast", id="far", usd_per_hour=3.0)
    answer = place([near, far], ask(worlds=(1,), haul=haul))
    first, second = answer.choices
    assert first.machines == ((near, 1),)
    assert explain(first, second).startswith("+$")
    assert "transfer in +$180.00" in explain(first, second)


def test_what_cannot_be_names_the_key_to_change() -> None:
    dear = make_offer(usd_per_hour=90.0)
    refused = place([dear], ask(limits=Limits(usd_per_hour=50.0))).refused
    assert [(why.reason, why.remedy) for why in refused] == [
        ("$90.00 an hour", "budget.max_usd_per_hour=90.00")
    ]
    refused = place([make_offer()], ask(limits=Limits(hours=0.1))).refused
    assert refused[0].remedy.startswith("deadline=")
    refused = place([make_offer()], ask(limits=Limits(usd=1.0))).refused
    assert refused[0].remedy.startswith("budget.max_total_usd=")
    refused = place([make_offer(gpus=16)], ask()).refused
    assert refused[0].remedy == "scale.workers=16"


def test_an_answer_is_the_same_whatever_the_order() -> None:
    pool = [make_offer(id=str(n), usd_per_hour=2.0 + n % 3, gpus=1 + n % 2) for n in range(12)]
    assert place(pool, ask()).best == place(pool[::-1], ask()).best


def test_a_large_market_is_answered_at_once() -> None:
    pool = [
        make_offer(id=str(n), usd_per_hour=2.0 + (n * 37 % 101) / 50, gpus=(1, 2, 4, 8)[n % 4])
        for n in range(400)
    ]
    best = place(pool, ask(worlds=tuple(range(1, 33)))).best
    assert best is not None
    assert best.bill.total > 0
    assert best.bill.usd == best.bill.total / MICRO
