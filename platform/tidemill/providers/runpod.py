"""RunPod: containers in its partners' data centers, and on the machines of a community.

A pod is a number of GPUs of one kind in one machine. How many are free depends on that number and
on the cloud, so each is a question of its own. What it calls community has no data center, and
then no country either. There is no spot market any more.

Source: RunPod REST API v2 (runpod/docs@a900806e).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Any, ClassVar, Self

from pydantic import Field

from tidemill.plan.gpus import matches, name_gpu
from tidemill.plan.offers import Demand, Offer
from tidemill.providers.base import Capabilities, Kind, Status, require_key
from tidemill.providers.http import Api, Wire
from tidemill.providers.prices import believe
from tidemill.providers.rates import rates_of
from tidemill.spec.placement import Network, Tier

URL = "https://api.runpod.io/v2"
COUNTS = (1, 2, 4, 8)
NAMED_FIRST = frozenset({"us", "ca"})
"""Countries that a data center's id begins with; all others follow their continent."""
ID_PARTS = 3


class Stock(StrEnum):
    """How much is free."""

    none = "NONE"
    low = "LOW"
    medium = "MEDIUM"
    high = "HIGH"


class Cloud(StrEnum):
    """Whose machines."""

    secure = "SECURE"
    community = "COMMUNITY"


class PerCloud(Wire):
    """A figure for each cloud."""

    secure: float
    community: float

    def of(self, cloud: Cloud) -> float:
        """The one for `cloud`."""
        return self.secure if cloud is Cloud.secure else self.community


class DataCenter(Wire):
    """A place that has the GPU."""

    id: str
    availability: Stock


class GpuType(Wire):
    """A kind of GPU."""

    id: str
    memory: float
    secure: bool
    community: bool
    price: PerCloud
    most: PerCloud = Field(alias="maxCount")
    availability: Stock | None = None
    data_centers: list[DataCenter] = Field(default=[], alias="dataCenters")

    def is_sold(self, cloud: Cloud, count: int) -> bool:
        """Whether `cloud` has machines with that many."""
        there = self.secure if cloud is Cloud.secure else self.community
        return there and count <= self.most.of(cloud)


class GpuTypes(Wire):
    """Answer to `GET /catalog/gpus`."""

    gpus: list[GpuType]


class RunPod:
    """See `Provider`."""

    name: ClassVar[str] = "runpod"
    capabilities: ClassVar[Capabilities] = Capabilities(
        kind=Kind.container,
        spot=False,
        multi_node=False,
        private_network=True,
        ssh=True,
        stop=True,
        billing_step_s=1,
        notice_s=0,
        status=Status.ga,
        evidence="RunPod REST API v2 (beta), runpod/docs@a900806e; v1 was retired 2026-11-15",
        evidence_date="2026-08-20",
        note="its private network has 100 Mbit/s, too little to train across pods",
    )

    def __init__(self, api: Api) -> None:
        self._api = api

    @classmethod
    def connect(cls, environment: Mapping[str, str]) -> Self:
        """See `Provider.connect`."""
        where = "https://console.runpod.io/user/settings"
        key = require_key(environment, "RUNPOD_API_KEY", where)
        return cls(
            Api(
                cls.name,
                environment.get("TIDEMILL_RUNPOD_URL", URL),
                headers={"Authorization": f"Bearer {key}"},
                secrets=[key],
                refusal=_refusal,
            )
        )

    def offers(self, demand: Demand) -> list[Offer]:
        """See `Provider.offers`."""
        if demand.spot:
            return []
        return [
            offer
            for cloud in Cloud
            for count in COUNTS
            if demand.count <= count <= (demand.most or count)
            for kind in self._kinds(cloud, count)
            for offer in _offers_of(kind, cloud, count)
            if matches(offer.gpu, demand.gpus)
        ]

    def close(self) -> None:
        """See `Provider.close`."""
        self._api.close()

    def _kinds(self, cloud: Cloud, count: int) -> list[GpuType]:
        asked = {"include": "AVAILABILITY", "product": "POD", "cloud": cloud.value, "count": count}
        return self._api.get("/catalog/gpus", GpuTypes, **asked).gpus


def _offers_of(kind: GpuType, cloud: Cloud, count: int) -> Iterator[Offer]:
    usd = believe(kind.price.of(cloud))
    if usd is None or not kind.is_sold(cloud, count) or kind.availability in {None, Stock.none}:
        return
    gpu, memory_gib = name_gpu(kind.id, kind.memory)
    places = [place.id for place in kind.data_centers if place.availability is not Stock.none]
    for region in places or [""]:
        yield Offer(
            provider=RunPod.name,
            id=f"{kind.id}/{cloud}/{count}",
            region=region,
            country=_country_of(region),
            gpu=gpu,
            gpus=count,
            gpu_mem_gib=memory_gib,
            usd_per_hour=round(usd * count, 6),
            tier=Tier.managed if cloud is Cloud.secure else Tier.community,
            # Pods can have a network of their own, but gradients need a hundred times its speed.
            network=Network.public,
            rates=rates_of(RunPod.name),
            source=URL,
            fetched_at=time.time(),
            live=True,
        )


def _country_of(region: str) -> str:
    """Of `US-KS-2`, `CA-MTL-1`, `EU-RO-1`, `EUR-IS-1`, `AP-JP-1`."""
    parts = region.lower().split("-")
    if len(parts) != ID_PARTS:
        return ""
    country = parts[0] if parts[0] in NAMED_FIRST else parts[1]
    return country if len(country) == len("us") and country.isalpha() else ""


def _refusal(plain: Any) -> str | None:
    match plain:
        case {"status": int(code), "title": title} if code >= 400:  # noqa: PLR2004 - of HTTP
            return f"{code} {title}: {plain.get('detail', '')}"
        case _:
            return None
