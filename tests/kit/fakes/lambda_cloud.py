"""Lambda Cloud on loopback."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from tests.kit.fakes.server import Answer, Fake

if TYPE_CHECKING:
    from werkzeug import Request

KINDS = (
    ("gpu_1x_h100_sxm5", "H100 (80 GB SXM5)", 1, 429, ("us-east-1", "us-west-3")),
    ("gpu_8x_h100_sxm5", "H100 (80 GB SXM5)", 8, 3192, ("us-east-1",)),
    ("gpu_1x_a10", "A10 (24 GB PCIe)", 1, 129, ("europe-central-1",)),
    ("gpu_8x_a100", "A100 (40 GB SXM4)", 8, 1592, ()),
    ("gpu_1x_new", "X900 (512 GB SXM9)", 1, 999, ("us-east-1",)),
)


class FakeLambda(Fake):
    """Sells `KINDS`, one of them nowhere and one with a GPU that nobody knows.

    Args:
        kinds: What it sells: name, GPU, GPUs, cents an hour, regions.
    """

    SPEC: ClassVar[str] = "lambda.json"

    def __init__(
        self, kinds: tuple[tuple[str, str, int, int, tuple[str, ...]], ...] = KINDS
    ) -> None:
        super().__init__()
        self.kinds = kinds

    def environment(self) -> dict[str, str]:
        """What a client needs to find it."""
        return {"LAMBDA_API_KEY": self.KEY, "TIDEMILL_LAMBDA_URL": self.url}

    def error(self, code: int, message: str) -> Any:
        """See `Fake.error`."""
        known = {401: "global/invalid-api-key", 403: "global/forbidden", 404: "global/not-found"}
        kind = known.get(code, f"global/error-{code}")
        return {"error": {"code": kind, "message": message, "suggestion": "Try again."}}

    def routes(self) -> Mapping[tuple[str, str], Callable[[Request], Answer]]:
        """See `Fake.routes`."""
        return {("GET", "/api/v1/instance-types"): lambda _: {"data": self._types()}}

    def _types(self) -> dict[str, Any]:
        return {
            name: {
                "instance_type": {
                    "name": name,
                    "description": f"{gpus}x {gpu}",
                    "gpu_description": gpu,
                    "price_cents_per_hour": cents,
                    "specs": {
                        "vcpus": 26 * gpus,
                        "memory_gib": 225 * gpus,
                        "storage_gib": 2750 * gpus,
                        "gpus": gpus,
                    },
                },
                "regions_with_capacity_available": [
                    {"name": region, "description": region.title()} for region in regions
                ],
            }
            for name, gpu, gpus, cents, regions in self.kinds
        }
