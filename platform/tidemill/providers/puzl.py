"""Puzl: pods with GPUs in a namespace of its Kubernetes cluster, at a price that its user states.

There is no price list and no list of machines. What can be had follows from the namespace's quota
and, where one may look at them, from the nodes; the price is what the contract says.

Source: docs.puzl.cloud (cloud-native platform); Kubernetes' API v1, ResourceQuota and Node.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self
from urllib.parse import quote

from pydantic import Field

from tidemill.plan.gpus import matches, name_gpu
from tidemill.plan.offers import Demand, Offer
from tidemill.providers.base import Capabilities, Kind, Status, UnusableError
from tidemill.providers.http import Api, Wire
from tidemill.providers.kubeconfig import Access, read_kubeconfig
from tidemill.providers.prices import believe
from tidemill.providers.rates import rates_of
from tidemill.providers.trouble import ProviderError, Trouble
from tidemill.spec.placement import Network, Tier

PRICE = "PUZL_USD_PER_GPU_HOUR"
RESOURCE = "nvidia.com/gpu"
PRODUCT = "nvidia.com/gpu.product"
MEMORY = "nvidia.com/gpu.memory"
MIB_PER_GIB = 1024
DOCUMENTED = "A100-PCIE-40GB"
"""The one kind in its documents."""
COUNTS = (1, 2, 4, 8)
"""GPUs of a pod."""


class Amounts(Wire):
    """How much of a resource there is at most, and how much of that is taken."""

    hard: dict[str, str] = Field(default_factory=dict[str, str])
    used: dict[str, str] = Field(default_factory=dict[str, str])


class Quota(Wire):
    """What a namespace may use."""

    status: Amounts = Field(default_factory=Amounts)


class Quotas(Wire):
    """Answer to `GET /api/v1/namespaces/{namespace}/resourcequotas`."""

    items: list[Quota]


class Labels(Wire):
    """What is said of a node."""

    labels: dict[str, str] = Field(default_factory=dict[str, str])


class Allocatable(Wire):
    """What a node has for pods."""

    allocatable: dict[str, str] = Field(default_factory=dict[str, str])


class Node(Wire):
    """A machine of the cluster."""

    metadata: Labels
    status: Allocatable = Field(default_factory=Allocatable)


class Nodes(Wire):
    """Answer to `GET /api/v1/nodes`."""

    items: list[Node]


class Puzl:
    """See `Provider`."""

    name: ClassVar[str] = "puzl"
    capabilities: ClassVar[Capabilities] = Capabilities(
        kind=Kind.pod,
        spot=False,
        multi_node=True,
        private_network=True,
        ssh=False,
        stop=False,
        billing_step_s=1,
        notice_s=0,
        status=Status.at_risk,
        evidence="docs.puzl.cloud: it now sells runners for CI, and keeps the older pages",
        evidence_date="2026-11-22",
        note="your own kubeconfig and your own price; works with any such namespace",
    )

    def __init__(self, api: Api, namespace: str, usd_per_gpu_hour: float) -> None:
        self._api = api
        self._namespace = namespace
        self._usd_per_gpu_hour = usd_per_gpu_hour

    @classmethod
    def connect(cls, environment: Mapping[str, str]) -> Self:
        """See `Provider.connect`."""
        path = environment.get("PUZL_KUBECONFIG", "").strip()
        if not path:
            raise UnusableError(
                "PUZL_KUBECONFIG is not set",
                "export PUZL_KUBECONFIG with the path of the kubeconfig of your namespace",
            )
        access = read_kubeconfig(Path(path).expanduser())
        usd = believe(environment.get(PRICE))
        if usd is None:
            raise UnusableError(
                f"Puzl publishes no prices, and {PRICE} is not set to one",
                f"export {PRICE} with what your contract says, in dollars",
            )
        return cls(_api_of(access, environment.get("TIDEMILL_PUZL_URL")), access.namespace, usd)

    def offers(self, demand: Demand) -> list[Offer]:
        """See `Provider.offers`."""
        namespace = quote(self._namespace, safe="")
        quotas = self._api.get(f"/api/v1/namespaces/{namespace}/resourcequotas", Quotas)
        free = _free(quotas)
        return [
            self._offer(gpu, memory_gib, gpus, None if free is None else free // gpus)
            for (gpu, memory_gib), most in self._kinds().items()
            for gpus in COUNTS
            if demand.count <= gpus <= min(most, most if free is None else free)
            and matches(gpu, demand.gpus)
        ]

    def close(self) -> None:
        """See `Provider.close`."""
        self._api.close()

    def _kinds(self) -> dict[tuple[str, float], int]:
        """GPUs and their memory, each with the most of them in one node."""
        try:
            nodes = self._api.get("/api/v1/nodes", Nodes).items
        except ProviderError as error:
            if error.trouble is not Trouble.forbidden:
                raise
            nodes = []  # a namespace's account seldom may look at them
        found: dict[tuple[str, float], int] = {}
        for node in nodes:
            labels = node.metadata.labels
            if PRODUCT in labels:
                kind = name_gpu(labels[PRODUCT], _amount(labels.get(MEMORY)) / MIB_PER_GIB)
                found[kind] = max(
                    found.get(kind, 0), _amount(node.status.allocatable.get(RESOURCE))
                )
        return found or {name_gpu(DOCUMENTED): 1}

    def _offer(self, gpu: str, memory_gib: float, gpus: int, available: int | None) -> Offer:
        return Offer(
            provider=self.name,
            id=f"{gpus}x {gpu}",
            region="",
            gpu=gpu,
            gpus=gpus,
            gpu_mem_gib=memory_gib,
            usd_per_hour=round(gpus * self._usd_per_gpu_hour, 6),
            tier=Tier.managed,
            network=Network.private,
            available=available,
            rates=rates_of(self.name),
            source=PRICE,
            fetched_at=time.time(),
            live=True,
        )


def _api_of(access: Access, elsewhere: str | None) -> Api:
    if not elsewhere and not access.server.startswith("https://"):
        raise UnusableError(
            f"{access.server} is not encrypted, which would show the token to anyone",
            "get a kubeconfig whose server begins with https://",
        )
    return Api(
        Puzl.name,
        elsewhere or access.server,
        headers={"Authorization": f"Bearer {access.token}"},
        secrets=[access.token],
        refusal=_refusal,
        trust=access.trust,
    )


def _free(quotas: Quotas) -> int | None:
    """GPUs that the strictest quota leaves; None if none speaks of them."""
    left = [
        _amount(hard) - _amount(quota.status.used.get(name))
        for quota in quotas.items
        for name, hard in quota.status.hard.items()
        if name.removeprefix("requests.") == RESOURCE
    ]
    return max(0, min(left)) if left else None


def _amount(quantity: str | None) -> int:
    """A whole quantity; 0 if it is not one."""
    return int(quantity) if quantity and quantity.isdecimal() else 0


def _refusal(plain: Any) -> str | None:
    match plain:
        case {"kind": "Status", "status": "Failure", "code": code, "message": message}:
            return f"{code}: {message}"
        case _:
            return None
