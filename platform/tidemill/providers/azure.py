"""Azure: the public list of retail prices, which needs no account.

The list says what a size costs where, not whether it can be had. Its pages come with a link to the
next; only the position is taken from it, so that a request never goes to another address.

Source: learn.microsoft.com/rest/api/cost-management/retail-prices/azure-retail-prices.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Self
from urllib.parse import parse_qs, urlsplit

from pydantic import Field

from tidemill.plan.offers import Demand, Offer
from tidemill.providers.base import Capabilities, Kind, Status
from tidemill.providers.http import Api, Wire
from tidemill.providers.sizes import Size, offers_of, sizes_for
from tidemill.providers.trouble import ProviderError, Trouble

URL = "https://prices.azure.com"
PATH = "/api/retail/prices"
VERSION = "2023-01-01-preview"
MOST_PAGES = 40
SPOT = "Spot"
CHEAPER_BUT_GONE = "Low Priority"
"""What spot machines were called before; such prices are still listed."""


class Row(Wire):
    """A price of something, somewhere."""

    size: str = Field(alias="armSkuName")
    region: str = Field(alias="armRegionName")
    usd: float = Field(alias="retailPrice")
    currency: str = Field(alias="currencyCode")
    from_units: float = Field(alias="tierMinimumUnits", default=0.0)
    product: str = Field(alias="productName")
    kind: str = Field(alias="skuName")
    unit: str = Field(alias="unitOfMeasure")
    primary: bool = Field(alias="isPrimaryMeterRegion", default=True)


class Page(Wire):
    """Answer to `GET /api/retail/prices`."""

    rows: list[Row] = Field(alias="Items")
    after: str | None = Field(alias="NextPageLink", default=None)


class Azure:
    """See `Provider`."""

    name: ClassVar[str] = "azure"
    capabilities: ClassVar[Capabilities] = Capabilities(
        kind=Kind.machine,
        spot=True,
        multi_node=True,
        private_network=True,
        ssh=True,
        stop=True,
        billing_step_s=1,
        notice_s=30,
        status=Status.ga,
        evidence="Azure Retail Prices API 2023-01-01-preview, learn.microsoft.com",
        evidence_date="2026-11-22",
        note="prices are public; what can be had depends on the quota of a subscription",
    )

    def __init__(self, api: Api) -> None:
        self._api = api

    @classmethod
    def connect(cls, environment: Mapping[str, str]) -> Self:
        """See `Provider.connect`; nothing can be missing."""
        return cls(Api(cls.name, environment.get("TIDEMILL_AZURE_URL", URL), refusal=_refusal))

    def offers(self, demand: Demand) -> list[Offer]:
        """See `Provider.offers`."""
        sizes = sizes_for(self.name, demand)
        listed: dict[tuple[str, str, bool], Row] = {}
        for row in self._rows(sizes):
            if not _is_linux_by_the_hour(row):
                continue
            place = (row.size, row.region, row.kind.endswith(SPOT))
            if place not in listed or _weight(row) > _weight(listed[place]):
                listed[place] = row
        prices = {place: row.usd for place, row in listed.items()}
        regions = sorted({region for _, region, _ in prices})
        return [
            offer
            for size in sizes
            for region in regions
            for offer in offers_of(
                size,
                region,
                full_usd=prices.get((size.id, region, False)),
                spot_usd=prices.get((size.id, region, True)),
                source=f"{URL}{PATH}",
            )
        ]

    def close(self) -> None:
        """See `Provider.close`."""
        self._api.close()

    def _rows(self, sizes: Sequence[Size]) -> Iterator[Row]:
        """All prices of `sizes`, in no order."""
        if not sizes:
            return
        wanted = " or ".join(f"armSkuName eq '{size.id}'" for size in sizes)
        asked = f"serviceName eq 'Virtual Machines' and priceType eq 'Consumption' and ({wanted})"
        skip: int | None = None
        for _ in range(MOST_PAGES):
            params = {"api-version": VERSION, "$filter": asked, "$skip": skip}
            page = self._api.ask("GET", PATH, Page, params=params)
            yield from page.rows
            if not page.after:
                return
            skip = self._position(page.after, skip or 0)
        raise ProviderError(self.name, Trouble.unreadable, f"more than {MOST_PAGES} pages")

    def _position(self, link: str, before: int) -> int:
        """Where the next page begins."""
        stated = parse_qs(urlsplit(link).query).get("$skip", [""])[0]
        if not stated.isdecimal() or int(stated) <= before:
            raise ProviderError(self.name, Trouble.unreadable, "no next page where one is linked")
        return int(stated)


def _is_linux_by_the_hour(row: Row) -> bool:
    return (
        row.currency == "USD"
        and row.unit == "1 Hour"
        and row.from_units == 0
        and "Windows" not in row.product
        and CHEAPER_BUT_GONE not in row.kind
    )


def _weight(row: Row) -> tuple[bool, float]:
    """Of two prices for the same, the meter's own region counts, then the dearer."""
    return row.primary, row.usd


def _refusal(plain: Any) -> str | None:
    match plain:
        case {"Error": {"Code": code, "Message": message}}:
            return f"{code}: {message}"
        case _:
            return None
