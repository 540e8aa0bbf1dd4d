"""Google Cloud: machines added up from the catalogue of what it bills for.

The catalogue knows no machines. It prices cores, memory, GPUs and local disk apart, by region, and
says in a sentence what each price is for; a machine costs the sum of its parts. Only the sentences
known here are read, so that a reservation or a sole tenant's price is never taken for a plain one;
a machine of which some part has no price is not offered.

Source: discovery document of cloudbilling v1; the sentences as matched by gpuhunt@027ccf35 and by
cloudpilot-ai/karpenter-provider-gcp.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, NamedTuple, Self

from pydantic import Field

from tidemill.plan.offers import HOURS_PER_MONTH, Demand, Offer
from tidemill.providers.base import Capabilities, Kind, Status, require_key
from tidemill.providers.http import Api, Wire
from tidemill.providers.sizes import Size, offers_of, sizes_for
from tidemill.providers.trouble import ProviderError, Trouble

URL = "https://cloudbilling.googleapis.com"
PATH = "/v1/services/6F81-5844-456A/skus"
"""Of Compute Engine."""
PAGE = 5000
MOST_PAGES = 40
NANO = 1e-9
WRONG_KEY = "API_KEY_INVALID"
"""Comes with status 400."""

# By the beginning of a size's name: whose cores and memory it has, and what its GPUs are called.
PARTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "a2-highgpu": ("A2 Instance", ("Nvidia Tesla A100 GPU",)),
    "a2-megagpu": ("A2 Instance", ("Nvidia Tesla A100 GPU",)),
    "a2-ultragpu": ("A2 Instance", ("Nvidia Tesla A100 80GB GPU",)),
    "a3-highgpu": ("A3 Instance", ("Nvidia H100 80GB GPU",)),
    "a3-megagpu": ("A3Plus Instance", ("Nvidia H100 80GB Mega GPU", "Nvidia H100 80GB Plus GPU")),
    "a3-ultragpu": ("A3Ultra Instance", ("H200 141GB GPU",)),
    "g2-standard": ("G2 Instance", ("Nvidia L4 GPU",)),
    "g4-standard": ("G4 Instance", ("RTX 6000 96GB",)),
    "n1-standard-8+t4": ("N1 Predefined Instance", ("Nvidia Tesla T4 GPU",)),
    "n1-standard-8+v100": ("N1 Predefined Instance", ("Nvidia Tesla V100 GPU",)),
}
SSD = "SSD backed Local Storage"
HOURS = {"h": 1.0, "GiBy.h": 1.0, "GiBy.mo": HOURS_PER_MONTH}
"""Hours that a price is for, by its unit."""
SPOT_BEFORE = "Spot Preemptible "
SPOT_AFTER = " attached to Spot Preemptible VMs"
PLACE = re.compile(r" (running )?in .*$")


class Money(Wire):
    """Dollars; what is zero is left out."""

    units: int = 0
    nanos: int = 0


class Rate(Wire):
    """A price from some amount on."""

    price: Money = Field(alias="unitPrice", default_factory=Money)


class Expression(Wire):
    """How a price is meant."""

    unit: str = Field(alias="usageUnit", default="")
    rates: list[Rate] = Field(alias="tieredRates", default_factory=list[Rate])


class Pricing(Wire):
    """A price since some time."""

    expression: Expression = Field(alias="pricingExpression")


class Category(Wire):
    """What kind of price it is."""

    usage: str = Field(alias="usageType", default="")


class Sku(Wire):
    """A line of the catalogue."""

    description: str
    category: Category
    regions: list[str] = Field(alias="serviceRegions", default_factory=list[str])
    pricing: list[Pricing] = Field(alias="pricingInfo", default_factory=list[Pricing])


class Skus(Wire):
    """Answer to `GET /v1/services/{service}/skus`."""

    skus: list[Sku] = Field(default_factory=list[Sku])
    after: str = Field(alias="nextPageToken", default="")


class Part(NamedTuple):
    """What is billed for, where, and in which market."""

    name: str
    region: str
    spot: bool


class Gcp:
    """See `Provider`."""

    name: ClassVar[str] = "gcp"
    capabilities: ClassVar[Capabilities] = Capabilities(
        kind=Kind.machine,
        spot=True,
        multi_node=True,
        private_network=True,
        ssh=True,
        stop=True,
        billing_step_s=60,
        notice_s=30,
        status=Status.ga,
        evidence="discovery document of cloudbilling v1; spot VMs in Google's documents",
        evidence_date="2026-11-22",
        note="what can be had depends on the quota of a project",
    )

    def __init__(self, api: Api) -> None:
        self._api = api

    @classmethod
    def connect(cls, environment: Mapping[str, str]) -> Self:
        """See `Provider.connect`."""
        where = "https://console.cloud.google.com/apis/credentials, for the Cloud Billing API"
        key = require_key(environment, "GOOGLE_API_KEY", where)
        api = Api(
            cls.name,
            environment.get("TIDEMILL_GCP_URL", URL),
            headers={"X-Goog-Api-Key": key},  # in the query it would be in every log
            secrets=[key],
            refusal=_refusal,
        )
        return cls(api)

    def offers(self, demand: Demand) -> list[Offer]:
        """See `Provider.offers`."""
        sizes = sizes_for(self.name, demand)
        if not sizes:
            return []
        prices: dict[Part, float] = {}
        for sku in self._skus():
            for part, usd in _prices_of(sku):
                prices[part] = max(usd, prices.get(part, 0.0))
        regions = sorted({part.region for part in prices})
        return [
            offer
            for size in sizes
            for region in regions
            for offer in offers_of(
                size,
                region,
                full_usd=_sum(size, region, prices, spot=False),
                spot_usd=_sum(size, region, prices, spot=True),
                source=f"{URL}{PATH}",
            )
        ]

    def close(self) -> None:
        """See `Provider.close`."""
        self._api.close()

    def _skus(self) -> Iterator[Sku]:
        """The whole catalogue; it cannot be asked for a part of it."""
        token: str | None = None
        for _ in range(MOST_PAGES):
            page = self._page(token)
            yield from page.skus
            if not page.after:
                return
            token = page.after
        raise ProviderError(self.name, Trouble.unreadable, f"more than {MOST_PAGES} pages")

    def _page(self, token: str | None) -> Skus:
        try:
            return self._api.get(PATH, Skus, pageSize=PAGE, pageToken=token, currencyCode="USD")
        except ProviderError as error:
            if WRONG_KEY in error.detail:
                raise ProviderError(self.name, Trouble.unauthorized, error.detail) from None
            raise


def _prices_of(sku: Sku) -> Iterator[tuple[Part, float]]:
    """Dollars an hour of one unit in each region; nothing if it is no plain price."""
    if sku.category.usage not in {"OnDemand", "Preemptible"} or not sku.pricing:
        return
    named = PLACE.sub("", sku.description)
    name = named.removeprefix(SPOT_BEFORE).removesuffix(SPOT_AFTER)
    spot = name != named or sku.category.usage == "Preemptible"  # the category is wrong at times
    expression = sku.pricing[-1].expression
    if not expression.rates or expression.unit not in HOURS:
        return
    price = expression.rates[-1].price
    usd = (price.units + price.nanos * NANO) / HOURS[expression.unit]
    if usd > 0:
        for region in sku.regions:
            yield Part(name, region, spot), usd


def _sum(size: Size, region: str, prices: Mapping[Part, float], *, spot: bool) -> float | None:
    """Dollars an hour; None if a part has no price there."""
    host, gpus = PARTS[max((start for start in PARTS if size.id.startswith(start)), key=len)]
    needed = (
        ((f"{host} Core",), size.vcpu),
        ((f"{host} Ram",), size.ram_gib),
        (gpus, size.gpus),
        ((SSD,), size.ssd_gib),
    )
    total = 0.0
    for names, amount in needed:
        listed = [prices.get(Part(name, region, spot), 0.0) for name in names]
        if amount and not any(listed):
            return None
        total += amount * max(listed)
    return round(total, 6)


def _refusal(plain: Any) -> str | None:
    match plain:
        case {"error": {"code": code, "message": message, "details": [{"reason": reason}, *_]}}:
            return f"{code} {reason}: {message}"
        case {"error": {"code": code, "message": message}}:
            return f"{code}: {message}"
        case _:
            return None
