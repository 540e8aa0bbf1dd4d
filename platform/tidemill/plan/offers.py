"""Offers: machines that can be rented, what was asked for, and why some are refused.

An offer is the same noun for a hyperscaler's instance type, a stranger's desktop and a row of the
shipped catalogue; what differs between them is in its fields, never in who made it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tidemill.spec.placement import Network, Tier

GIB_PER_GB = 1e9 / 2**30
HOURS_PER_MONTH = 730.0
"""Hours by which providers turn a monthly price into an hourly one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What a provider charges besides the machine, and how long it takes to begin.

    Attributes:
        disk_usd_per_gib_month: Disk of a machine, while it has it.
        object_usd_per_gib_month: Its object storage; None if it has none that lasts.
        egress_usd_per_gib: Bytes from it to the internet.
        ingress_usd_per_gib: Bytes from the internet to it.
        boot_s: Seconds until a machine runs, image not included; paid unless `free_boot`.
        free_boot: Whether it charges only once the image is there and runs.
        down_mbps: Megabits per second from the internet to a machine, where an offer has none.
        step_s: Seconds that it rounds a machine's time up to.
    """

    disk_usd_per_gib_month: float = 0.0
    object_usd_per_gib_month: float | None = None
    egress_usd_per_gib: float = 0.0
    ingress_usd_per_gib: float = 0.0
    boot_s: float = 180.0
    free_boot: bool = False
    down_mbps: float = 1000.0
    step_s: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """Machines of one kind that can be rented.

    Attributes:
        provider: Name of the provider.
        id: What it calls them: an instance type, an ask, a GPU class.
        region: Where they are, in its words; empty if it says nothing.
        country: Two-letter code, small letters; empty if unknown.
        gpu: Name of the GPU, as in `plan/gpus.csv`.
        gpus: GPUs of one machine.
        gpu_mem_gib: Memory of one GPU.
        vcpu: Virtual cores of one machine; 0 if unknown.
        ram_gib: Its memory; 0 if unknown.
        usd_per_hour: Price of one machine.
        spot: Whether the provider may take it back.
        tier: How far its owner can be trusted.
        network: What connects machines of this provider in this region.
        reliability: Share of time that such a machine was up; None if not stated.
        available: Machines that can be had now; None if not stated.
        down_mbps: Megabits per second from the internet; None if not stated.
        rates: What else is charged.
        source: Where the price is from.
        fetched_at: When the price was true, seconds since the epoch; 0 if undated.
        live: Whether it was asked for just now, or comes from a table.
    """

    provider: str
    id: str
    region: str
    country: str = ""
    gpu: str
    gpus: int
    gpu_mem_gib: float
    vcpu: int = 0
    ram_gib: float = 0.0
    usd_per_hour: float
    spot: bool = False
    tier: Tier
    network: Network = Network.public
    reliability: float | None = None
    available: int | None = None
    down_mbps: float | None = None
    rates: Rates = field(default_factory=Rates)
    source: str
    fetched_at: float
    live: bool = False

    @property
    def usd_per_gpu_hour(self) -> float:
        """Price of one GPU."""
        return self.usd_per_hour / self.gpus

    @property
    def name(self) -> str:
        """Provider, kind and place, for a person."""
        where = f"@{self.region}" if self.region else ""
        return f"{self.provider}:{self.id}{where}{' spot' if self.spot else ''}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What is asked of providers; they may answer with more, which is filtered again.

    Attributes:
        gpus: Names of GPUs or their beginnings; empty means any.
        count: Fewest GPUs of one machine.
        most: Most GPUs of one machine; 0 means any number.
        spot: True for spot machines alone, False for none, None for both.
        disk_gib: Disk of one machine.
        ram_gib: Least memory of one machine.
    """

    gpus: tuple[str, ...] = ()
    count: int = 1
    most: int = 0
    spot: bool | None = None
    disk_gib: float = 50.0
    ram_gib: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why something is not among the choices.

    Attributes:
        subject: A provider, or an offer.
        reason: Why.
        remedy: What would change that; empty if nothing a person can set.
    """

    subject: str
    reason: str
    remedy: str = ""
