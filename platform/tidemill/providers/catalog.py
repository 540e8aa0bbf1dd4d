"""Catalogue: offers that Tidemill brings along, each with its source and date.

It is what a plan is made of on a laptop without keys, and no more than that: who wants to hold a
limit by it must say so (`budget.allow_stale_prices`), because marketplaces move by the day.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from importlib import resources

from tidemill.plan.gpus import find_gpu, matches
from tidemill.plan.offers import Demand, Offer
from tidemill.plan.places import country_in, country_of
from tidemill.providers.prices import believe
from tidemill.providers.rates import rates_of
from tidemill.providers.sizes import Size, all_sizes
from tidemill.spec.placement import Network, Tier

TABLE = "offers.csv"
PRIVATE = frozenset({"lambda"})
"""Providers outside the table of sizes whose machines of one region share a network."""


def shipped_offers(demand: Demand) -> list[Offer]:
    """What of the catalogue meets a demand."""
    return [offer for offer in _all() if meets(offer, demand)]


@cache
def _all() -> tuple[Offer, ...]:
    table = resources.files("tidemill.providers").joinpath(TABLE).read_text(encoding="utf-8")
    found = (
        listed_offer(
            row | {"gpu_mem_gib": 0.0},
            spot=bool(row["spot"]),
            tier=Tier(row["tier"]),
            fetched_at=_seconds(row["date"]),
        )
        for row in csv.DictReader(table.splitlines())
    )
    return tuple(offer for offer in found if offer is not None)


def listed_offer(
    row: Mapping[str, str | float], *, spot: bool, tier: Tier, fetched_at: float
) -> Offer | None:
    """A row of somebody's list; None if its GPU is not known or its price cannot be believed.

    Args:
        row: `provider`, `id`, `region`, `gpu`, `gpus`, `gpu_mem_gib` (0 if not stated),
            `usd_per_hour` and `source`.
        spot: Whether the machine may be taken back.
        tier: How far its owner can be trusted.
        fetched_at: When the price was true, seconds since the epoch; 0 if undated.
    """
    size = _sizes().get((str(row["provider"]), str(row["id"])))
    stated = find_gpu(str(row["gpu"]), float(row["gpu_mem_gib"] or 0))
    gpu = find_gpu(size.gpu) if size else stated  # others say H100 of boards and cards alike
    gpus = int(row["gpus"])
    usd_per_hour = believe(row["usd_per_hour"], gpus)
    if gpu is None or usd_per_hour is None:
        return None
    provider, region = str(row["provider"]), str(row["region"])
    offer = Offer(
        provider=provider,
        id=str(row["id"]),
        region=region,
        country=country_of(region) or country_in(region),
        gpu=gpu.name,
        gpus=gpus,
        gpu_mem_gib=gpu.memory_gib,
        usd_per_hour=usd_per_hour,
        spot=spot,
        tier=tier,
        network=Network.private if provider in PRIVATE else Network.public,
        rates=rates_of(provider),
        source=str(row["source"]),
        fetched_at=fetched_at,
    )
    if size is None:
        return offer
    return replace(offer, vcpu=size.vcpu, ram_gib=size.ram_gib, network=size.network)


def meets(offer: Offer, demand: Demand) -> bool:
    """Whether an offer is what was asked for."""
    return (
        demand.count <= offer.gpus <= (demand.most or offer.gpus)
        and matches(offer.gpu, demand.gpus)
        and demand.spot in {None, offer.spot}
    )


@cache
def _sizes() -> Mapping[tuple[str, str], Size]:
    return {(size.provider, size.id): size for size in all_sizes()}


def _seconds(date: str) -> float:
    return datetime.fromisoformat(date).replace(tzinfo=UTC).timestamp() if date else 0.0
