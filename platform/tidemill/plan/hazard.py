"""Hazard: how often machines go that one would have kept, and what that costs a run.

Nobody publishes these rates. The table says what each is from; a run that has seen its own machines
go knows better, and passes what it saw.
"""

from __future__ import annotations

from dataclasses import dataclass

from tidemill.plan.offers import Offer
from tidemill.spec.placement import Tier

HOUR_S = 3600.0
SPOT_PER_HOUR = {
    # Spot traces of 2021-2023 (Bamboo, Parcae, SkyNomad): 5 to 20 % of p3 and V100 machines an
    # hour; AWS's own advisor calls most sizes "5 to 20 % a month", which no trace confirms.
    "aws": 0.10,
    "gcp": 0.10,
    "azure": 0.10,
    # 182 reallocations in 168 hours on 100 nodes (salad-cloud-docs, service performance).
    "salad": 0.011,
    # Outbid at any time; no figure published.
    "vast": 0.15,
}
SPOT_ELSEWHERE = 0.15
KEPT_PER_HOUR = {Tier.community: 0.004, Tier.managed: 0.0008, Tier.secure: 0.0003}
"""Failures of machines that nobody takes back. 419 interruptions of 16,384 GPUs in 54 days (Llama
3, arXiv 2407.21783, table 5) are 0.00016 a machine of 8 and hour; the others are assumed."""
OUTAGE_H = 2.0
"""Hours that an outage lasts, by which a stated reliability becomes a rate; assumed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """What the loss of a machine costs a run.

    Attributes:
        stall_s: Seconds that all others stand still.
        redone_s: Seconds of training that are done twice.
        replaced: Whether the others wait until there is another machine in its place.
    """

    stall_s: float
    redone_s: float = 0.0
    replaced: bool = False


def losses_per_hour(offer: Offer, seen: float | None = None) -> float:
    """Losses per machine and hour.

    Args:
        offer: The machine.
        seen: What this run saw of such machines; None if nothing yet.
    """
    if seen is not None:
        return seen
    if offer.spot:
        return SPOT_PER_HOUR.get(offer.provider, SPOT_ELSEWHERE)
    if offer.reliability is not None and offer.tier is Tier.community:
        return max(0.0, 1.0 - offer.reliability) / OUTAGE_H
    return KEPT_PER_HOUR[offer.tier]


def expected_losses(offer: Offer, machines: int, hours: float) -> float:
    """Machines that a run can expect to lose."""
    return losses_per_hour(offer) * machines * hours
