"""Salad: containers on strangers' gaming machines, and on some in data centers.

Who pays for a higher priority may take the GPU from who pays for a lower one, so the highest
counts as on demand and the lowest as spot; a machine's owner may take it from either. Cores and
memory are paid for apart.

Source: SaladCloud API 0.9.0-alpha.17 and docs.salad.com (SaladTechnologies/salad-cloud-docs).
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any, ClassVar, Self
from urllib.parse import quote

from tidemill.plan.gpus import matches, name_gpu
from tidemill.plan.offers import Demand, Offer
from tidemill.providers.base import Capabilities, Kind, Status, UnusableError, require_key
from tidemill.providers.http import Api, Wire
from tidemill.providers.prices import believe, believe_spot
from tidemill.providers.rates import rates_of
from tidemill.spec.placement import Network, Tier

URL = "https://api.salad.com/api/public"
PORTAL = "https://portal.salad.com"
ON_DEMAND = "high"
SPOT = "batch"
SECURE = "secure"
VCPU = 8
RAM_GIB = 32.0
"""Size of the container that is priced, where the demand does not ask for more memory."""
USD_PER_VCPU_HOUR = 0.004
USD_PER_GIB_HOUR = 0.001
"""Source: salad-cloud-docs@504c704a migrate-from-aws-batch.mdx, 2025-11-13."""
MIB_PER_GIB = 1024
MEMORY = re.compile(r"\((\d+) ?GB\)")


class Price(Wire):
    """What a GPU costs at one priority; a decimal number as text."""

    priority: str | None
    price: str


class GpuClass(Wire):
    """A kind of GPU.

    `gpu_count` is "the number of GPUs in the cluster". A stranger's machine has one; what the price
    of a data center's class with several is for is not documented, so such a class is not offered.
    """

    id: str
    name: str
    gpu_class_type: str | None = None
    gpu_count: int | None = None
    max_vcpu: int | None = None
    max_ram: int | None = None
    prices: list[Price]


class GpuClasses(Wire):
    """Answer to `GET /organizations/{organization}/gpu-classes`."""

    items: list[GpuClass]


class Salad:
    """See `Provider`."""

    name: ClassVar[str] = "salad"
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
        evidence="SaladCloud API 0.9.0-alpha.17, SaladTechnologies/salad-cloud-docs@504c704a",
        evidence_date="2026-06-29",
        note="any machine may leave without notice, and its disk with it",
    )

    def __init__(self, api: Api, organization: str) -> None:
        self._api = api
        self._organization = organization

    @classmethod
    def connect(cls, environment: Mapping[str, str]) -> Self:
        """See `Provider.connect`."""
        key = require_key(environment, "SALAD_API_KEY", f"{PORTAL}/api-key")
        organization = environment.get("SALAD_ORGANIZATION", "").strip()
        if not organization:
            raise UnusableError(
                "SALAD_ORGANIZATION is not set",
                f"export SALAD_ORGANIZATION with the name of yours at {PORTAL}",
            )
        api = Api(
            cls.name,
            environment.get("TIDEMILL_SALAD_URL", URL),
            headers={"Salad-Api-Key": key},
            secrets=[key],
            refusal=_refusal,
        )
        return cls(api, organization)

    def offers(self, demand: Demand) -> list[Offer]:
        """See `Provider.offers`."""
        path = f"/organizations/{quote(self._organization, safe='')}/gpu-classes"
        return [
            offer
            for kind in self._api.get(path, GpuClasses).items
            if demand.count <= 1 and (kind.gpu_class_type != SECURE or (kind.gpu_count or 1) == 1)
            for offer in _offers_of(kind, demand)
            if matches(offer.gpu, demand.gpus)
        ]

    def close(self) -> None:
        """See `Provider.close`."""
        self._api.close()


def _offers_of(kind: GpuClass, demand: Demand) -> list[Offer]:
    stated = MEMORY.search(kind.name)
    gpu, memory_gib = name_gpu(kind.name, float(stated[1]) if stated else 0.0)
    vcpu = min(VCPU, kind.max_vcpu or VCPU)
    ram_gib = max(RAM_GIB, demand.ram_gib)
    if kind.max_ram is not None:
        ram_gib = min(ram_gib, kind.max_ram / MIB_PER_GIB)
    host_usd = vcpu * USD_PER_VCPU_HOUR + ram_gib * USD_PER_GIB_HOUR
    listed = {price.priority: price.price for price in kind.prices}
    full = believe(listed.get(ON_DEMAND))
    spot = believe_spot(listed.get(SPOT), full)
    return [
        Offer(
            provider=Salad.name,
            id=f"{kind.id}/{priority}",
            region="",
            gpu=gpu,
            gpus=1,
            gpu_mem_gib=memory_gib,
            vcpu=vcpu,
            ram_gib=ram_gib,
            usd_per_hour=round(usd + host_usd, 6),
            spot=priority == SPOT,
            tier=Tier.managed if kind.gpu_class_type == SECURE else Tier.community,
            network=Network.public,
            rates=rates_of(Salad.name),
            source=URL,
            fetched_at=time.time(),
            live=True,
        )
        for priority, usd in ((ON_DEMAND, full), (SPOT, spot))
        if usd is not None
    ]


def _refusal(plain: Any) -> str | None:
    match plain:
        case {"status": int(code), "title": title} if code >= 400:  # noqa: PLR2004 - of HTTP
            return f"{code} {title}: {plain.get('detail', '')}"
        case _:
            return None
