"""Google's catalogue of prices on loopback."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from werkzeug import Response

from tests.kit.fakes.server import Answer, Fake

if TYPE_CHECKING:
    from werkzeug import Request

IOWA = ("us-central1",)
AMERICAS = ("us-central1", "us-east4")
UNITS = {"Core": "h", "Ram": "GiBy.h", "Storage": "GiBy.mo"}
SPOT = " attached to Spot Preemptible VMs"

ROWS: tuple[tuple[str, str, float, tuple[str, ...]], ...] = (
    ("A2 Instance Core running in Americas", "OnDemand", 0.031611, AMERICAS),
    ("A2 Instance Ram running in Americas", "OnDemand", 0.004237, AMERICAS),
    ("Nvidia Tesla A100 GPU running in Americas", "OnDemand", 2.933908, IOWA),
    ("Nvidia Tesla A100 80GB GPU running in Americas", "OnDemand", 3.928082, AMERICAS),
    ("SSD backed Local Storage", "OnDemand", 0.08, IOWA),
    ("Spot Preemptible A2 Instance Core running in Americas", "Preemptible", 0.01, IOWA),
    ("Spot Preemptible A2 Instance Ram running in Americas", "Preemptible", 0.002, IOWA),
    (f"Nvidia Tesla A100 GPU{SPOT} running in Americas", "Preemptible", 1.2, IOWA),
    ("Reserved A2 Core in Americas", "OnDemand", 9.0, IOWA),
    ("A2 Instance Core attached to DWS Defined Duration VMs", "OnDemand", 9.0, IOWA),
    ("Sole Tenancy Premium for A2 Instance Core running in Americas", "OnDemand", 9.0, IOWA),
    ("Commitment v1: Nvidia Tesla A100 GPU running in Americas", "Commit1Yr", 9.0, IOWA),
    ("Reserved Nvidia Tesla A100 GPU in Americas in Calendar Mode", "OnDemand", 9.0, IOWA),
    ("G2 Instance Core running in Americas", "OnDemand", 0.024988, IOWA),
    ("G2 Instance Ram running in Americas", "OnDemand", 0.002927, IOWA),
    ("Nvidia L4 GPU running in Americas", "OnDemand", 0.560040, IOWA),
    ("Spot Preemptible G2 Instance Core running in Americas", "OnDemand", 0.024988, IOWA),
    ("Spot Preemptible G2 Instance Ram running in Americas", "OnDemand", 0.002927, IOWA),
    (f"Nvidia L4 GPU{SPOT} running in Americas", "OnDemand", 0.560040, IOWA),
    ("A3 Instance Core running in Americas", "OnDemand", 0.0255, IOWA),
    ("A3 Instance Ram running in Americas", "OnDemand", 0.00222, IOWA),
    ("Nvidia H100 80GB GPU running in Americas", "OnDemand", 9.796550569, IOWA),
    (f"Nvidia H100 80GB GPU{SPOT} running in Americas", "Preemptible", 3.0, IOWA),
    ("A3Plus Instance Core running in Americas", "OnDemand", 0.026924, IOWA),
    ("A3Plus Instance Ram running in Americas", "OnDemand", 0.002344, IOWA),
    ("Nvidia H100 80GB Plus GPU running in Americas", "OnDemand", 10.344276, IOWA),
)


class FakeGcp(Fake):
    """Lists `ROWS`, a few at a time."""

    SPEC: ClassVar[str] = "gcp.json"
    PAGE: ClassVar[int] = 7

    def environment(self) -> dict[str, str]:
        """What a client needs to find it."""
        return {"GOOGLE_API_KEY": self.KEY, "TIDEMILL_GCP_URL": self.url}

    def is_allowed(self, request: Request) -> bool:
        """Told by `_skus`: Google's status for a wrong key is 400."""
        del request
        return True

    def error(self, code: int, message: str) -> Any:
        """See `Fake.error`."""
        return {"error": {"code": code, "message": message, "status": "FAILED"}}

    def routes(self) -> Mapping[tuple[str, str], Callable[[Request], Answer]]:
        """See `Fake.routes`."""
        return {("GET", "/v1/services/6F81-5844-456A/skus"): self._skus}

    def _skus(self, request: Request) -> Any:
        if request.headers.get("X-Goog-Api-Key") != self.KEY:
            body = self.error(400, "API key not valid. Please pass a valid API key.")
            kind = "type.googleapis.com/google.rpc.ErrorInfo"
            body["error"]["details"] = [{"@type": kind, "reason": "API_KEY_INVALID"}]
            return Response(json.dumps(body), 400, content_type="application/json")
        token = request.args.get("pageToken", "")
        begin = int(token.removeprefix("at-")) if token.startswith("at-") else 0
        end = begin + self.PAGE
        rows = [_sku(number, *row) for number, row in enumerate(ROWS)]
        return {"skus": rows[begin:end], "nextPageToken": f"at-{end}" if end < len(rows) else ""}


def _sku(
    number: int, description: str, usage: str, usd: float, regions: tuple[str, ...]
) -> dict[str, Any]:
    nanos = round(usd * 1e9)
    price = {"currencyCode": "USD", "units": str(nanos // 10**9), "nanos": nanos % 10**9}
    unit = next((unit for word, unit in UNITS.items() if word in description), "h")
    name = f"{number:04X}-0000-0000"
    return {
        "name": f"services/6F81-5844-456A/skus/{name}",
        "skuId": name,
        "description": description,
        "category": {
            "serviceDisplayName": "Compute Engine",
            "resourceFamily": "Storage" if unit == "GiBy.mo" else "Compute",
            "resourceGroup": "GPU" if "GPU" in description else "CPU",
            "usageType": usage,
        },
        "serviceRegions": list(regions),
        "pricingInfo": [
            {
                "effectiveTime": "2026-11-22T08:00:00Z",
                "summary": "",
                "pricingExpression": {
                    "usageUnit": unit,
                    "displayQuantity": 1,
                    "tieredRates": [
                        {
                            "startUsageAmount": 0,
                            "unitPrice": {key: value for key, value in price.items() if value},
                        }
                    ],
                },
                "currencyConversionRate": 1,
            }
        ],
        "serviceProviderName": "Google",
    }
