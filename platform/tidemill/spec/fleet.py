"""What the door to machines is asked for: what there is, and what it would really cost."""

from __future__ import annotations

from dataclasses import field
from enum import StrEnum

from tidemill.spec.base import Spec, spec
from tidemill.spec.doors import Format
from tidemill.spec.placement import Network, Spot, Tier


class FleetAction(StrEnum):
    """What to do."""

    offers = "offers"
    providers = "providers"


@spec
class FleetSpec(Spec):
    """Machines that can be rented, and who rents them out.

    Attributes:
        action: `offers` lists machines, cheapest first; `providers` who was asked, and what is
            known of them.
        gpu: Name of the GPU, or its beginning: `H100`, `RTX`; empty means any.
        gpus: Fewest GPUs of one machine.
        tier: Least trusted owner.
        spot: Whether to show machines that their provider may take back.
        consumer: Whether to show consumer cards.
        providers: Names of providers to ask; empty means all.
        regions: Beginnings of regions; empty means all.
        countries: Two-letter codes of countries, or `eu`; empty means all.
        network: Slowest connection between machines of one region.
        min_reliability: Least share of time that a machine of tier `community` was up.
        max_usd_per_gpu_hour: Dearest GPU; 0 sets no limit.
        hours: Hours of work that effective prices spread the costs of starting over.
        data_gib: Dataset that a machine has to fetch.
        image_gib: Container image that it has to fetch.
        disk_gib: Its disk besides these two.
        top: Offers to list; 0 lists all.
        live: Whether to ask the providers; else the shipped catalogue answers.
        format: How the answer is written.
    """

    action: FleetAction
    gpu: str = ""
    gpus: int = 1
    tier: Tier = Tier.community
    spot: Spot = Spot.prefer
    consumer: bool = True
    providers: list[str] = field(default_factory=list[str])
    regions: list[str] = field(default_factory=list[str])
    countries: list[str] = field(default_factory=list[str])
    network: Network = Network.public
    min_reliability: float = 0.0
    max_usd_per_gpu_hour: float = 0.0
    hours: float = 10.0
    data_gib: float = 0.0
    image_gib: float = 8.0
    disk_gib: float = 50.0
    top: int = 20
    live: bool = True
    format: Format = Format.text

    def __post_init__(self) -> None:
        self.require_at_least(1, "gpus")
        self.require_between(0.0, 1.0, "min_reliability")
        self.require(self.hours > 0, "hours", f"{self.hours} is no time", "use e.g. hours=10")
        self.require_at_least(0, "hours", "data_gib", "image_gib", "disk_gib", "top")
        self.require_at_least(0, "max_usd_per_gpu_hour")
