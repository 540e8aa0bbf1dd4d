"""Filters: every one refuses what it is for, names the key, and lets nothing through."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.plan.offers import make_offer, offers
from tidemill.plan.filters import STALE_S, Rule, is_stale, refuse, sift
from tidemill.plan.gpus import Market, all_gpus
from tidemill.plan.offers import Offer
from tidemill.spec.placement import BudgetSpec, PlacementSpec, Spot, Tier
from tidemill.spec.training import PrecisionKind

NOW_S = 2e9


def make_rule(**wanted: Any) -> Rule:
    usual: dict[str, Any] = {
        "placement": PlacementSpec(),
        "budget": BudgetSpec(),
        "tier": Tier.community,
        "precision": PrecisionKind.bf16,
        "fits": lambda _: True,
        "now_s": NOW_S,
    }
    return Rule(**usual | wanted)


@pytest.mark.parametrize(
    ("offer", "rule", "reason", "remedy"),
    [
        ({}, {"tier": Tier.secure}, "tier managed", "placement.tier"),
        ({}, {"placement": PlacementSpec(providers=["aws"])}, "providers", "add lambda"),
        ({"country": "us"}, {"placement": PlacementSpec(countries=["eu"])}, "in us", "countries"),
        ({"country": ""}, {"placement": PlacementSpec(countries=["us"])}, "unknown", "countries"),
        ({}, {"placement": PlacementSpec(regions=["eu-"])}, "us-east-1", "regions"),
        ({"gpu": "L4"}, {"placement": PlacementSpec(gpus=["H100"])}, "L4", "placement.gpus"),
        ({"gpu": "X900"}, {}, "not known", ""),
        ({"gpu": "RTX-4090"}, {"placement": PlacementSpec(consumer=False)}, "consumer", "true"),
        ({"gpu": "T4"}, {}, "no bf16", "precision=fp16"),
        ({}, {"placement": PlacementSpec(min_capability=10.0)}, "9", "min_capability"),
        ({}, {"fits": lambda _: False}, "does not fit", "micro_size"),
        ({"spot": True}, {"placement": PlacementSpec(spot=Spot.never)}, "back", "prefer"),
        ({}, {"placement": PlacementSpec(spot=Spot.only)}, "no spot", "prefer"),
        (
            {"reliability": 0.9},
            {"placement": PlacementSpec(min_reliability=0.95)},
            "90.0%",
            "min_reliability",
        ),
        (
            {"tier": Tier.community},
            {"placement": PlacementSpec(min_reliability=0.95)},
            "no reliability",
            "=0",
        ),
        ({"available": 0}, {}, "none left", ""),
        ({}, {"budget": BudgetSpec(max_usd_per_gpu_hour=2.5)}, "$3.00 a GPU", "raise"),
        (
            {"gpus": 8, "usd_per_hour": 30.0},
            {"budget": BudgetSpec(max_usd_per_hour=20)},
            "$30.00 an hour",
            "raise",
        ),
    ],
)
def test_what_is_refused_says_why_and_what_would_help(
    offer: dict[str, Any], rule: dict[str, Any], reason: str, remedy: str
) -> None:
    told = refuse(make_offer(**offer), make_rule(**rule))
    assert told is not None
    assert reason in told.reason
    assert remedy in told.remedy
    assert refuse(make_offer(), make_rule()) is None


def test_an_old_price_holds_no_limit_unless_that_is_allowed() -> None:
    old = make_offer(live=False, fetched_at=NOW_S - STALE_S - 1)
    limited = BudgetSpec(max_total_usd=50)
    assert refuse(old, make_rule()) is None
    told = refuse(old, make_rule(budget=limited))
    assert told is not None
    assert told.remedy == "budget.allow_stale_prices=true"
    assert "30 days old" in told.reason
    undated = refuse(replace(old, fetched_at=0.0), make_rule(budget=limited))
    assert undated is not None
    assert "undated" in undated.reason
    allowed = BudgetSpec(max_total_usd=50, allow_stale_prices=True)
    assert refuse(old, make_rule(budget=allowed)) is None
    assert not is_stale(replace(old, fetched_at=NOW_S - STALE_S + 1), NOW_S)


placements = st.builds(
    PlacementSpec,
    tier=st.sampled_from(Tier),
    spot=st.sampled_from(Spot),
    providers=st.sampled_from([[], ["aws"]]),
    gpus=st.sampled_from([[], ["H100"], ["L4", "A100"]]),
    consumer=st.booleans(),
    regions=st.sampled_from([[], ["here"]]),
    countries=st.sampled_from([[], ["us"], ["eu"]]),
    min_reliability=st.sampled_from([0.0, 0.95]),
    min_capability=st.sampled_from([0.0, 8.5]),
)
budgets = st.builds(
    BudgetSpec,
    max_usd_per_hour=st.sampled_from([0.0, 5.0]),
    max_usd_per_gpu_hour=st.sampled_from([0.0, 2.0]),
    max_total_usd=st.sampled_from([0.0, 50.0]),
    allow_stale_prices=st.booleans(),
)


@given(st.lists(offers, max_size=8), placements, budgets, st.sampled_from(Tier))
def test_nothing_gets_through_that_should_not(
    pool: list[Offer], chosen: PlacementSpec, budget: BudgetSpec, tier: Tier
) -> None:
    rule = make_rule(placement=chosen, budget=budget, tier=tier)
    kept, refused = sift(pool, rule)
    assert len(kept) + len(refused) == len(pool)
    for offer in kept:
        gpu = all_gpus()[offer.gpu]
        assert offer.tier.rank >= tier.rank
        assert not chosen.providers or offer.provider in chosen.providers
        assert not chosen.gpus or any(offer.gpu.startswith(name) for name in chosen.gpus)
        assert not chosen.regions or offer.region in chosen.regions
        assert (
            not chosen.countries or offer.country == {"us": "us", "eu": "de"}[chosen.countries[0]]
        )
        assert chosen.consumer or gpu.market is not Market.consumer
        assert gpu.capability >= chosen.min_capability
        assert chosen.spot is Spot.prefer or offer.spot is (chosen.spot is Spot.only)
        assert offer.reliability is None or offer.reliability >= chosen.min_reliability
        assert offer.available != 0
        for limit, price in (
            (budget.max_usd_per_hour, offer.usd_per_hour),
            (budget.max_usd_per_gpu_hour, offer.usd_per_gpu_hour),
        ):
            assert not limit or price <= limit
        assert offer.live or budget.allow_stale_prices or not budget.limited
