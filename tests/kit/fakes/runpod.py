"""RunPod on loopback."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from werkzeug import Response

from tests.kit.fakes.server import Answer, Fake

if TYPE_CHECKING:
    from werkzeug import Request

PATH = "/v2/catalog/gpus"
H100 = "NVIDIA H100 80GB HBM3"
RTX4090 = "NVIDIA GeForce RTX 4090"
A100 = "NVIDIA A100 80GB PCIe"
KINDS: tuple[tuple[str, int, tuple[float, float], tuple[int, int]], ...] = (
    (H100, 80, (2.69, 0.0), (8, 0)),
    (RTX4090, 24, (0.69, 0.34), (8, 4)),
    (A100, 80, (1.39, 1.19), (8, 8)),
    ("NVIDIA X900", 512, (9.0, 8.0), (1, 1)),
    ("NVIDIA L4", 24, (0.0, -1.0), (8, 8)),
)
STOCK: Mapping[tuple[str, str], tuple[int, tuple[str, ...]]] = {
    (H100, "SECURE"): (4, ("US-KS-2", "EU-RO-1")),
    (RTX4090, "SECURE"): (8, ("CA-MTL-1", "EUR-IS-2", "somewhere")),
    (RTX4090, "COMMUNITY"): (2, ()),
    ("NVIDIA X900", "COMMUNITY"): (1, ()),
    ("NVIDIA L4", "SECURE"): (8, ("US-KS-2",)),
    ("NVIDIA L4", "COMMUNITY"): (8, ()),
}


class FakeRunPod(Fake):
    """Lists `KINDS`, of which `STOCK` is free: one kind is sold out, one has no price.

    Attributes:
        stock: Most GPUs that one machine has free, and in which data centers, by kind and cloud.
    """

    SPEC: ClassVar[str] = "runpod.json"
    BASE: ClassVar[str] = "/v2"

    def __init__(self) -> None:
        super().__init__()
        self.stock = dict(STOCK)

    def environment(self) -> dict[str, str]:
        """What a client needs to find it."""
        return {"RUNPOD_API_KEY": self.KEY, "TIDEMILL_RUNPOD_URL": self.url}

    def error(self, code: int, message: str) -> Any:
        """See `Fake.error`."""
        return {"title": "Error", "status": code, "detail": message}

    def routes(self) -> Mapping[tuple[str, str], Callable[[Request], Answer]]:
        """See `Fake.routes`."""
        return {("GET", PATH): self._list}

    def _list(self, request: Request) -> Answer:
        asked = request.args
        filters = set(asked) & {"count", "cloud", "countryCodes", "product"}
        if asked.get("include") != "AVAILABILITY":
            return self._refuse("only with include=AVAILABILITY") if filters else self._kinds()
        count = asked.get("count", "1")
        if "product" not in asked or not count.isdecimal() or int(count) < 1:
            return self._refuse("product and a positive count are needed")
        return self._kinds((asked.get("cloud", "SECURE"), int(count)))

    def _refuse(self, why: str) -> Response:
        body = json.dumps(self.error(400, why))
        return Response(body, 400, content_type="application/problem+json")

    def _kinds(self, wanted: tuple[str, int] | None = None) -> dict[str, Any]:
        return {
            "gpus": [
                {
                    "id": name,
                    "name": name.removeprefix("NVIDIA "),
                    "pool": None,
                    "manufacturer": "NVIDIA",
                    "memory": memory,
                    "secure": secure > 0,
                    "community": community > 0,
                    "price": {"secure": usd[0], "community": usd[1]},
                    "maxCount": {"secure": secure, "community": community},
                }
                | (self._availability(name, *wanted) if wanted else {})
                for name, memory, usd, (secure, community) in KINDS
            ]
        }

    def _availability(self, name: str, cloud: str, count: int) -> dict[str, Any]:
        free, places = self.stock.get((name, cloud), (0, ()))
        if count > free:
            return {"availability": "NONE"}
        listed = [{"id": place, "name": place, "availability": "LOW"} for place in places]
        full = [{"id": "AP-JP-1", "name": "AP-JP-1", "availability": "NONE"}]
        return {"availability": "LOW"} | ({"dataCenters": listed + full} if listed else {})
