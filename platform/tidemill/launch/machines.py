"""Machines: a Ray cluster of several nodes on this computer, whose nodes come and go at will.

Each machine is a raylet with processes of its own, so to Ray and to a run it is a node like any
other: it is added, it is killed without a word, or it is announced to go and taken at a deadline.
What was there when is written down, for whoever accounts for it.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from ray._raylet import GcsClient  # pyright: ignore[reportAttributeAccessIssue]
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2

# isort: split
import psutil  # Ray brings it along

from tidemill.plan.trace import Stay

MIB = 2**20
END_S = 10.0
PREEMPTED: int = getattr(autoscaler_pb2, "DRAIN_NODE_REASON_PREEMPTION")  # noqa: B009 - generated
TEMPORARY = "RAY_TMPDIR"


class Machines:
    """A head that runs nothing, and machines for one worker each; for a process's main thread.

    Args:
        cpus: Logical CPUs of each machine.
        store_mib: Memory of each machine's object store.

    Attributes:
        address: Of the head, for `RAY_ADDRESS`.
    """

    def __init__(self, *, cpus: int = 1, store_mib: int = 100) -> None:
        self._options: dict[str, Any] = {"object_store_memory": store_mib * MIB}
        self._cpus = cpus
        self._cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 0, "include_dashboard": False, **self._options},
        )
        self._nodes: dict[str, Any] = {}
        self._stays: dict[str, Stay] = {}
        self._over: list[Stay] = []
        self._told_s: dict[str, float] = {}
        self._deadlines: dict[str, float] = {}
        self.address = str(self._cluster.address)

    @property
    def stays(self) -> tuple[Stay, ...]:
        """What was there when, in seconds since the epoch."""
        return tuple(sorted((*self._over, *self._stays.values()), key=lambda stay: stay.from_s))

    @property
    def ids(self) -> dict[str, str]:
        """Ray's ids of the machines that are there, by name."""
        return {name: node.node_id for name, node in self._nodes.items()}

    def add(self, name: str) -> None:
        """Start a machine, and wait until it is part of the cluster."""
        self._nodes[name] = self._cluster.add_node(num_cpus=self._cpus, **self._options)
        self._stays[name] = Stay(node=name, from_s=time.time())

    def kill(self, name: str) -> None:
        """Take a machine with all that runs on it, at once."""
        family = _family_of(self._nodes[name])
        _kill(family)
        self._note_gone(name)
        psutil.wait_procs(family, timeout=END_S)

    def drain(self, name: str, deadline_s: float) -> None:
        """Announce that a machine goes, and take it `deadline_s` later.

        Ray gives it back before, as soon as nobody uses it any more.
        """
        now_s = time.time()
        GcsClient(address=self.address).drain_node(
            self._nodes[name].node_id,
            PREEMPTED,
            "announced by a trace",
            int(1000 * (now_s + deadline_s)),
        )
        self._told_s[name], self._deadlines[name] = now_s, now_s + deadline_s

    def look(self) -> None:
        """Take those whose deadline is over, and note who is gone; to be called often."""
        for name, node in list(self._nodes.items()):
            if _raylet_of(node).poll() is not None:
                self._note_gone(name)
            elif self._deadlines.get(name, math.inf) <= time.time():
                self.kill(name)

    def close(self) -> None:
        """End all of it, and nothing else: this process may have other children."""
        nodes = (self._cluster.head_node, *self._nodes.values())
        family = [process for node in nodes for process in _family_of(node)]
        _kill(family)
        psutil.wait_procs(family, timeout=END_S)
        self._cluster.shutdown()

    def _note_gone(self, name: str) -> None:
        now_s = time.time()
        told_s = self._told_s.pop(name, now_s)
        stay = replace(self._stays.pop(name), until_s=now_s, notice_s=now_s - told_s)
        self._over.append(stay)
        self._deadlines.pop(name, None)
        del self._nodes[name]


@contextlib.contextmanager
def local_machines(*, cpus: int = 1, store_mib: int = 100) -> Iterator[Machines]:
    """A cluster of which nothing is left afterwards, whatever else of Ray is on this computer."""
    before = os.environ.get(TEMPORARY)
    # Short, as the paths of sockets must be; its own, or others would find it as theirs.
    place = tempfile.mkdtemp(prefix="tide-", dir="/tmp")
    os.environ[TEMPORARY] = place
    try:
        machines = Machines(cpus=cpus, store_mib=store_mib)
        try:
            yield machines
        finally:
            machines.close()
    finally:
        shutil.rmtree(place, ignore_errors=True)
        if before is None:
            del os.environ[TEMPORARY]
        else:
            os.environ[TEMPORARY] = before


def _raylet_of(node: Any) -> Any:
    return node.all_processes["raylet"][0].process


def _family_of(node: Any) -> list[psutil.Process]:
    """What was started for a node and still lives; those that start others first."""
    found: list[psutil.Process] = []
    for infos in node.all_processes.values():
        for info in infos:
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(info.process.pid)
                found += [process, *process.children(recursive=True)]
    return found


def _kill(family: list[psutil.Process]) -> None:
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
