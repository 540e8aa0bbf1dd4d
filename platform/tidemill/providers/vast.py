"""Vast: a market of other people's machines, from a data center to a desk, for hire or for a bid.

Every host sets its own prices, for traffic in both directions as for the machine, so each offer has
rates of its own. Only verified machines with an open port are asked for. A bid may be beaten at any
time: then the machine stops at once, and its disk is billed until it is destroyed.

Source: Vast.ai API (vast-ai/docs@c6246226).
"""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache
from importlib import resources
from typing import Any, ClassVar, Self

from tidemill.plan.gpus import TABLE, matches, name_gpu
from tidemill.plan.offers import GIB_PER_GB, Demand, Offer, Rates
from tidemill.plan.places import country_in
from tidemill.providers.base import Capabilities, Kind, Status, require_key
from tidemill.providers.http import Api, ProviderError, Trouble, Wire
from tidemill.providers.prices import believe
from tidemill.providers.rates import rates_of
from tidemill.spec.placement import Network, Tier

URL = "https://console.vast.ai"
PATH = "/api/v0/bundles/"
APART_S = 1.0
"""Some distance is asked for, its length is not said; assumed."""
LIMIT = 3000
"""Most offers of an answer, cheapest first; it is cut to far fewer where no limit is given."""
MIB_PER_GIB = 1024


class Ask(Wire):
    """A machine, or a part of one, at a price."""

    id: int
    gpu_name: str
    gpu_ram: float
    num_gpus: int
    cpu_cores: float | None = None
    cpu_cores_effective: float | None = None
    cpu_ram: float | None = None
    dph_base: float | None = None
    dph_total: float | None = None
    storage_total_cost: float | None = None
    min_bid: float | None = None
    storage_cost: float | None = None
    inet_up_cost: float | None = None
    inet_down_cost: float | None = None
    inet_down: float | None = None
    reliability2: float | None = None
    verification: str | None = None
    hosting_type: int | None = None
    geolocation: str | None = None


class Asks(Wire):
    """Answer to `POST /api/v0/bundles/`."""

    offers: list[Ask]


class Vast:
    """See `Provider`."""

    name: ClassVar[str] = "vast"
    capabilities: ClassVar[Capabilities] = Capabilities(
        kind=Kind.container,
        spot=True,
        multi_node=False,
        private_network=False,
        ssh=True,
        stop=True,
        billing_step_s=1,
        notice_s=0,
        status=Status.ga,
        evidence="Vast.ai API, vast-ai/docs@c6246226",
        evidence_date="2026-08-07",
        note="a machine that is stopped, also by a higher bid, is still billed for its disk",
    )

    def __init__(self, api: Api) -> None:
        self._api = api

    @classmethod
    def connect(cls, environment: Mapping[str, str]) -> Self:
        """See `Provider.connect`."""
        key = require_key(environment, "VAST_API_KEY", "https://cloud.vast.ai/manage-keys")
        return cls(
            Api(
                cls.name,
                environment.get("TIDEMILL_VAST_URL", URL),
                headers={"Authorization": f"Bearer {key}"},
                secrets=[key],
                apart_s={PATH: APART_S},
                refusal=_refusal,
            )
        )

    def offers(self, demand: Demand) -> list[Offer]:
        """See `Provider.offers`."""
        markets = (False, True) if demand.spot is None else (demand.spot,)
        return [offer for spot in markets for offer in self._market(demand, spot=spot)]

    def close(self) -> None:
        """See `Provider.close`."""
        self._api.close()

    def _market(self, demand: Demand, *, spot: bool) -> list[Offer]:
        try:
            answer = self._api.ask("POST", PATH, Asks, body=_question(demand, spot=spot))
        except ProviderError as error:
            # The specification has this for a wrong key, where the documents have 401 and 403.
            if error.trouble is Trouble.missing and "user key" in error.detail.lower():
                raise ProviderError(self.name, Trouble.unauthorized, error.detail) from None
            raise
        found = (_offer_of(ask, spot=spot) for ask in answer.offers)
        return [offer for offer in found if offer and matches(offer.gpu, demand.gpus)]


