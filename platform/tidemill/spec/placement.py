"""PlacementSpec and BudgetSpec: where a run may go, and what it may cost.

Filters are hard: an offer that fails one is refused before any price is looked at. None of it
changes what is learned, so none of it is part of a run's identity.
"""

from __future__ import annotations

import re
from dataclasses import field
from enum import StrEnum
from typing import ClassVar

from tidemill.spec.base import Spec, spec

COUNTRY = re.compile(r"[a-z]{2}")


class Tier(StrEnum):
    """How far the owner of a machine can be trusted with what is on it, least first.

    `community` is a stranger's machine, `managed` a known company's data center, and `secure` one
    of the major clouds, with isolation that was audited.
    """

    community = "community"
    managed = "managed"
    secure = "secure"

    @property
    def rank(self) -> int:
        """Higher is more trusted."""
        return list(type(self)).index(self)


class Spot(StrEnum):
    """Whether a machine may be one that its provider can take back."""

    only = "only"
    prefer = "prefer"
    never = "never"


class Network(StrEnum):
    """What connects the machines of one provider and region, slowest first.

    `public` is the internet or a tunnel through it, `private` a network of the provider's own, and
    `fabric` one made for collectives (InfiniBand, EFA, GPUDirect).
    """

    public = "public"
    private = "private"
    fabric = "fabric"

    @property
    def rank(self) -> int:
        """Higher is faster."""
        return list(type(self)).index(self)


@spec
class PlacementSpec(Spec):
    """Which machines a run may use.

    Attributes:
        tier: Least trusted machine that the run may be on; a dataset can ask for more
            (`data.tier`).
        spot: `prefer` takes a spot machine where it is cheaper with all it may lose.
        providers: Names of providers; empty means all that are usable.
        gpus: Names of GPUs, or their beginnings: `H100`, `RTX`; empty means all that fit.
        consumer: Whether consumer cards may be used.
        regions: Beginnings of regions, e.g. `us-east`; empty means all.
        countries: Two-letter codes of the countries, or `eu`, that data may be in; empty means all.
        network: Slowest connection between machines, if there is more than one.
        min_reliability: Least share of time that a machine was up; where that is not stated, only
            0 lets a machine of tier `community` pass.
        min_capability: Least CUDA compute capability; bf16 needs 8.0 in any case.
        disk_gib: Disk of each machine besides image and data.
        image_gib: Container image to fetch before a machine can work.
        max_nodes: Most machines at a time; 0 means as many as there are workers.
    """

    GROUP: ClassVar[str] = "placement"

    tier: Tier = Tier.community
    spot: Spot = Spot.prefer
    providers: list[str] = field(default_factory=list[str])
    gpus: list[str] = field(default_factory=list[str])
    consumer: bool = True
    regions: list[str] = field(default_factory=list[str])
    countries: list[str] = field(default_factory=list[str])
    network: Network = Network.private
    min_reliability: float = 0.0
    min_capability: float = 0.0
    disk_gib: float = 50.0
    image_gib: float = 8.0
    max_nodes: int = 0

    def __post_init__(self) -> None:
        self.require_between(0.0, 1.0, "min_reliability")
        self.require_at_least(0, "min_capability", "disk_gib", "image_gib", "max_nodes")
        for country in self.countries:
            self.require(
                COUNTRY.fullmatch(country) is not None,
                "countries",
                f"{country!r} is no country",
                "use two small letters each, e.g. [us,de], or eu",
            )


@spec
class BudgetSpec(Spec):
    """What a run may cost; 0 sets no limit.

    A limit holds for what is spent, not for what is hoped: shortly before money runs out, the run
    saves a checkpoint and stops, and what it needs for that is kept back.

    Attributes:
        max_usd_per_hour: Dollars an hour, of all machines together.
        max_total_usd: Dollars from first to last, over all launches.
        max_usd_per_gpu_hour: Dollars an hour and GPU, of any machine.
        allow_stale_prices: Whether limits may be judged by prices that are old.
        node_usd_per_hour: Price of a machine without the label `tidemill.io/usd-per-hour`.
        set_aside_usd: Kept for what no machine shows: storage and transfer, as the plan says.
        share: Of the cluster's price that this run bears, if it is not alone there.
        save_s: Seconds kept to save the last checkpoint; more where saving has taken longer.
        leave_s: Seconds until the last machine is given back after that.
    """

    GROUP: ClassVar[str] = "budget"

    max_usd_per_hour: float = 0.0
    max_total_usd: float = 0.0
    max_usd_per_gpu_hour: float = 0.0
    allow_stale_prices: bool = False
    node_usd_per_hour: float = 0.0
    set_aside_usd: float = 0.0
    share: float = 1.0
    save_s: float = 120.0
    leave_s: float = 300.0

    def __post_init__(self) -> None:
        self.require_at_least(0, "max_usd_per_hour", "max_total_usd", "max_usd_per_gpu_hour")
        self.require_at_least(0, "node_usd_per_hour", "set_aside_usd", "save_s", "leave_s")
        self.require_between(0.01, 1.0, "share")

    @property
    def limited(self) -> bool:
        """Whether there is any limit."""
        return max(self.max_usd_per_hour, self.max_total_usd, self.max_usd_per_gpu_hour) > 0
