"""Hazard: who goes how often, from the best that is known."""

from __future__ import annotations

import pytest

from tests.plan.offers import make_offer
from tidemill.plan.hazard import expected_losses, losses_per_hour
from tidemill.spec.placement import Tier


def test_spot_goes_more_often_than_what_is_kept() -> None:
    for provider in ("aws", "vast", "nobody"):
        spot = losses_per_hour(make_offer(provider=provider, spot=True))
        kept = [losses_per_hour(make_offer(provider=provider, tier=tier)) for tier in Tier]
        assert spot > kept[0] > kept[1] > kept[2] > 0


def test_a_stated_reliability_is_believed_of_a_stranger() -> None:
    good, bad = (
        losses_per_hour(make_offer(tier=Tier.community, reliability=share))
        for share in (0.999, 0.9)
    )
    assert bad == pytest.approx(100 * good)


def test_what_a_run_saw_counts_most() -> None:
    assert losses_per_hour(make_offer(spot=True), seen=0.5) == 0.5


def test_losses_add_up_over_machines_and_hours() -> None:
    offer = make_offer(provider="salad", spot=True)
    # 182 in a week on 100 nodes, as Salad says.
    assert expected_losses(offer, 100, 168) == pytest.approx(182, rel=0.05)