def _question(demand: Demand, *, spot: bool) -> dict[str, Any]:
    disk_gb = math.ceil(demand.disk_gib / GIB_PER_GB)
    most = {"lte": demand.most} if demand.most else {}
    question: dict[str, Any] = {
        "rentable": {"eq": True},
        "verified": {"eq": True},
        "direct_port_count": {"gte": 1},
        "num_gpus": {"gte": demand.count} | most,
        "disk_space": {"gte": disk_gb},
        "allocated_storage": disk_gb,
        "order": [["dph_total", "asc"]],
        "limit": LIMIT,
    }
    if spot:
        # On demand is what it assumes; its documents disagree on how to spell that.
        question["type"] = "bid"
    if names := _names_at_vast(demand.gpus):
        question["gpu_name"] = {"in": names}
    return question


def _offer_of(ask: Ask, *, spot: bool) -> Offer | None:
    usd = _usd_per_hour(ask, spot=spot) if ask.num_gpus > 0 else None
    if usd is None:
        return None
    gpu, memory_gib = name_gpu(ask.gpu_name, ask.gpu_ram / MIB_PER_GIB)
    # Verified says that it was tested; that it is in a certified data center is told apart.
    trusted = ask.verification == "verified" and (ask.hosting_type or 0) >= 1
    return Offer(
        provider=Vast.name,
        id=str(ask.id),
        region=ask.geolocation or "",
        country=country_in(ask.geolocation or ""),
        gpu=gpu,
        gpus=ask.num_gpus,
        gpu_mem_gib=memory_gib,
        vcpu=int(ask.cpu_cores_effective or 0),
        ram_gib=_ram_gib(ask),
        usd_per_hour=usd,
        spot=spot,
        tier=Tier.managed if trusted else Tier.community,
        network=Network.public,
        reliability=ask.reliability2,
        available=1,
        down_mbps=ask.inet_down or None,
        rates=_rates(ask),
        source=URL,
        fetched_at=time.time(),
        live=True,
    )


def _usd_per_hour(ask: Ask, *, spot: bool) -> float | None:
    """All that is billed by the hour but the disk, which is among the rates.

    A search for bids states prices at the least bid that would win now.
    """
    if ask.dph_total is not None and ask.storage_total_cost is not None:
        usd = believe(round(ask.dph_total - ask.storage_total_cost, 6), ask.num_gpus)
    else:
        usd = believe(ask.dph_base, ask.num_gpus)
    if not spot or usd is None:
        return usd
    bid = believe(ask.min_bid, ask.num_gpus)
    return None if bid is None else max(usd, bid)


def _ram_gib(ask: Ask) -> float:
    """Its share of the host's memory goes with its share of the host's cores.

    Source: gpuhunt 0.1.34, providers/vastai.py.
    """
    if not ask.cpu_ram or not ask.cpu_cores or not ask.cpu_cores_effective:
        return 0.0
    return ask.cpu_ram / MIB_PER_GIB * min(1.0, ask.cpu_cores_effective / ask.cpu_cores)


def _rates(ask: Ask) -> Rates:
    """The host's own, where it states them; in gigabytes there."""
    stated = {
        "disk_usd_per_gib_month": ask.storage_cost,
        "egress_usd_per_gib": ask.inet_up_cost,
        "ingress_usd_per_gib": ask.inet_down_cost,
    }
    known = {item: usd / GIB_PER_GB for item, usd in stated.items() if usd is not None and usd >= 0}
    return replace(rates_of(Vast.name), **known)


def _names_at_vast(wanted: Iterable[str]) -> list[str]:
    """What Vast calls the GPUs that are wanted; empty if one of them cannot be told."""
    found = [[at_vast for ours, at_vast in _aliases() if matches(ours, (name,))] for name in wanted]
    return sorted({name for names in found for name in names}) if all(found) else []


@cache
def _aliases() -> tuple[tuple[str, str], ...]:
    """Our names with Vast's, which are without what only memory tells apart."""
    table = resources.files("tidemill.plan").joinpath(TABLE).read_text(encoding="utf-8")
    return tuple(
        (row["name"], name.partition("(")[0].strip())
        for row in csv.DictReader(table.splitlines())
        for item in row["aliases"].split("|")
        if item.startswith("vast=")
        for name in item.removeprefix("vast=").split(",")
    )


def _refusal(plain: Any) -> str | None:
    match plain:
        case {"success": False} | {"error": str()}:
            return (
                f"{plain.get('error', '')} {plain.get('msg') or plain.get('message', '')}".strip()
            )
        case _:
            return None
