"""Processes of one run between groups: parked after one, or started ahead of the next.

A process costs seconds to start, most of them imports; a group that keeps its processes, or finds
new ones ready, forms in tenths of a second.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError

from tidemill.launch.policy import Formation

SHUN_S = 20.0
"""Seconds for which nothing is started on a node where a start has failed."""

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Process:
    """A worker's process.

    Attributes:
        actor: Its handle.
        node: Ray's id of its node.
        ready: Gives its metadata once it has started.
        metadata: That, or None before.
        joins: Groups it has been in.
    """

    actor: Any
    node: str
    ready: Any
    metadata: Any = None
    joins: int = 0


class Pool:
    """The processes of a run that are in no group.

    Args:
        spawn: Starts a process on a node; gives its handle and a reference to its metadata.
        recycle_after: Groups after which a process is not kept any more.
    """

    def __init__(self, spawn: Callable[[str], tuple[Any, Any]], recycle_after: int) -> None:
        self._spawn = spawn
        self._recycle_after = recycle_after
        self._parked: list[Process] = []
        self._coming: list[Process] = []
        self._shunned: dict[str, float] = {}

    @property
    def nodes(self) -> Counter[str]:
        """Processes by node, those still starting included."""
        return Counter(process.node for process in (*self._parked, *self._coming))

    @property
    def warm(self) -> Counter[str]:
        """Processes that would join at once, by node."""
        return Counter(process.node for process in self._parked)

    def start_ahead(self, formation: Formation) -> None:
        """Start processes, unless as many are starting on their node already."""
        starting = Counter(process.node for process in self._coming)
        for node, count in formation.items():
            if self._shunned.get(node, 0.0) < time.monotonic():
                self._coming += [self._start(node) for _ in range(count - starting[node])]

    def gather(self) -> None:
        """See who has started meanwhile."""
        waiting = {process.ready: process for process in self._coming}
        if not waiting:
            return
        done, _ = ray.wait(list(waiting), num_returns=len(waiting), timeout=0)
        for reference in done:
            process = waiting[reference]
            self._coming.remove(process)
            if self._is_up(process):
                self._parked.append(process)

    def take(self, formation: Formation, timeout_s: float) -> list[Process] | None:
        """The processes of a new group, those that were in most groups first.

        Args:
            formation: Workers by node.
            timeout_s: Seconds that those which still have to start may take.

        Returns:
            None if one cannot be had; the others stay here.
        """
        chosen: list[Process] = []
        for node, count in formation.items():
            parked = [process for process in self._parked if process.node == node]
            coming = [process for process in self._coming if process.node == node]
            here = [*parked, *coming][:count]
            started = [self._start(node) for _ in range(count - len(here))]
            self._coming += started
            chosen += [*here, *started]
        waiting = [process for process in chosen if process.metadata is None]
        references = [process.ready for process in waiting]
        if references:
            ray.wait(references, num_returns=len(references), timeout=timeout_s)
        self.gather()
        late = [process for process in waiting if process.metadata is None]
        for process in late:
            self._discard(process)
        if late:
            return None
        for process in chosen:
            self._parked.remove(process)
            process.joins += 1
        return sorted(chosen, key=lambda process: -process.joins)

    def park(self, processes: Iterable[Process]) -> None:
        """Take back processes whose part in a group has ended well."""
        for process in processes:
            if process.joins < self._recycle_after:
                self._parked.append(process)
            else:
                end(process)

    def drop(self, usable: Collection[str]) -> None:
        """Let go of processes on nodes that are not there any more."""
        for process in (*self._parked, *self._coming):
            if process.node not in usable:
                self._discard(process)

    def trim(self, most: int) -> None:
        """Let go of all but so many processes, of the coldest first."""
        for process in (*self._parked, *self._coming)[max(0, most) :]:
            self._discard(process)

    def close(self) -> None:
        """End them all."""
        for process in (*self._parked, *self._coming):
            self._discard(process)

    def _start(self, node: str) -> Process:
        actor, ready = self._spawn(node)
        return Process(actor, node, ready)

    def _is_up(self, process: Process) -> bool:
        try:
            process.metadata = ray.get(process.ready)
        except RayError as error:
            log.warning("a process on node %s did not start: %s", process.node, error)
            self._shunned[process.node] = time.monotonic() + SHUN_S
            end(process)
            return False
        return True

    def _discard(self, process: Process) -> None:
        for held in (self._parked, self._coming):
            if process in held:
                held.remove(process)
        end(process)


def end(process: Process) -> None:
    """Kill a process, wherever it is."""
    ray.kill(process.actor)
