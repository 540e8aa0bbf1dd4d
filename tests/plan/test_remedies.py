"""Where nothing is possible, the change that is named was tried, and leads to machines."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from tests.plan.offers import make_offer
from tests.plan.test_forecast import FACTS, SPEC
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
}


@pytest.mark.parametrize("case", CASES)
def test_a_switch_that_is_named_leads_to_machines(case: str) -> None:
    offers, wanted, key, problem = CASES[case]
    told = refusal(offers, **wanted)
    assert told.key == key
    assert problem in told.problem
    switches = re.findall(r"[a-z_.]+=[^ ]+", told.remedy)
    assert switches, told
    for switch in switches:
        spec = switched(replace(SPEC, **wanted), switch)
        assert forecast(Forecaster(spec, FACTS), offers).placement.choices, switch


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
