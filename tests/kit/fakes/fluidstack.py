"""FluidStack on loopback."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from tests.kit.fakes.server import Answer, Fake

if TYPE_CHECKING:
    from werkzeug import Request

CLUSTERS = (
    ("tide-1", "us-west-2", "kubernetes", "proj-a", "healthy"),
    ("tide-2", "eu-north-1", "slurm", "proj-b", "stale"),
)


class FakeFluidStack(Fake):
    """Has `CLUSTERS` of this account.

    Args:
        clusters: Name, region, type, project and health of each.
    """

    SPEC: ClassVar[str] = "fluidstack.json"

    def __init__(self, clusters: tuple[tuple[str, ...], ...] = CLUSTERS) -> None:
        super().__init__()
        self.clusters = clusters

    def environment(self) -> dict[str, str]:
        """What a client needs to find it."""
        return {"FLUIDSTACK_API_KEY": self.KEY, "TIDEMILL_FLUIDSTACK_URL": self.url}

    def error(self, code: int, message: str) -> Any:
        """See `Fake.error`."""
        return {"message": f"{code} {message}"}

    def routes(self) -> Mapping[tuple[str, str], Callable[[Request], Answer]]:
        """See `Fake.routes`."""
        return {("GET", "/clusters"): lambda _: self._clusters()}

    def _clusters(self) -> list[dict[str, Any]]:
        return [
            {
                "id": str(uuid.uuid5(uuid.NAMESPACE_DNS, name)),
                "name": name,
                "region": region,
                "type": kind,
                "project_id": project,
                "health": health,
                "updated_at": "2026-11-22T10:00:00Z",
            }
            for name, region, kind, project, health in self.clusters
        ]
