"""Salad on loopback."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from tests.kit.fakes.server import Answer, Fake

if TYPE_CHECKING:
    from werkzeug import Request

ORGANIZATION = "tide-crew"
PRIORITIES = ("high", "medium", "low", "batch")
KINDS = (
    ("RTX 4090 (24 GB)", "community", ("0.30", "0.26", "0.22", "0.18")),
    ("RTX 3060 (12 GB)", "community", ("0.08", "0.06", "0.05", "0")),
    ("L40S", "secure", ("0.80", "0.80", "0.80", "0.80")),
    ("RTX 9990 (96 GB)", "community", ("1.00", "0.90", "0.80", "0.70")),
    ("RTX 5090 (32 GB)", "community", ("-1", "-1", "-1", "ask us")),
)
CLUSTER = ("H100", "secure", ("2.00", "1.90", "1.80", "1.70"))
"""Of several GPUs."""


class FakeSalad(Fake):
    """Sells `KINDS`: one with no price for its lowest priority, one that has none, one unknown.

    Args:
        kinds: What it sells: name, class, dollars an hour by `PRIORITIES`.
    """

    SPEC: ClassVar[str] = "salad.json"

    def __init__(self, kinds: tuple[tuple[str, str, tuple[str, ...]], ...] = KINDS) -> None:
        super().__init__()
        self.kinds = (*kinds, CLUSTER)

    def environment(self) -> dict[str, str]:
        """What a client needs to find it."""
        return {
            "SALAD_API_KEY": self.KEY,
            "SALAD_ORGANIZATION": ORGANIZATION,
            "TIDEMILL_SALAD_URL": self.url,
        }

    def is_allowed(self, request: Request) -> bool:
        """See `Fake.is_allowed`."""
        return request.headers.get("Salad-Api-Key") == self.KEY

    def error(self, code: int, message: str) -> Any:
        """See `Fake.error`."""
        return {"type": "about:blank", "title": "Error", "status": code, "detail": message}

    def routes(self) -> Mapping[tuple[str, str], Callable[[Request], Answer]]:
        """See `Fake.routes`."""
        path = f"/organizations/{ORGANIZATION}/gpu-classes"
        return {("GET", path): lambda _: {"items": self._classes()}}

    def _classes(self) -> list[dict[str, Any]]:
        return [
            {
                "id": str(uuid.uuid5(uuid.NAMESPACE_DNS, name)),
                "name": name,
                "gpu_class_type": kind,
                "gpu_count": 8 if name == CLUSTER[0] else 1,
                "is_high_demand": False,
                "min_vcpu": 1,
                "max_vcpu": 16,
                "min_ram": 1024,
                "max_ram": 61440,
                "min_storage": 2**30,
                "max_storage": 250 * 2**30,
                "prices": [
                    {"priority": priority, "price": price}
                    for priority, price in zip(PRIORITIES, prices, strict=True)
                ],
            }
            for name, kind, prices in self.kinds
        ]
