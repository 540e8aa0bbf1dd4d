"""Where nothing is possible, the change that is named was tried, and leads to machines."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.plan.offers import make_offer, offers
from tests.plan.test_forecast import FACTS, SPEC, market, runs
from tidemill.errors import SpecError
from tidemill.plan.forecast import Forecaster, forecast
from tidemill.plan.offers import Offer
from tidemill.plan.remedies import explain_nothing
from tidemill.spec.base import from_plain, to_plain
from tidemill.spec.placement import BudgetSpec, Network, PlacementSpec, Spot, Tier
from tidemill.spec.run import RunSpec
from tidemill.spec.strategy import Fsdp2Spec, MemorySpec, Recompute

BOX = make_offer(gpus=4, usd_per_hour=12.0)
SPOT = make_offer(id="spot", gpus=4, usd_per_hour=4.0, spot=True)
SINGLES = make_offer(id="single", gpus=1, usd_per_hour=3.0, network=Network.public)
FIXED = replace(SPEC.scale, min_workers=4)
JOINED = replace(SINGLES, network=Network.fabric)
LONG = 100_000
SWITCH = re.compile(r"[a-z_.]+=[^ ,;]+")
pools = st.lists(
    offers.map(lambda offer: replace(offer, tier=Tier.secure, live=True, available=None)),
    min_size=1,
    max_size=4,
    unique_by=lambda offer: offer.id,
)
limited = st.builds(
    lambda steps, budget, deadline, least, nodes: replace(
        SPEC,
        steps=steps,
        budget=budget,
        deadline=deadline,
        scale=replace(SPEC.scale, min_workers=least),
        placement=PlacementSpec(max_nodes=nodes, network=Network.public),
    ),
    st.sampled_from([2000, LONG]),
    st.builds(
        BudgetSpec,
        max_usd_per_hour=st.sampled_from([0.0, 4.0, 10.0]),
        max_total_usd=st.sampled_from([0.0, 1.0, 20.0]),
        max_usd_per_gpu_hour=st.sampled_from([0.0, 2.0]),
    ),
    st.sampled_from(["", "30m", "10h"]),
    st.sampled_from([0, 1]),
    st.sampled_from([0, 1, 2]),
)


def refusal(offers: Sequence[Offer], **wanted: Any) -> SpecError:
    spec = replace(SPEC, **wanted)
    forecaster = Forecaster(spec, FACTS)
    assert not forecast(forecaster, offers).placement.choices
    return explain_nothing(forecaster, offers)


def switched(spec: RunSpec, switch: str) -> RunSpec:
    """A run with a switch that a person typed."""
    key, _, value = switch.partition("=")
    if switch.startswith("strategy="):
        return replace(spec, strategy=Fsdp2Spec())
    if switch == "memory=recompute":
        return replace(spec, memory=MemorySpec(recompute=Recompute.blocks))
    plain = to_plain(spec)
    place = plain
    *groups, last = key.split(".")
    for group in groups:
        place = place[group]
    old = place[last]
    place[last] = [] if value == "[]" else type(old)(value if value != "true" else True)
    return from_plain(RunSpec, plain)


CASES: dict[str, tuple[list[Offer], dict[str, Any], str, str]] = {
    "too dear": ([BOX], {"budget": BudgetSpec(max_total_usd=1.0)}, "budget.max_total_usd", "cost"),
    "too slow": ([BOX], {"deadline": "10m"}, "deadline", "take 0.3 h"),
    "too dear an hour": (
        [BOX],
        {"budget": BudgetSpec(max_usd_per_hour=10.0), "scale": FIXED},
        "placement",
        "$12.00 an hour",
    ),
    "spot is refused": (
        [SPOT],
        {"placement": PlacementSpec(spot=Spot.never)},
        "placement",
        "may be taken back",
    ),
    "only spot will do": (
        [BOX],
        {"placement": PlacementSpec(spot=Spot.only)},
        "placement",
        "is no spot machine",
    ),
    "another kind": ([BOX], {"placement": PlacementSpec(gpus=["B200"])}, "placement", "not among"),
    "another region": ([BOX], {"placement": PlacementSpec(regions=["eu"])}, "placement", "us-east"),
    "not connected": ([SINGLES], {"scale": FIXED}, "scale.workers", "no private network"),
    "too large": (
        [make_offer(gpu="L4", gpus=4)],
        {"batch": replace(SPEC.batch, micro_size=128)},
        "memory",
        "the largest GPU that may be used has 80",
    ),
    "too old a price": (
        [replace(BOX, live=False)],
        {"budget": BudgetSpec(max_total_usd=500.0)},
        "placement",
        "too old to hold a limit by",
    ),
    "too dear an hour together": (
        [JOINED],
        {"budget": BudgetSpec(max_usd_per_hour=10.0), "scale": FIXED},
        "budget.max_usd_per_hour",
        "4 x lambda:single@us-east-1, cost 12.00 usd an hour",
    ),
    "too dear an hour in time": (
        [JOINED],
        {"steps": LONG, "deadline": "20h", "budget": BudgetSpec(max_usd_per_hour=5.0)},
        "budget.max_usd_per_hour",
        "the cheapest machines in time, 2 x lambda:single@us-east-1, cost 6.00 usd an hour",
    ),
    "too dear at any speed": (
        [JOINED],
        {"steps": LONG, "deadline": "20h", "budget": BudgetSpec(max_total_usd=100.0)},
        "budget.max_total_usd",
        "the cheapest machines in time, 2 x ",
    ),
    "too slow with all of them": (
        [JOINED],
        {"steps": LONG, "deadline": "5h", "budget": BudgetSpec(max_usd_per_hour=20.0)},
        "deadline",
        "the fastest machines, 4 x lambda:single@us-east-1, take 9.",
    ),
    "too few machines": (
        [JOINED],
        {"scale": FIXED, "placement": PlacementSpec(max_nodes=3)},
        "placement.max_nodes",
        "3 in all make no group of 4 to 4",
    ),
    "too few machines, at a fair price": (
        [replace(JOINED, usd_per_hour=2.0)],
        {
            "budget": BudgetSpec(max_usd_per_hour=10.0, max_total_usd=50.0),
            "scale": FIXED,
            "placement": PlacementSpec(max_nodes=3),
        },
        "placement.max_nodes",
        "3 in all make no group of 4 to 4",
    ),
    "few and cheap at once": (
        [
            replace(JOINED, usd_per_hour=2.0),
            make_offer(id="pair", gpus=2, usd_per_hour=6.0, network=Network.fabric),
        ],
        {
            "budget": BudgetSpec(max_usd_per_hour=9.0),
            "scale": FIXED,
            "placement": PlacementSpec(max_nodes=2),
        },
        "budget",
        "at once",
    ),
    "too old an architecture": (
        [BOX],
        {"placement": PlacementSpec(min_capability=10.0)},
        "placement",
        "below placement.min_capability=10",
    ),
    "too unreliable": (
        [replace(BOX, reliability=0.9)],
        {"placement": PlacementSpec(min_reliability=0.99)},
        "placement",
        "was up 90.0% of the time",
    ),
    "too dear a GPU": (
        [BOX],
        {"budget": BudgetSpec(max_usd_per_gpu_hour=2.0)},
        "placement",
        "$3.00 a GPU and hour",
    ),
    "a consumer card": (
        [replace(BOX, gpu="RTX-4090", gpu_mem_gib=24.0)],
        {"placement": PlacementSpec(consumer=False)},
        "placement",
        "is a consumer card",
    ),
    "another provider": (
        [BOX],
        {"placement": PlacementSpec(providers=["aws"])},
        "placement",
        "not among placement.providers",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_switch_that_is_named_leads_to_machines(case: str) -> None:
    offers, wanted, key, problem = CASES[case]
    told = refusal(offers, **wanted)
    assert told.key == key
    assert problem in told.problem
    assert SWITCH.findall(told.remedy), told
    assert_promises_are_kept(told, replace(SPEC, **wanted), offers)


def assert_promises_are_kept(told: SpecError, spec: RunSpec, offers: Sequence[Offer]) -> None:
    for switch in SWITCH.findall(told.remedy):
        assert switch.partition("=")[0] not in {"placement.tier", "data.tier"}
        assert "countries" not in switch
        changed = switched(spec, switch)
        assert forecast(Forecaster(changed, FACTS), offers).placement.choices, switch


@settings(max_examples=200)
@given(st.lists(market, min_size=1, max_size=4, unique_by=lambda offer: offer.id), runs)
def test_no_filter_is_named_in_vain(pool: list[Offer], spec: RunSpec) -> None:
    forecaster = Forecaster(spec, FACTS)
    if not forecast(forecaster, pool).placement.choices:
        assert_promises_are_kept(explain_nothing(forecaster, pool), spec, pool)


@settings(max_examples=250)
@given(pools, limited)
def test_no_limit_is_named_in_vain(pool: list[Offer], spec: RunSpec) -> None:
    forecaster = Forecaster(spec, FACTS)
    if forecast(forecaster, pool).placement.choices:
        return
    told = explain_nothing(forecaster, pool)
    assert_promises_are_kept(told, spec, pool)
    if told.key == "deadline":
        hour = spec.budget.max_usd_per_hour or 1e9
        gpu_hour = spec.budget.max_usd_per_gpu_hour or 1e9
        cheap = [o for o in pool if o.usd_per_hour <= hour and o.usd_per_gpu_hour <= gpu_hour]
        chosen = replace(spec.placement, max_nodes=0)
        timed = Forecaster(replace(spec, budget=BudgetSpec(), placement=chosen), FACTS)
        assert not forecast(timed, cheap).placement.choices, "else it is not the deadline"


def test_where_several_limits_bind_none_is_said_to_be_enough() -> None:
    tight = BudgetSpec(max_total_usd=1.0, max_usd_per_hour=4.0)
    told = refusal([JOINED], steps=LONG, deadline="1h", budget=tight)
    assert told.key == "deadline"
    assert told.remedy == "see deadline, budget, scale.workers"


def test_what_only_a_person_may_decide_is_named_without_a_value() -> None:
    abroad = refusal([BOX], placement=PlacementSpec(countries=["eu"]))
    assert abroad.remedy == "see placement.countries"
    old = refusal([make_offer(gpu="T4", gpus=4, gpu_mem_gib=16.0)])
    assert "T4 has no bf16 units" in old.problem
    assert old.remedy == "see precision"
    unknown = refusal([make_offer(gpu="ABACUS-1")])
    assert unknown.remedy == "ask for less"


def test_trust_is_never_given_away() -> None:
    strangers = replace(BOX, tier=Tier.community)
    told = refusal([strangers], data=replace(SPEC.data, tier=Tier.secure))
    assert "tier community, and secure is asked for" in told.problem
    assert "=community" not in str(told)


def test_an_empty_market_is_told_as_one() -> None:
    told = refusal([])
    assert (told.key, told.problem) == ("placement.providers", "nobody offers any machine")
    assert "live=false" in told.remedy


def test_a_deadline_and_a_budget_that_no_machines_keep_at_once() -> None:
    slow = make_offer(id="slow", gpu="L4", gpus=4, usd_per_hour=0.4)
    offers = [BOX, slow]
    told = refusal(offers, deadline="20m", budget=BudgetSpec(max_total_usd=3.0))
    assert told.key == "budget.max_total_usd"
    assert "the cheapest machines in time" in told.problem
