"""TensorDock: virtual machines on hosts of many owners, put together from priced parts.

GPUs, cores and memory each have a price, and a machine is as large as one wants. So what is offered
is a machine with 8 cores and 32 GiB for each GPU, less where the host has less left, more memory
where the demand asks for it. All of it is in its list of hosts, which also says where they are.

Source: API v2 (dashboard.tensordock.com/api/docs), and a client that was written against it
(apartmentlines/terraform-provider-tensordock@5b25f333, 2026-04-13).
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Self

from pydantic import Field

from tidemill.plan.gpus import matches, name_gpu
from tidemill.plan.offers import HOURS_PER_MONTH, Demand, Offer, Rates
from tidemill.providers.base import Capabilities, Kind, Status, require_key
from tidemill.providers.http import Api, Wire
from tidemill.providers.prices import believe
from tidemill.providers.rates import rates_of
from tidemill.spec.placement import Network, Tier

URL = "https://dashboard.tensordock.com/api/v2"
APART_S = 0.6
"""100 requests a minute. Source: dashboard.tensordock.com/api/docs/getting-started."""
COUNTS = (1, 2, 4, 8)
VCPU_PER_GPU = 8
RAM_GIB_PER_GPU = 32.0
TRUSTED_TIER = 3
"""From here on a host is in a data center."""
MBPS_PER_GBPS = 1000
MEMORY = re.compile(r"-(\d+)gb$")
COUNTRIES: Mapping[str, str] = dict(
    re.findall(
        r"([a-z ]+)=([a-z]{2})",
        "australia=au|austria=at|belgium=be|brazil=br|bulgaria=bg|canada=ca|czechia=cz|"
        "czech republic=cz|denmark=dk|estonia=ee|finland=fi|france=fr|germany=de|hungary=hu|"
        "iceland=is|india=in|ireland=ie|israel=il|italy=it|japan=jp|latvia=lv|lithuania=lt|"
        "mexico=mx|netherlands=nl|new zealand=nz|norway=no|poland=pl|portugal=pt|romania=ro|"
        "singapore=sg|slovakia=sk|slovenia=si|south africa=za|south korea=kr|spain=es|sweden=se|"
        "switzerland=ch|taiwan=tw|the netherlands=nl|ukraine=ua|united kingdom=gb|"
        "united states=us|united states of america=us|usa=us",
    )
)
"""Names as in ISO 3166, and as its owners write them."""


class Gpu(Wire):
    """GPUs of one kind that a host has left."""

    name: str = Field(alias="v0Name")
    available: int = Field(alias="availableCount")
    price_per_hr: float | None = None


class Resources(Wire):
    """What a host has left."""

    gpus: list[Gpu]
    vcpu_count: int | None = None
    ram_gb: float | None = None
    max_vcpus_per_gpu: int | None = None
    max_ram_per_gpu: float | None = None


class Pricing(Wire):
    """What the rest costs."""

    per_vcpu_hr: float | None = None
    per_gb_ram_hr: float | None = None
    per_gb_storage_hr: float | None = None


class Location(Wire):
    """Where a host is."""

    city: str = ""
    country: str = ""
    tier: int = 0
    network_speed_gbps: float | None = None


class Hostnode(Wire):
    """A host."""

    id: str
    uptime_percentage: float | None = None
    resources: Resources = Field(alias="available_resources")
    pricing: Pricing = Pricing()
    location: Location = Location()


class Hostnodes(Wire):
    """What is in the answer."""

    hostnodes: list[Hostnode]


class Answer(Wire):
    """Answer to `GET /hostnodes`."""

    data: Hostnodes


class TensorDock:
    """See `Provider`."""

    name: ClassVar[str] = "tensordock"
    capabilities: ClassVar[Capabilities] = Capabilities(
        kind=Kind.machine,
        spot=False,
        multi_node=False,
        private_network=False,
        ssh=True,
        stop=True,
        billing_step_s=1,
        notice_s=0,
        status=Status.at_risk,
        evidence="API v2 answers a client of 2026-04, but dstack and gpuhunt dropped it",
        evidence_date="2026-04-13",
        note="a disk has at least 100 GB; errors come as successes",
    )

    def __init__(self, api: Api) -> None:
        self._api = api

    @classmethod
    def connect(cls, environment: Mapping[str, str]) -> Self:
        """See `Provider.connect`."""
        where = "https://dashboard.tensordock.com/developers"
        key = require_key(environment, "TENSORDOCK_API_KEY", where)
        return cls(
            Api(
                cls.name,
                environment.get("TIDEMILL_TENSORDOCK_URL", URL),
                headers={"Authorization": f"Bearer {key}"},
                secrets=[key],
                apart_s={"/": APART_S},
                refusal=_refusal,
            )
        )

    def offers(self, demand: Demand) -> list[Offer]:
        """See `Provider.offers`."""
        if demand.spot:
            return []
        return [
            offer
            for host in self._api.get("/hostnodes", Answer).data.hostnodes
            for gpu in host.resources.gpus
            for offer in _offers_of(host, gpu, demand)
            if matches(offer.gpu, demand.gpus)
        ]

    def close(self) -> None:
        """See `Provider.close`."""
        self._api.close()


def _offers_of(host: Hostnode, gpu: Gpu, demand: Demand) -> Iterator[Offer]:
    stated = MEMORY.search(gpu.name)
    name, memory_gib = name_gpu(gpu.name, float(stated[1]) if stated else 0.0)
    for count in COUNTS:
        if not demand.count <= count <= min(gpu.available, demand.most or count):
            continue
        vcpu, ram_gib = _size(host.resources, count, demand.ram_gib)
        usd = _usd_per_hour(host.pricing, gpu, count, vcpu, ram_gib)
        if usd is None or not vcpu or not ram_gib:
            continue
        yield Offer(
            provider=TensorDock.name,
            id=f"{host.id}/{gpu.name}/{count}",
            region=", ".join(filter(None, (host.location.city, host.location.country))),
            country=_country_of(host.location.country),
            gpu=name,
            gpus=count,
            gpu_mem_gib=memory_gib,
            vcpu=vcpu,
            ram_gib=ram_gib,
            usd_per_hour=usd,
            tier=Tier.managed if host.location.tier >= TRUSTED_TIER else Tier.community,
            network=Network.public,
            reliability=_share(host.uptime_percentage),
            available=_machines(host.resources, gpu, count, vcpu, ram_gib),
            down_mbps=(host.location.network_speed_gbps or 0) * MBPS_PER_GBPS or None,
            rates=_rates(host.pricing),
            source=URL,
            fetched_at=time.time(),
            live=True,
        )


def _size(left: Resources, count: int, ram_gib: float) -> tuple[int, float]:
    """Cores and memory of a machine, as far as the host still has them."""
    vcpus = [VCPU_PER_GPU * count, left.vcpu_count]
    rams = [max(RAM_GIB_PER_GPU * count, ram_gib), left.ram_gb]
    if left.max_vcpus_per_gpu:
        vcpus.append(left.max_vcpus_per_gpu * count)
    if left.max_ram_per_gpu:
        rams.append(left.max_ram_per_gpu * count)
    return (
        min(vcpu for vcpu in vcpus if vcpu is not None),
        min(ram for ram in rams if ram is not None),
    )


def _machines(left: Resources, gpu: Gpu, count: int, vcpu: int, ram_gib: float) -> int:
    """How many such machines the host still has room for."""
    rooms = [gpu.available // count]
    if left.vcpu_count is not None:
        rooms.append(left.vcpu_count // vcpu)
    if left.ram_gb is not None:
        rooms.append(int(left.ram_gb // ram_gib))
    return min(rooms)


def _usd_per_hour(
    pricing: Pricing, gpu: Gpu, count: int, vcpu: int, ram_gib: float
) -> float | None:
    """The sum of the parts; None if one of them has no price."""
    gpu_usd = believe(gpu.price_per_hr)
    vcpu_usd, gib_usd = pricing.per_vcpu_hr or 0, pricing.per_gb_ram_hr or 0
    if gpu_usd is None or vcpu_usd <= 0 or gib_usd <= 0:
        return None
    return believe(round(count * gpu_usd + vcpu * vcpu_usd + ram_gib * gib_usd, 6), count)


def _country_of(name: str) -> str:
    plain = name.strip().lower()
    return COUNTRIES.get(plain, plain if plain in COUNTRIES.values() else "")


def _share(percent: float | None) -> float | None:
    return None if percent is None else min(1.0, max(0.0, round(percent / 100, 6)))


def _rates(pricing: Pricing) -> Rates:
    """With the host's own price of disk, where it states one."""
    usual = rates_of(TensorDock.name)
    disk_usd = pricing.per_gb_storage_hr or 0
    if disk_usd <= 0:
        return usual
    return replace(usual, disk_usd_per_gib_month=disk_usd * HOURS_PER_MONTH)


def _refusal(plain: Any) -> str | None:
    """Also of those that come with a good status."""
    match plain:
        case {"error": said}:
            return f"{plain.get('status', '')} {said}".strip()
        case {"message": said, "status": int(code)} if code >= 400:  # noqa: PLR2004 - of HTTP
            return f"{code} {said}"
        case _:
            return None
