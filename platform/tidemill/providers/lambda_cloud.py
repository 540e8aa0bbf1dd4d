"""Lambda Cloud: machines on demand in its own data centers, no spot market.

Source: Lambda Cloud API 1.10.0 (docs.lambda.ai/api/cloud). It answers one request a second.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import Field

from tidemill.plan.gpus import matches, name_gpu
from tidemill.plan.offers import Demand, Offer
from tidemill.plan.places import country_of
from tidemill.providers.base import Capabilities, Kind, Status, require_key
from tidemill.providers.http import Api, Wire
from tidemill.providers.rates import rates_of
from tidemill.spec.placement import Network, Tier

URL = "https://cloud.lambda.ai"
APART_S = 1.0
CENTS = 100


class Specs(Wire):
    """Size of a machine."""

    vcpus: int
    memory_gib: float
    gpus: int


class InstanceType(Wire):
    """A kind of machine."""

    name: str
    gpu_description: str
    price_cents_per_hour: int
    specs: Specs


class Region(Wire):
    """A place."""

    name: str


class Item(Wire):
    """A kind of machine, and where it can be had."""

    instance_type: InstanceType
    regions: list[Region] = Field(alias="regions_with_capacity_available")


class InstanceTypes(Wire):
    """Answer to `GET /api/v1/instance-types`."""

    data: dict[str, Item]


class LambdaCloud:
    """See `Provider`."""

    name: ClassVar[str] = "lambda"
    capabilities: ClassVar[Capabilities] = Capabilities(
        kind=Kind.machine,
        spot=False,
        multi_node=True,
        private_network=True,
        ssh=True,
        stop=False,
        billing_step_s=60,
        notice_s=0,
        status=Status.ga,
        evidence="Lambda Cloud API 1.10.0, api-evangelist/lambda-labs@911506f4",
        evidence_date="2026-08-22",
        note="machines of one region share a private network",
    )

    def __init__(self, api: Api) -> None:
        self._api = api

    @classmethod
    def connect(cls, environment: Mapping[str, str]) -> Self:
        """See `Provider.connect`."""
        key = require_key(environment, "LAMBDA_API_KEY", "https://cloud.lambda.ai/api-keys")
        return cls(
            Api(
                cls.name,
                environment.get("TIDEMILL_LAMBDA_URL", URL),
                headers={"Authorization": f"Bearer {key}"},
                secrets=[key],
                apart_s={"/": APART_S},
                refusal=_refusal,
            )
        )

    def offers(self, demand: Demand) -> list[Offer]:
        """See `Provider.offers`."""
        answer = self._api.get("/api/v1/instance-types", InstanceTypes)
        return [
            offer
            for item in answer.data.values()
            if item.instance_type.specs.gpus >= demand.count
            for offer in _offers_of(item)
            if matches(offer.gpu, demand.gpus)
        ]

    def close(self) -> None:
        """See `Provider.close`."""
        self._api.close()


def _offers_of(item: Item) -> list[Offer]:
    kind = item.instance_type
    gpu, memory_gib = name_gpu(kind.gpu_description, _memory_gib(kind.gpu_description))
    return [
        Offer(
            provider=LambdaCloud.name,
            id=kind.name,
            region=region.name,
            country=country_of(region.name),
            gpu=gpu,
            gpus=kind.specs.gpus,
            gpu_mem_gib=memory_gib,
            vcpu=kind.specs.vcpus,
            ram_gib=kind.specs.memory_gib,
            usd_per_hour=kind.price_cents_per_hour / CENTS,
            tier=Tier.managed,
            network=Network.private,
            rates=rates_of(LambdaCloud.name),
            source=URL,
            fetched_at=time.time(),
            live=True,
        )
        for region in item.regions
    ]


def _memory_gib(description: str) -> float:
    """Of `H100 (80 GB SXM5)`."""
    inside = description.partition("(")[2].split()
    return float(inside[0]) if inside and inside[0].isdecimal() else 0.0


def _refusal(plain: Any) -> str | None:
    match plain:
        case {"error": {"code": code, "message": message}}:
            return f"{code}: {message}"
        case _:
            return None
