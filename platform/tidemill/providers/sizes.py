"""Sizes: the machines that a major cloud sells, from a table that Tidemill brings along.

Their price lists name a size and little else; which GPUs are in it, how many, and what connects its
machines is known from their documents. A size that is not in the table is not offered.
"""

from __future__ import annotations

import csv
import time
from dataclasses import dataclass
from functools import cache
from importlib import resources

from tidemill.plan.gpus import matches, name_gpu
from tidemill.plan.offers import Demand, Offer
from tidemill.plan.places import country_of
from tidemill.providers.prices import believe, believe_spot
from tidemill.providers.rates import rates_of
from tidemill.spec.placement import Network, Tier

TABLE = "sizes.csv"


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """One kind of machine.

    Attributes:
        provider: Who sells it.
        id: What it is called there.
        gpu: Name of its GPUs, as in `plan/gpus.csv`.
        gpus: How many of them.
        gpu_mem_gib: Memory of one.
        vcpu: Virtual cores.
        ram_gib: Memory of the machine.
        network: What connects several in one region.
        ssd_gib: Local disk that is always part of it and is paid for apart.
        spot_only: Whether it is not sold on demand, although a price for that may be listed.
    """

    provider: str
    id: str
    gpu: str
    gpus: int
    gpu_mem_gib: float
    vcpu: int
    ram_gib: float
    network: Network
    ssd_gib: float
    spot_only: bool


@cache
def all_sizes() -> tuple[Size, ...]:
    """The whole table."""
    table = resources.files("tidemill.providers").joinpath(TABLE).read_text(encoding="utf-8")
    return tuple(
        Size(
            provider=row["provider"],
            id=row["id"],
            gpu=row["gpu"],
            gpus=int(row["gpus"]),
            gpu_mem_gib=name_gpu(row["gpu"])[1],
            vcpu=int(row["vcpu"]),
            ram_gib=float(row["ram_gib"]),
            network=Network(row["network"]),
            ssd_gib=float(row["ssd_gib"]),
            spot_only=row["market"] == "spot",
        )
        for row in csv.DictReader(table.splitlines())
    )


def sizes_for(provider: str, demand: Demand) -> list[Size]:
    """What of a provider's sizes meets a demand."""
    return [
        size
        for size in all_sizes()
        if size.provider == provider
        and demand.count <= size.gpus <= (demand.most or size.gpus)
        and size.ram_gib >= demand.ram_gib
        and matches(size.gpu, demand.gpus)
    ]


def offers_of(
    size: Size,
    region: str,
    *,
    full_usd: float | str | None,
    spot_usd: float | str | None,
    source: str,
) -> list[Offer]:
    """A size in a region, at each of its prices that can be believed.

    Args:
        size: The kind of machine.
        region: Where it is.
        full_usd: Dollars an hour on demand, as listed.
        spot_usd: Dollars an hour as a spot machine, as listed.
        source: Where the prices are from.
    """
    full = believe(full_usd, size.gpus)
    spot = believe_spot(spot_usd, full, size.gpus)
    priced = ((None if size.spot_only else full, False), (spot, True))
    return [
        Offer(
            provider=size.provider,
            id=size.id,
            region=region,
            country=country_of(region),
            gpu=size.gpu,
            gpus=size.gpus,
            gpu_mem_gib=size.gpu_mem_gib,
            vcpu=size.vcpu,
            ram_gib=size.ram_gib,
            usd_per_hour=usd,
            spot=is_spot,
            tier=Tier.secure,
            network=size.network,
            rates=rates_of(size.provider),
            source=source,
            fetched_at=time.time(),
            live=True,
        )
        for usd, is_spot in priced
        if usd is not None
    ]
