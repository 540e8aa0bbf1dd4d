"""A namespace of Puzl on loopback."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import yaml
from werkzeug import Response

from tests.kit.fakes.server import Answer, Fake

if TYPE_CHECKING:
    from werkzeug import Request

NAMESPACE = "tide-ns"
RESOURCE = "nvidia.com/gpu"


class FakePuzl(Fake):
    """Has a quota and nodes, which may be changed at any time.

    Args:
        folder: Where its kubeconfig is put.

    Attributes:
        quotas: Hard limit and use of GPUs, by quota; None is one that does not speak of them.
        nodes: Product and GPUs of each node; None if one may not look at them.
    """

    SPEC: ClassVar[str] = "puzl.json"

    def __init__(self, folder: Path | None = None) -> None:
        super().__init__()
        self.folder = folder
        self.quotas: list[tuple[int, int] | None] = [None, (6, 1), (8, 0)]
        self.nodes: list[tuple[str, int]] | None = [("NVIDIA-A100-PCIE-40GB", 4)]

    def environment(self) -> dict[str, str]:
        """What a client needs to find it."""
        return {
            "PUZL_KUBECONFIG": str(self.kubeconfig(token=self.KEY)),
            "PUZL_USD_PER_GPU_HOUR": "1.25",
            "TIDEMILL_PUZL_URL": self.url,
        }

    def kubeconfig(self, *, server: str = "https://cluster.invalid", **user: Any) -> Path:
        """A kubeconfig for one who has the properties of `user`."""
        assert self.folder is not None
        path = self.folder / "kubeconfig"
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "puzl",
            "clusters": [
                {"name": "other", "cluster": {"server": "https://other.invalid"}},
                {"name": "puzl", "cluster": {"server": server, **user.pop("cluster", {})}},
            ],
            "contexts": [
                {
                    "name": "puzl",
                    "context": {"cluster": "puzl", "user": "me", "namespace": NAMESPACE},
                }
            ],
            "users": [{"name": "me", "user": user}],
        }
        path.write_text(yaml.safe_dump(config), encoding="utf-8")
        return path

    def error(self, code: int, message: str) -> Any:
        """See `Fake.error`."""
        return {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": message,
            "code": code,
        }

    def routes(self) -> Mapping[tuple[str, str], Callable[[Request], Answer]]:
        """See `Fake.routes`."""
        return {
            ("GET", f"/api/v1/namespaces/{NAMESPACE}/resourcequotas"): lambda _: {
                "kind": "ResourceQuotaList",
                "apiVersion": "v1",
                "metadata": {},
                "items": [_quota(quota) for quota in self.quotas],
            },
            ("GET", "/api/v1/nodes"): lambda _: self._nodes(),
        }

    def _nodes(self) -> Answer:
        if self.nodes is None:
            body = self.error(403, 'nodes is forbidden: User "me" cannot list resource "nodes"')
            return Response(json.dumps(body), 403, content_type="application/json")
        items = [
            {
                "metadata": {
                    "name": f"node-{number}",
                    "labels": {"nvidia.com/gpu.product": product, "nvidia.com/gpu.memory": "40960"},
                },
                "status": {"allocatable": {RESOURCE: str(gpus), "cpu": "64"}},
            }
            for number, (product, gpus) in enumerate(self.nodes)
        ]
        items.append({"metadata": {"name": "no-gpu", "labels": {}}, "status": {}})
        return {"kind": "NodeList", "apiVersion": "v1", "metadata": {}, "items": items}


def _quota(quota: tuple[int, int] | None) -> dict[str, Any]:
    name = f"requests.{RESOURCE}" if quota else "pods"
    hard, used = quota or (100, 3)
    return {
        "metadata": {"name": "quota", "namespace": NAMESPACE},
        "spec": {"hard": {name: str(hard)}},
        "status": {"hard": {name: str(hard)}, "used": {name: str(used)}},
    }
