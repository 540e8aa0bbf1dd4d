"""TensorDock on loopback."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from tests.kit.fakes.server import Answer, Fake

if TYPE_CHECKING:
    from werkzeug import Request

PARTS = {"per_vcpu_hr": 0.003, "per_gb_ram_hr": 0.002, "per_gb_storage_hr": 0.00005}
AUSTIN = ("Austin", "Texas", "United States", 3)
ASHBURN = ("Ashburn", "VA", "USA", 1)
NOWHERE = ("Utopia", "", "Erewhon", 2)
H100 = "h100-sxm5-80gb"
RTX4090 = "geforcertx4090-pcie-24gb"
HOSTS: tuple[dict[str, Any], ...] = (
    {"id": "hn-1", "gpus": ((H100, 8, 2.2),), "vcpu": 128, "ram": 512, "place": AUSTIN},
    {"id": "hn-2", "gpus": ((RTX4090, 3, 0.32),), "vcpu": 12, "ram": 48, "place": ASHBURN},
    {
        "id": "hn-3",
        "gpus": (("x900-sxm9-512gb", 1, 9.0),),
        "vcpu": 64,
        "ram": 256,
        "place": NOWHERE,
    },
    {"id": "hn-4", "gpus": ((RTX4090, 1, 0.0),), "vcpu": 64, "ram": 256, "place": AUSTIN},
    {"id": "hn-5", "gpus": ((RTX4090, 1, 0.3),), "vcpu": 0, "ram": 256, "place": AUSTIN},
    {"id": "hn-6", "gpus": (("l4-pcie-24gb", 0, 0.24),), "vcpu": 64, "ram": 256, "place": AUSTIN},
    {
        "id": "hn-7",
        "gpus": (("a100-pcie-80gb", 1, 1.27),),
        "vcpu": 64,
        "ram": 256,
        "place": AUSTIN,
        "pricing": PARTS | {"per_gb_ram_hr": -1.0},
    },
)


class FakeTensorDock(Fake):
    """Has `HOSTS`: one with little left, one nobody knows, and some that cannot be rented.

    Attributes:
        hosts: What it answers from.
    """

    SPEC: ClassVar[str] = "tensordock.json"
    BASE: ClassVar[str] = "/api/v2"

    def __init__(self) -> None:
        super().__init__()
        self.hosts = list(HOSTS)

    def environment(self) -> dict[str, str]:
        """What a client needs to find it."""
        return {"TENSORDOCK_API_KEY": self.KEY, "TIDEMILL_TENSORDOCK_URL": self.url}

    def error(self, code: int, message: str) -> Any:
        """See `Fake.error`."""
        return {"error": message, "status": code}

    def routes(self) -> Mapping[tuple[str, str], Callable[[Request], Answer]]:
        """See `Fake.routes`."""
        hosts = {"data": {"hostnodes": [_hostnode(host) for host in self.hosts]}}
        return {("GET", "/api/v2/hostnodes"): lambda _: hosts}


def _hostnode(host: dict[str, Any]) -> dict[str, Any]:
    city, province, country, tier = host["place"]
    return {
        "id": host["id"],
        "location_id": f"loc-{city}",
        "engine": "kvm",
        "uptime_percentage": 99.9,
        "available_resources": {
            "gpus": [
                {"v0Name": name, "availableCount": available, "price_per_hr": usd}
                for name, available, usd in host["gpus"]
            ],
            "vcpu_count": host["vcpu"],
            "ram_gb": host["ram"],
            "storage_gb": 4000,
            "available_ports": [20000, 20001],
            "has_public_ip_available": True,
        },
        "pricing": host.get("pricing", PARTS),
        "location": {
            "uuid": f"loc-{city}",
            "city": city,
            "stateprovince": province,
            "country": country,
            "has_network_storage": False,
            "network_speed_gbps": 2.5,
            "network_speed_upload_gbps": 1.0,
            "organization": "org-1",
            "organizationName": "Somebody",
            "tier": tier,
        },
    }
