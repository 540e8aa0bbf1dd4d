"""Near memory: a rank's snapshots in the vaults of its node and of another one, see `vault`.

The other node is the next one on which the run has a worker, or else any that lives. A node that is
lost costs the snapshot a copy, never training more than seconds in a background thread; the next
snapshot goes elsewhere. Content is not checked here: readers compare it with the manifest's.

A node needs four times what its ranks save: theirs and those of another node, once for the snapshot
that comes in and once for the one before it. 256 MiB reach both nodes in 0.59 s and are read again
in 0.27 s on their own, 0.29 s on the other and 0.55 s elsewhere (medians of six, 2 cores, three
nodes on one machine).
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import ray
from ray.exceptions import RayError

from tidemill.checkpoint.near import ChunkReader
from tidemill.errors import StorageError
from tidemill.launch.failure import one_line
from tidemill.launch.nodes import matches
from tidemill.launch.vault import Held
from tidemill.launch.vaults import (
    ANSWER_S,
    answers,
    complete_versions,
    find_vaults,
    open_vault,
    survey,
)

CHUNK = 32 * 2**20
"""Bytes that travel at once; two chunks of each rank are on their way at most."""
START_S = 30.0
"""Seconds that a vault has for its first answer: its process has to start."""
CHUNK_S = 30.0
"""Seconds that a chunk may take."""
SHUN_S = 60.0
"""Seconds for which a node that failed holds nothing for others."""
NO_LABELS: Mapping[str, str] = MappingProxyType({})

log = logging.getLogger(__name__)


class NearMemory:
    """One rank's way to the vaults of its run; implements `checkpoint.near.Near`.

    Nothing is started before the first `keep`, so that it costs the start of training nothing.

    Args:
        run: What `run_key` gave.
        attempt: Number of the attempt; earlier ones can keep nothing any more.
        workers: Ray's id of each rank's node, by rank.
        rank: This one.
        budget_gib: Host memory that a node may spend, see `CheckpointSpec.near_gib`.
        chunk: Bytes that travel at once; the same for whoever reads them.
        labels: Conditions on a node that may hold copies, see `nodes.matches`.
    """

    def __init__(
        self,
        run: str,
        *,
        attempt: int,
        workers: Sequence[str],
        rank: int,
        budget_gib: float,
        chunk: int = CHUNK,
        labels: Mapping[str, str] = NO_LABELS,
    ) -> None:
        self._run = run
        self._attempt = attempt
        self._node = workers[rank]
        ring = [*workers[rank:], *workers[:rank]]
        self._others = [node for node in dict.fromkeys(ring) if node != self._node]
        self._budget = int(budget_gib * 2**30)
        self._chunk = chunk
        self._labels = labels
        self._vaults: dict[str, Any] = {}
        self._shunned: dict[str, float] = {}
        self._kept: tuple[str, dict[str, Any]] = ("", {})

    def keep(self, version: str, name: str, content: memoryview) -> int:
        """See `Near.keep`."""
        content = content.cast("B")
        problems: dict[str, str] = {}
        try:
            holders = self._admit(version, name, len(content), problems)
            self._send(holders, version, name, content, problems)
        except RayError as error:
            raise StorageError(f"near memory: {one_line(error)}") from error
        for node, problem in problems.items():
            log.warning("node %s holds no copy of %s: %s", node, version, problem)
        if not holders:
            reason = problems[self._node]
            raise StorageError(
                reason if reason.startswith("checkpoint.") else f"near memory: {reason}"
            )
        kept = self._kept[1] if self._kept[0] == version else {}
        self._kept = (version, kept | holders)
        return len(holders)

    def seal(self, version: str, manifest: bytes) -> None:
        """See `Near.seal`."""
        holders = self._kept[1] if self._kept[0] == version else {}
        heard = 0
        asked = {node: vault.seal.remote(version, manifest) for node, vault in holders.items()}
        for node, _, problem in answers(asked, ANSWER_S):
            if problem:
                self._lose(node)
            heard += not problem
        if not heard:
            raise StorageError(f"near memory: no node that holds {version} answers any more")

    def find(self) -> dict[str, bytes]:
        """See `Near.find`. Spreads seals, which who died between two calls could not."""
        vaults, held = self._look()
        found = complete_versions(vaults, held)
        for version, text in found.items():
            asked = {
                node: vaults[node].seal.remote(version, text)
                for node, told in held.items()
                if version in told and not told[version].sealed
            }
            deque(answers(asked, ANSWER_S), maxlen=0)
        return found

    def open(self, version: str) -> HeldSource:
        """See `Near.open`."""
        vaults, held = self._look()
        nearest = sorted(held, key=lambda node: node != self._node)
        holders = [
            (vaults[node], held[node][version].files)
            for node in nearest
            if version in held[node] and held[node][version].files
        ]
        if not holders:
            raise StorageError(f"near memory: no node holds {version} any more")
        return HeldSource(version, holders, self._chunk)

    def _look(self) -> tuple[dict[str, Any], dict[str, dict[str, Held]]]:
        """All vaults that answer and what they hold, by node; silent ones are asked only once."""
        try:
            vaults = {
                node: vault
                for node, vault in find_vaults(self._run).items()
                if not self._is_shunned(node)
            }
        except RayError as error:
            raise StorageError(f"near memory: {one_line(error)}") from error
        held = survey(vaults)
        for node in vaults.keys() - held.keys():
            self._lose(node)
        return vaults, held

    def _admit(
        self, version: str, name: str, size: int, problems: dict[str, str]
    ) -> dict[str, Any]:
        """The vaults that have room for a file, at most two and on different nodes."""
        wanted = [self._node, *self._other()]
        timeout_s = ANSWER_S if all(node in self._vaults for node in wanted) else START_S
        asked: dict[str, Any] = {}
        for node in wanted:
            try:
                if node not in self._vaults:
                    self._vaults[node] = open_vault(self._run, node)
                asked[node] = self._vaults[node].admit.remote(
                    self._attempt, version, name, size, self._budget
                )
            except (RayError, ValueError) as error:
                problems[node] = one_line(error)
        for node, refusal, problem in answers(asked, timeout_s):
            if problem:
                self._lose(node)
            if problem or refusal:
                problems[node] = problem or refusal
        return {node: self._vaults[node] for node in wanted if node not in problems}

    def _send(
        self,
        holders: dict[str, Any],
        version: str,
        name: str,
        content: memoryview,
        problems: dict[str, str],
    ) -> None:
        """Hand a file over in chunks; those who fail are no holders any more."""
        under_way: deque[dict[str, Any]] = deque()
        starts = deque(range(0, len(content), self._chunk))
        while under_way or (starts and holders):
            if starts and len(under_way) < 2:  # noqa: PLR2004 - one is made while one travels
                start = starts.popleft()
                chunk = ray.put(bytes(content[start : start + self._chunk]))
                under_way.append(
                    {
                        node: vault.hold.remote(version, name, chunk)
                        for node, vault in holders.items()
                    }
                )
                continue
            for node, _, problem in answers(under_way.popleft(), CHUNK_S):
                if problem and holders.pop(node, None) is not None:
                    problems[node] = problem
                    self._lose(node)

    def _other(self) -> list[str]:
        """The node of the second copy, if there is one."""
        alive = sorted(
            node["NodeID"]
            for node in ray.nodes()
            if node["Alive"] and matches(node.get("Labels") or {}, self._labels)
        )
        usable = [
            node
            for node in (*self._others, *alive)
            if node in alive and node != self._node and not self._is_shunned(node)
        ]
        return usable[:1]

    def _is_shunned(self, node: str) -> bool:
        return time.monotonic() < self._shunned.get(node, 0.0)

    def _lose(self, node: str) -> None:
        self._vaults.pop(node, None)
        self._shunned[node] = time.monotonic() + SHUN_S


@dataclass(frozen=True, slots=True)
class HeldSource:
    """The files of a version in vaults; implements `checkpoint.content.Source`.

    Attributes:
        version: The version.
        holders: Vaults and the bytes of the files they hold, the nearest first.
        chunk: Bytes of a chunk.
    """

    version: str
    holders: Sequence[tuple[Any, Mapping[str, int]]]
    chunk: int

    def sizes(self) -> dict[str, int]:
        """See `Source.sizes`."""
        return {name: size for _, files in self.holders for name, size in files.items()}

    def open(self, name: str) -> ChunkReader:
        """See `Source.open`."""
        vaults = [vault for vault, files in self.holders if name in files]
        if not vaults:
            raise StorageError(f"near memory: no node holds {name} of {self.version}")
        return ChunkReader(self.sizes()[name], self.chunk, partial(self._fetch, vaults, name))

    def _fetch(self, vaults: list[Any], name: str, number: int) -> bytes:
        """A chunk from the nearest vault; one that fails is not asked again."""
        while vaults:
            try:
                return ray.get(vaults[0].read.remote(self.version, name, number), timeout=CHUNK_S)
            except RayError as error:
                log.warning("a vault cannot give %s of %s: %s", name, self.version, one_line(error))
                del vaults[0]
        raise StorageError(f"near memory: no node holds {name} of {self.version} any more")
