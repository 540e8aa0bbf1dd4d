"""A Ray cluster of several nodes on this machine, one of which may be lost at any time."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import psutil
from ray._raylet import GcsClient  # pyright: ignore[reportAttributeAccessIssue]
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2

MIB = 2**20


class Nodes:
    """A head and further nodes, each with its own raylet and one CPU.

    Attributes:
        address: Of the head, for `ray.init` and `RAY_ADDRESS`.
        ids: Ray's ids of the living nodes, the head first.
    """

    def __init__(self, *, head_cpus: int, store_mib: int) -> None:
        self._options: dict[str, Any] = {
            "object_store_memory": store_mib * MIB,
            "include_dashboard": False,
        }
        self._cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": head_cpus, **self._options}
        )
        self._nodes: dict[str, Any] = {}
        self._ever: list[Any] = []
        self._note(self._cluster.head_node)
        self.address = str(self._cluster.address)

    @property
    def ids(self) -> list[str]:
        return list(self._nodes)

    def add(self) -> str:
        """Start one more node; returns its id."""
        return self._note(self._cluster.add_node(num_cpus=1, **self._options))

    def lose(self, node: str) -> None:
        """SIGKILL a node's raylet; what ran on it dies with it, as soon as it notices."""
        raylet = self.raylet_of(node)
        del self._nodes[node]
        raylet.kill()
        raylet.wait(10)

    def drain(self, node: str, deadline_s: float) -> None:
        """Announce that a node goes; nobody makes it go."""
        reasons = autoscaler_pb2.DrainNodeReason  # pyright: ignore[reportAttributeAccessIssue]
        reason = reasons.Value("DRAIN_NODE_REASON_PREEMPTION")
        until_ms = int((time.time() + deadline_s) * 1000)
        accepted, why = GcsClient(address=self.address).drain_node(node, reason, "spot", until_ms)
        assert accepted, why

    def workers_of(self, node: str) -> list[psutil.Process]:
        """The processes that a node's raylet has started."""
        return self.raylet_of(node).children(recursive=True)

    def raylet_of(self, node: str) -> psutil.Process:
        """A node's raylet."""
        (info,) = self._nodes[node].all_processes["raylet"]
        return psutil.Process(info.process.pid)

    def close(self) -> None:
        """End all of it, and nothing else: this process has other children."""
        family = [process for node in self._ever for process in _family_of(node)]
        self._cluster.shutdown()
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(family, timeout=10)

    def _note(self, node: Any) -> str:
        self._nodes[node.node_id] = node
        self._ever.append(node)
        return node.node_id


def _family_of(node: Any) -> list[psutil.Process]:
    """What was started for a node and still lives."""
    found: list[psutil.Process] = []
    for infos in node.all_processes.values():
        for info in infos:
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(info.process.pid)
                found += [process, *process.children(recursive=True)]
    return found


@contextlib.contextmanager
def local_cluster(nodes: int, *, head_cpus: int = 0, store_mib: int = 100) -> Iterator[Nodes]:
    """A cluster of a head and `nodes` further nodes; nothing of it is left afterwards."""
    cluster = Nodes(head_cpus=head_cpus, store_mib=store_mib)
    try:
        for _ in range(nodes):
            cluster.add()
        yield cluster
    finally:
        cluster.close()
