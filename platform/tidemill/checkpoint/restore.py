"""Which state a run goes on from, and how all ranks come to hold it together.

The newest one, wherever it is: in the memory of processes, of nodes, or in storage. Whatever is
wrong with a checkpoint is found by some rank and heard by all, and then all of them turn to the one
before; so what a rank has filled by then does not matter, it is filled again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from tidemill import storage
from tidemill.checkpoint import content, manifest, shares
from tidemill.checkpoint.content import Source, StoredSource
from tidemill.checkpoint.exchange import Exchange
from tidemill.checkpoint.fragments import Copy, plan_copies
from tidemill.checkpoint.manifest import CHECKPOINTS, MANIFEST, RNG, Manifest, parse_name
from tidemill.checkpoint.memory import Held, Memory
from tidemill.checkpoint.near import Near
from tidemill.errors import CheckpointError, CorruptCheckpoint, StorageError, TrainingError
from tidemill.spec.progress import Cursor, State, World
from tidemill.storage import Location

log = logging.getLogger(__name__)


class Origin(StrEnum):
    """Where a state came from."""

    memory = "memory"
    near = "near"
    storage = "storage"
    fork = "fork"


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """A state that was loaded.

    Attributes:
        source: Where it came from.
        cursor: Where the run goes on.
        world: Ranks that trained it.
        origin: What the run started from, see `Manifest.origin`.
        manifest: Of the checkpoint, if it is one.
        checksum: Of what processes held, see `checksum`; None for a checkpoint, which has its own.
    """

    source: Origin
    cursor: Cursor
    world: int
    origin: dict[str, Any]
    manifest: Manifest | None = None
    checksum: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fork:
    """A checkpoint of another run.

    Attributes:
        run: That run's directory.
        step: Step of the checkpoint; 0 takes the newest.
    """

    run: Location
    step: int = 0


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A checkpoint that a run may go on from."""

    name: str
    source: Origin
    run: Location

    @property
    def place(self) -> Location:
        return self.run / CHECKPOINTS / self.name

    @property
    def step(self) -> int:
        return (parse_name(self.name) or (0, 0))[0]


class Restorer:
    """Finds the newest state that is whole and fills one from it.

    Args:
        run: The run's directory.
        world: This rank's place.
        exchange: Used by nobody else meanwhile.
        verify: Compare every byte that is read with its checksum.
        near: Memory of nodes, if snapshots are kept there too.
        memory: Memory of this process, if it may hold what an earlier attempt left.
    """

    def __init__(
        self,
        run: Location,
        *,
        world: World,
        exchange: Exchange,
        verify: bool,
        near: Near | None,
        memory: Memory | None,
    ) -> None:
        self._run = run
        self._world = world
        self._exchange = exchange
        self._verify = verify
        self._near = near
        self._memory = memory

    def load(
        self, state: State, refused: Callable[[Location, str], None], fork: Fork | None
    ) -> Restored | None:
        """See `Store.load`."""
        held = self._memory.find(self._exchange) if self._memory is not None else None
        reasons: list[str] = []
        spoilt = False
        for candidate in self._candidates(fork, held):
            try:
                found = self._fill(candidate, state)
            except CorruptCheckpoint as error:
                log.warning("refused checkpoint %s: %s", candidate.place, error)
                spoilt = True
                if candidate.source is not Origin.near:
                    reasons.append(f"{candidate.name}: {error}")
                    refused(candidate.place, str(error))
                continue
            state.scalars.update(found.scalars)
            forked = {"run": found.run, "step": found.cursor.step}
            return Restored(
                source=candidate.source,
                cursor=found.cursor,
                world=found.world,
                origin=forked if candidate.source is Origin.fork else found.origin,
                manifest=found,
            )
        if self._memory is not None and held is not None:
            return Restored(
                checksum=self._memory.fill(held, state, self._world),
                source=Origin.memory,
                cursor=held.cursor,
                world=held.world,
                origin=held.origin,
            )
        if reasons:
            raise CheckpointError(
                f"{self._run}: no checkpoint is whole ({'; '.join(reasons)}); restore one from a "
                "backup, or start anew under another name"
            )
        if spoilt:
            # The state is half filled, and this process has no other: a new one starts clean.
            raise TrainingError("a snapshot in the memory of nodes was lost while it was read")
        return None

    def _candidates(self, fork: Fork | None, held: Held | None) -> list[_Candidate]:
        """Checkpoints of this run, newest first, or else those of the run to fork. Collective.

        Only those that are newer than what processes hold; nobody looks if there can be none.
        """
        if held is not None and held.newest:
            return []

        def look() -> list[list[str]]:
            near = self._find_near()
            stored = [place.name for place in manifest.committed(self._run)]
            found = [[name, Origin.near.value] for name in near]
            found += [[name, Origin.storage.value] for name in stored]
            if not found and held is None and fork is not None:
                places = manifest.committed(fork.run)
                names = [place.name for place in places if _is_asked(place.name, fork.step)]
                found = [[name, Origin.fork.value] for name in names]
                if not found:
                    raise CheckpointError(f"checkpoint.from_run: {fork.run} has no checkpoint")
            # Of equals, the one in memory is read.
            return sorted(found, key=lambda item: parse_name(item[0]) or (0, 0), reverse=True)

        candidates = [
            _Candidate(
                name,
                Origin(source),
                fork.run if fork is not None and source == Origin.fork else self._run,
            )
            for name, source in self._exchange.first(look)
        ]
        return [one for one in candidates if held is None or one.step > held.cursor.step]

    def _find_near(self) -> list[str]:
        """Names of the snapshots in the memory of nodes that earlier attempts have left."""
        if self._near is None:
            return []
        try:
            names = self._near.find()
        except StorageError as error:
            log.warning("no snapshot is taken from the memory of nodes: %s", error)
            return []
        return [name for name in names if (parse_name(name) or (0, 0))[1] < self._world.attempt]

    def _fill(self, candidate: _Candidate, state: State) -> Manifest:
        """Fill `state` from one checkpoint, each byte proven before it is taken. Collective."""
        place = candidate.place
        text = self._exchange.first(lambda: self._read_manifest(candidate))
        found = manifest.decode(text.encode(), str(place))
        plan: dict[str, list[Copy]] = {}
        targets: list[content.Target] = []
        source: list[Source] = []

        def prepare() -> None:
            source.append(self._open(candidate))
            if self._world.rank == 0:
                content.check_sizes(source[0], found.files)
            if found.rng != RNG:
                raise CheckpointError(f"{place}: random numbers were {found.rng}, not {RNG}")
            shares.require_fit(place, state, found.tensors)
            targets.extend(content.find_targets(state))
            plan.update(plan_copies([target.wanted for target in targets], found.tensors))

        self._exchange.together(prepare)
        self._exchange.together(
            lambda: content.fill(targets, plan, source[0], found.files, verify=self._verify)
        )
        return found

    def _open(self, candidate: _Candidate) -> Source:
        if candidate.source is Origin.near and self._near is not None:
            return self._near.open(candidate.name)
        return StoredSource(candidate.place)

    def _read_manifest(self, candidate: _Candidate) -> str:
        """The manifest, checked, as text."""
        place = candidate.place
        try:
            if candidate.source is Origin.near and self._near is not None:
                encoded = self._near.find().get(candidate.name, b"")
            else:
                encoded = storage.read_bytes(place / MANIFEST)
        except StorageError as error:
            raise CorruptCheckpoint(str(error)) from error
        manifest.decode(encoded, str(place))
        return encoded.decode()


def _is_asked(name: str, step: int) -> bool:
    return step in (0, (parse_name(name) or (0, 0))[0])
