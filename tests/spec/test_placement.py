"""Placement and budget: what cannot be is refused with its key."""

from __future__ import annotations

from typing import Any

import pytest

from tidemill.errors import SpecError
from tidemill.spec.placement import BudgetSpec, Network, PlacementSpec, Tier


@pytest.mark.parametrize(
    ("spec", "wrong", "key"),
    [
        (PlacementSpec, {"min_reliability": 1.5}, "placement.min_reliability"),
        (PlacementSpec, {"countries": ["Germany"]}, "placement.countries"),
        (PlacementSpec, {"max_nodes": -1}, "placement.max_nodes"),
        (PlacementSpec, {"disk_gib": -1.0}, "placement.disk_gib"),
        (BudgetSpec, {"max_total_usd": -5.0}, "budget.max_total_usd"),
        (BudgetSpec, {"max_usd_per_hour": float("nan")}, "budget.max_usd_per_hour"),
        (BudgetSpec, {"max_usd_per_gpu_hour": float("inf")}, "budget.max_usd_per_gpu_hour"),
    ],
)
def test_what_cannot_be_names_its_key(spec: Any, wrong: dict[str, Any], key: str) -> None:
    with pytest.raises(SpecError) as told:
        spec(**wrong)
    assert told.value.key == key


def test_tiers_and_networks_have_an_order() -> None:
    assert Tier.community.rank < Tier.managed.rank < Tier.secure.rank
    assert Network.public.rank < Network.private.rank < Network.fabric.rank


def test_a_budget_without_figures_is_no_limit() -> None:
    assert not BudgetSpec().limited
    assert BudgetSpec(max_total_usd=1.0).limited
