"""Catalogue: offers that Tidemill brings along, each with its source and date.

It is what a plan is made of on a laptop without keys, and no more than that: who wants to hold a
limit by it must say so (`budget.allow_stale_prices`), because marketplaces move by the day.
"""

from __future__ import annotations

import csv
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
    return [
        offer
        for offer in _all()
        if demand.count <= offer.gpus <= (demand.most or offer.gpus)
        and matches(offer.gpu, demand.gpus)
        and demand.spot in {None, offer.spot}
    ]


@cache
def _all() -> tuple[Offer, ...]:
    table = resources.files("tidemill.providers").joinpath(TABLE).read_text(encoding="utf-8")
    sizes = {(size.provider, size.id): size for size in all_sizes()}
    found = (_offer_of(row, sizes) for row in csv.DictReader(table.splitlines()))
    return tuple(offer for offer in found if offer is not None)


def _offer_of(row: dict[str, str], sizes: dict[tuple[str, str], Size]) -> Offer | None:
    gpu, gpus = find_gpu(row["gpu"]), int(row["gpus"])
    usd_per_hour = believe(row["usd_per_hour"], gpus)
    if gpu is None or usd_per_hour is None:
        return None
    provider, region = row["provider"], row["region"]
    offer = Offer(
        provider=provider,
        id=row["id"],
        region=region,
        country=country_of(region) or country_in(region),
        gpu=gpu.name,
        gpus=gpus,
        gpu_mem_gib=gpu.memory_gib,
        usd_per_hour=usd_per_hour,
        spot=bool(row["spot"]),
        tier=Tier(row["tier"]),
        network=Network.private if provider in PRIVATE else Network.public,
        rates=rates_of(provider),
        source=row["source"],
        fetched_at=_seconds(row["date"]),
    )
    size = sizes.get((provider, row["id"]))
    if size is None:
        return offer
    return replace(offer, vcpu=size.vcpu, ram_gib=size.ram_gib, network=size.network)


def _seconds(date: str) -> float:
    return datetime.fromisoformat(date).replace(tzinfo=UTC).timestamp() if date else 0.0
