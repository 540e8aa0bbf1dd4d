"""FluidStack: whole clusters by contract, without a price list.

What has no price cannot be ranked, so nothing is offered; whoever asks is told so, and which of
their clusters are there to be attached.

Source: FluidStack Management API v1alpha1. Its list of machine types and its capacity
(fluidctl@f1c410d, 2025-05) are no longer in that document, and never had prices.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from tidemill.plan.offers import Demand, Offer
from tidemill.providers.base import Capabilities, Kind, Status, UnusableError, require_key
from tidemill.providers.http import Api, Wire

URL = "https://api.atlas.fluidstack.io/api/v1alpha1"
SITE = "https://www.fluidstack.io"


class Cluster(Wire):
    """Machines that were contracted."""

    name: str
    region: str
    type: str
    project_id: str = ""
    health: str = "unknown"


class FluidStack:
    """See `Provider`."""

    name: ClassVar[str] = "fluidstack"
    capabilities: ClassVar[Capabilities] = Capabilities(
        kind=Kind.machine,
        spot=False,
        multi_node=True,
        private_network=True,
        ssh=True,
        stop=False,
        billing_step_s=0,
        notice_s=0,
        status=Status.attach_only,
        evidence="Management API v1alpha1, api-evangelist/fluidstack@cba7f027; no price, no create",
        evidence_date="2026-08-22",
        note="sells clusters by contract; its marketplace is gone",
    )

    def __init__(self, api: Api, project: str) -> None:
        self._api = api
        self._project = project

    @classmethod
    def connect(cls, environment: Mapping[str, str]) -> Self:
        """See `Provider.connect`; `FLUIDSTACK_PROJECT` narrows it to the clusters of a project."""
        key = require_key(environment, "FLUIDSTACK_API_KEY", f"your contact at {SITE}")
        project = environment.get("FLUIDSTACK_PROJECT", "").strip()
        api = Api(
            cls.name,
            environment.get("TIDEMILL_FLUIDSTACK_URL", URL),
            headers={"Authorization": f"Bearer {key}"},
            secrets=[key],
            refusal=_refusal,
        )
        return cls(api, project)

    def offers(self, demand: Demand) -> list[Offer]:
        """See `Provider.offers`.

        Raises:
            UnusableError: Always, if it answers: it has no prices.
        """
        del demand
        clusters = [
            cluster
            for cluster in self._api.get("/clusters", list[Cluster])
            if not self._project or cluster.project_id == self._project
        ]
        if not clusters:
            raise UnusableError(
                "publishes no prices, and this account has no cluster",
                f"ask for an offer at {SITE}, then attach the cluster",
            )
        known = ", ".join(
            f"{cluster.name} ({cluster.type}, {cluster.region}, {cluster.health})"
            for cluster in clusters
        )
        raise UnusableError(
            "publishes no prices, so none of its machines can be ranked",
            f"attach an existing cluster: {known}",
        )

    def close(self) -> None:
        """See `Provider.close`."""
        self._api.close()


def _refusal(plain: Any) -> str | None:
    match plain:
        case {"message": str(message)}:
            return message
        case _:
            return None
