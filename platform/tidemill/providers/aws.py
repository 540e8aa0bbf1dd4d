"""AWS: what EC2 sells in each region, its spot prices, and the price list for the rest.

Every region is a service of its own, so all are asked at once.

Source: EC2 2016-11-15 and Pricing 2017-10-15, as in the service models of botocore 1.44.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from statistics import median_low
from typing import ClassVar, Self

from pydantic import Field

from tidemill.plan.offers import Demand, Offer
from tidemill.providers.aws_api import AwsApi
from tidemill.providers.base import Capabilities, Kind, Status
from tidemill.providers.http import Wire
from tidemill.providers.prices import believe
from tidemill.providers.sizes import Size, offers_of, sizes_for

REGIONS = ("us-east-1", "us-east-2", "us-west-2", "eu-north-1")
"""Where most kinds of GPUs are; AWS_REGION names another."""
PRICES_AT = "us-east-1"
"""The price list of all regions is here."""
LINUX = "Linux/UNIX"
ON_DEMAND_LINUX = {
    "operatingSystem": "Linux",
    "tenancy": "Shared",
    "preInstalledSw": "NA",
    "capacitystatus": "Used",
    "marketoption": "OnDemand",
}
MOST_GPUS = 16
"""Of any size; a price is judged again once its size is known."""
SOURCE = "EC2 DescribeSpotPriceHistory and Pricing GetProducts"


class Offering(Wire):
    """That a kind of machine is sold in a region."""

    size: str = Field(alias="InstanceType")


class Offerings(Wire):
    """Answer to DescribeInstanceTypeOfferings."""

    offerings: list[Offering] = Field(alias="InstanceTypeOfferings")


class SpotPrice(Wire):
    """What a spot machine costs in a zone, from some time on."""

    size: str = Field(alias="InstanceType")
    zone: str = Field(alias="AvailabilityZone")
    usd: str = Field(alias="SpotPrice")
    since: datetime = Field(alias="Timestamp")


class SpotPrices(Wire):
    """Answer to DescribeSpotPriceHistory."""

    prices: list[SpotPrice] = Field(alias="SpotPriceHistory")


class Products(Wire):
    """Answer to GetProducts; each is a `Product`, as text."""

    products: list[str] = Field(alias="PriceList")


class Dimension(Wire):
    """What a unit costs, by currency."""

    unit: str
    price: Mapping[str, str] = Field(alias="pricePerUnit")


class Term(Wire):
    """A way to pay."""

    dimensions: Mapping[str, Dimension] = Field(alias="priceDimensions")


class Terms(Wire):
    """All ways to pay."""

    on_demand: Mapping[str, Term] = Field(alias="OnDemand", default_factory=dict[str, Term])


class Attributes(Wire):
    """What is paid for."""

    size: str = Field(alias="instanceType")
    region: str = Field(alias="regionCode")


class Item(Wire):
    """What is sold."""

    attributes: Attributes


class Product(Wire):
    """A line of the price list."""

    product: Item
    terms: Terms


class Aws:
    """See `Provider`."""

    name: ClassVar[str] = "aws"
    capabilities: ClassVar[Capabilities] = Capabilities(
        kind=Kind.machine,
        spot=True,
        multi_node=True,
        private_network=True,
        ssh=True,
        stop=True,
        billing_step_s=60,
        notice_s=120,
        status=Status.ga,
        evidence="EC2 and Pricing in botocore 1.44; docs.aws.amazon.com on spot interruptions",
        evidence_date="2026-11-22",
        note="what can be had depends on the quota of an account",
    )

    def __init__(self, api: AwsApi, regions: Sequence[str]) -> None:
        self._api = api
        self._regions = regions

    @classmethod
    def connect(cls, environment: Mapping[str, str]) -> Self:
        """See `Provider.connect`; keys may also be where boto3 finds them."""
        api = AwsApi.connect(cls.name, environment, environment.get("TIDEMILL_AWS_URL"))
        region = environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION")
        return cls(api, (region,) if region else REGIONS)

    def offers(self, demand: Demand) -> list[Offer]:
        """See `Provider.offers`."""
        sizes = {size.id: size for size in sizes_for(self.name, demand)}
        if not sizes:
            return []
        with ThreadPoolExecutor(len(self._regions) + 1, thread_name_prefix=self.name) as pool:
            listed = pool.submit(self._full_prices, sizes)
            sold = pool.map(partial(self._sold, sizes=sizes), self._regions)
            full = listed.result()
            return [
                offer
                for region, spot in zip(self._regions, sold, strict=True)
                for name, spot_usd in spot.items()
                for offer in offers_of(
                    sizes[name],
                    region,
                    full_usd=full.get((name, region)),
                    spot_usd=spot_usd,
                    source=SOURCE,
                )
            ]

    def close(self) -> None:
        """See `Provider.close`."""
        self._api.close()

    def _sold(self, region: str, sizes: Mapping[str, Size]) -> dict[str, float | None]:
        """What of `sizes` a region has at all, each with its spot price if there is one."""
        pages = self._api.pages(
            "ec2",
            region,
            "describe_instance_type_offerings",
            Offerings,
            LocationType="region",
            Filters=[{"Name": "instance-type", "Values": list(sizes)}],
        )
        had = {offering.size for page in pages for offering in page.offerings}
        sold = {name: size for name, size in sizes.items() if name in had}
        spot = self._spot_prices(region, sold) if sold else {}
        return {name: spot.get(name) for name in sold}

    def _spot_prices(self, region: str, sizes: Mapping[str, Size]) -> dict[str, float]:
        """By size; of several zones the middle price, as one that stands out is soon sold out."""
        newest: dict[tuple[str, str], SpotPrice] = {}
        pages = self._api.pages(
            "ec2",
            region,
            "describe_spot_price_history",
            SpotPrices,
            InstanceTypes=list(sizes),
            ProductDescriptions=[LINUX],
            StartTime=datetime.now(UTC),
        )
        for price in (price for page in pages for price in page.prices):
            place = (price.size, price.zone)
            known = price.size in sizes and _is_zone_of(price.zone, region)
            if known and (place not in newest or price.since > newest[place].since):
                newest[place] = price
        by_size: dict[str, list[float]] = {}
        for (name, _), price in newest.items():
            usd = believe(price.usd, sizes[name].gpus)
            if usd is not None:
                by_size.setdefault(name, []).append(usd)
        return {name: median_low(prices) for name, prices in by_size.items()}

    def _full_prices(self, sizes: Mapping[str, Size]) -> dict[tuple[str, str], float]:
        """On demand, by size and region; of several the dearest."""
        either = {"instanceType": ",".join(sizes), "regionCode": ",".join(self._regions)}
        pages = self._api.pages(
            "pricing",
            PRICES_AT,
            "get_products",
            Products,
            ServiceCode="AmazonEC2",
            Filters=[
                {"Type": kind, "Field": field, "Value": value}
                for kind, fields in (("ANY_OF", either), ("TERM_MATCH", ON_DEMAND_LINUX))
                for field, value in fields.items()
            ],
        )
        found: dict[tuple[str, str], float] = {}
        for text in (text for page in pages for text in page.products):
            line = self._api.read(Product, text, "pricing get_products")
            place = (line.product.attributes.size, line.product.attributes.region)
            found[place] = max(found.get(place, 0.0), *_hourly(line.terms), 0.0)
        return found


def _is_zone_of(zone: str, region: str) -> bool:
    """Whether it is one of the region's own zones, not a local one in some city."""
    return re.fullmatch(re.escape(region) + "[a-z]", zone) is not None


def _hourly(terms: Terms) -> Iterator[float]:
    for term in terms.on_demand.values():
        for dimension in term.dimensions.values():
            usd = believe(dimension.price.get("USD"), MOST_GPUS)
            if dimension.unit == "Hrs" and usd is not None:
                yield usd
