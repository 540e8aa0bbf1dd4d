"""Azure's list of retail prices on loopback."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from tests.kit.fakes.server import Answer, Fake

if TYPE_CHECKING:
    from werkzeug import Request

H100 = "Standard_ND96isr_H100_v5"
A100 = "Standard_NC24ads_A100_v4"
T4 = "Standard_NC4as_T4_v3"
ROWS: tuple[tuple[str, str, float, dict[str, Any]], ...] = (
    (H100, "eastus", 98.32, {}),
    (H100, "eastus", 39.33, {"kind": " Spot"}),
    (H100, "eastus", 19.66, {"kind": " Low Priority"}),
    (H100, "eastus", 9.0, {"product": " Windows"}),
    (H100, "eastus", 8.0, {"type": "DevTestConsumption"}),
    (H100, "eastus", 350400.0, {"type": "Reservation", "unit": "1 Hour"}),
    (H100, "eastus", 7.0, {"isPrimaryMeterRegion": False}),
    (H100, "eastus", 6.0, {"tierMinimumUnits": 100.0}),
    (H100, "westeurope", 127.816, {}),
    (H100, "westeurope", 127.816, {"kind": " Spot"}),
    (A100, "eastus", 3.673, {}),
    (A100, "uksouth", 0.0, {}),
    (A100, "uksouth", 0.0, {"kind": " Spot"}),
    (T4, "swedencentral", 0.526, {}),
    (T4, "swedencentral", 0.0627, {"kind": " Spot"}),
    ("Standard_D4as_v6", "eastus", 0.182, {}),
)


class FakeAzure(Fake):
    """Lists `ROWS`, a few at a time.

    Attributes:
        link: To the next page.
    """

    SPEC: ClassVar[str] = "azure.json"
    PAGE: ClassVar[int] = 4

    def __init__(self) -> None:
        super().__init__()
        self.link = "https://prices.azure.com:443/api/retail/prices?$filter={asked}&$skip={skip}"

    def environment(self) -> dict[str, str]:
        """What a client needs to find it."""
        return {"TIDEMILL_AZURE_URL": self.url}

    def is_allowed(self, request: Request) -> bool:
        """Whoever it is."""
        del request
        return True

    def error(self, code: int, message: str) -> Any:
        """See `Fake.error`."""
        return {"Error": {"Code": str(code), "Message": message}}

    def routes(self) -> Mapping[tuple[str, str], Callable[[Request], Answer]]:
        """See `Fake.routes`."""
        return {("GET", "/api/retail/prices"): self._prices}

    def _prices(self, request: Request) -> Any:
        asked = request.args.get("$filter", "")
        sizes = re.findall(r"armSkuName eq '([^']*)'", asked)
        types = re.findall(r"priceType eq '([^']*)'", asked)
        rows = [_row(*row) for row in ROWS]
        found = [
            row
            for row in rows
            if (not sizes or row["armSkuName"] in sizes) and (not types or row["type"] in types)
        ]
        begin = request.args.get("$skip", 0, type=int)
        end = begin + self.PAGE
        more = self.link.format(asked=asked, skip=end) if end < len(found) else None
        return {
            "BillingCurrency": "USD",
            "CustomerEntityId": "Default",
            "CustomerEntityType": "Retail",
            "Items": found[begin:end],
            "NextPageLink": more,
            "Count": len(found[begin:end]),
        }


def _row(size: str, region: str, usd: float, more: Mapping[str, Any]) -> dict[str, Any]:
    kind = size.removeprefix("Standard_").replace("_", " ")
    other = {key: value for key, value in more.items() if key not in {"kind", "product", "unit"}}
    return {
        "currencyCode": "USD",
        "tierMinimumUnits": 0.0,
        "retailPrice": usd,
        "unitPrice": usd,
        "armRegionName": region,
        "location": region.upper(),
        "effectiveStartDate": "2026-10-01T00:00:00Z",
        "meterId": "0084b086-37bf-4bee-b27f-6eb0f9ee4954",
        "meterName": kind + more.get("kind", ""),
        "productId": "DZH318Z0BQ35",
        "skuId": "DZH318Z0BQ35/00B4",
        "productName": f"Virtual Machines {kind.split()[0]} Series{more.get('product', '')}",
        "skuName": kind + more.get("kind", ""),
        "serviceName": "Virtual Machines",
        "serviceId": "DZH313Z7MMC8",
        "serviceFamily": "Compute",
        "unitOfMeasure": more.get("unit", "1 Hour"),
        "type": "Consumption",
        "isPrimaryMeterRegion": True,
        "armSkuName": size,
        **other,
    }
