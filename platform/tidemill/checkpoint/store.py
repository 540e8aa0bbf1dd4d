"""Store: commit and recover the state of a run, on all ranks together.

Every rank writes its own file and rank 0 writes the manifest last, so a crash at any moment leaves
either a whole checkpoint or none; and what fails on one rank fails alike on all, so nobody waits.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Mapping

from tidemill import storage
from tidemill.checkpoint import content, manifest, shares
from tidemill.checkpoint.exchange import Exchange
from tidemill.checkpoint.fragments import Copy, plan_copies
from tidemill.checkpoint.manifest import CHECKPOINTS, MANIFEST, Header, Manifest
from tidemill.checkpoint.sealed import require_json
from tidemill.errors import CheckpointError, CorruptCheckpoint, StorageError
from tidemill.spec.progress import Cursor, State, World
from tidemill.storage import Location

log = logging.getLogger(__name__)


class Store:
    """The checkpoints of one run, as one attempt sees them. Making one is collective.

    Args:
        run: The run's directory, on storage that every rank sees.
        header: What each checkpoint says about the run.
        world: This rank's place; beyond one rank, `torch.distributed` must be set up.
        keep_last: Newest checkpoints kept after each commit, at least 1.
    """

    def __init__(self, run: Location, *, header: Header, world: World, keep_last: int) -> None:
        self._run = run
        self._header = header
        self._world = world
        self._keep_last = max(keep_last, 1)
        self._exchange = Exchange(world)
        self._refused: set[str] = set()

    def save(self, state: State, cursor: Cursor, metrics: Mapping[str, float]) -> Manifest:
        """Commit a checkpoint. Collective; saving a step again in one attempt changes nothing.

        Args:
            state: This rank's share; over all ranks, each element of a tensor exactly once.
            cursor: Where the run goes on; the same on every rank.
            metrics: Figures for people; those of rank 0 are kept.

        Returns:
            The manifest, on every rank.

        Raises:
            CheckpointError: Some rank failed; the same one on every rank. Nothing is left of the
                attempt and earlier checkpoints are as they were.
        """
        shares.require_one_moment(self._exchange.all_gather([cursor.step, cursor.samples]))
        name = manifest.checkpoint_name(cursor.step, self._world.attempt)
        place = self._run / CHECKPOINTS / name
        held = self._exchange.first(lambda: _prepare(place, redo=name in self._refused))
        if held:
            return manifest.decode(held.encode(), str(place))
        try:
            heard = self._exchange.together(lambda: self._write(place, state))
            text = self._exchange.first(lambda: self._commit(place, heard, state, cursor, metrics))
        except CheckpointError:
            if self._world.rank == 0:
                _discard(place)
            raise
        if self._world.rank == 0:
            self._prune(place)
        return manifest.decode(text.encode(), str(place))

    def load(self, state: State, refused: Callable[[Location, str], None]) -> Manifest | None:
        """Fill `state` from the newest checkpoint that is whole. Collective.

        Args:
            state: Its pieces are filled in place, whatever world or strategy saved them, and its
                scalars updated.
            refused: Called on every rank with each newer checkpoint that is not whole, and why.

        Returns:
            The manifest of the checkpoint; its cursor is where the run goes on. None if the run has
            no checkpoint.

        Raises:
            CheckpointError: None of the checkpoints is whole, or the newest whole one is of another
                model or optimizer; the same one on every rank.
        """
        names = self._exchange.first(
            lambda: [place.name for place in manifest.committed(self._run)]
        )
        reasons: list[str] = []
        for name in names:
            place = self._run / CHECKPOINTS / name
            try:
                found = self._restore(place, state)
            except CorruptCheckpoint as error:
                log.warning("refused checkpoint %s: %s", place, error)
                self._refused.add(name)
                reasons.append(f"{name}: {error}")
                refused(place, str(error))
                continue
            state.scalars.update(found.scalars)
            return found
        if reasons:
            raise CheckpointError(
                f"{self._run}: no checkpoint is whole ({'; '.join(reasons)}); restore one from a "
                "backup, or start anew under another name"
            )
        return None

    def sweep(self) -> list[str]:
        """Remove what earlier attempts began to save and never committed; only rank 0 does.

        Returns:
            Names of the removed directories.

        Raises:
            StorageError: One cannot be removed.
        """
        if self._world.rank != 0:
            return []
        torn = [
            place
            for place in manifest.directories(self._run)
            if _attempt(place) < self._world.attempt and not storage.exists(place / MANIFEST)
        ]
        for place in torn:
            storage.remove(place)
        return [place.name for place in torn]

    def _write(self, place: Location, state: State) -> shares.Share:
        for key, value in state.scalars.items():
            require_json(key, value)
        name = f"rank-{self._world.rank:05d}.bin"
        tensors, file = content.write_fragments(state, place / name)
        return shares.describe(tensors, name, file, state)

    def _commit(
        self,
        place: Location,
        heard: list[shares.Share],
        state: State,
        cursor: Cursor,
        metrics: Mapping[str, float],
    ) -> str:
        shares.require_equal_scalars(heard)
        files = shares.join_files(heard)
        try:
            content.check_sizes(place, files)
        except CorruptCheckpoint as error:
            raise CheckpointError(
                f"{place}: {error} as rank 0 sees it; use storage that every node sees"
            ) from error
        committed = Manifest(
            run=self._header.run,
            digest=self._header.digest,
            identity=self._header.identity,
            corpus_digest=self._header.corpus_digest,
            cursor=cursor,
            world=self._world.size,
            strategy=self._header.strategy,
            precision=self._header.precision,
            attempt=self._world.attempt,
            saved_at_s=time.time(),
            metrics={
                key: float(value) if math.isfinite(value) else None
                for key, value in metrics.items()
            },
            scalars=state.scalars,
            tensors=shares.join_tensors(heard),
            files=files,
        )
        encoded = manifest.encode(committed)
        storage.publish(place / MANIFEST, encoded)
        return encoded.decode()

    def _restore(self, place: Location, state: State) -> Manifest:
        """Fill `state` from one checkpoint once all of it is proven."""
        text = self._exchange.first(lambda: _read(place))
        found = manifest.decode(text.encode(), str(place))
        plan: dict[str, list[Copy]] = {}
        targets: list[content.Target] = []

        def check() -> None:
            if self._world.rank == 0:
                content.check_sizes(place, found.files)
            shares.require_fit(place, state, found)
            targets.extend(content.find_targets(state))
            plan.update(plan_copies([target.wanted for target in targets], found.tensors))

        share = content.deal_files(found.files, self._world.size)[self._world.rank]
        self._exchange.together(check)
        self._exchange.together(lambda: content.check_content(place, share))
        try:
            self._exchange.together(lambda: content.fill(targets, plan, place))
        except CorruptCheckpoint as error:
            raise CheckpointError(f"{place} changed while it was read: {error}") from error
        return found

    def _prune(self, newest: Location) -> None:
        """Remove what is older than the checkpoints to keep; a failure costs disk, not the run.

        A refused checkpoint ahead of the run is left alone until the run has passed it: it may be
        whole after all, on a better day of the network.
        """
        try:
            passed = [
                place
                for place in manifest.committed(self._run)
                if _step(place) <= _step(newest) and place.name != newest.name
            ]
            refused = [place for place in passed if place.name in self._refused]
            sound = [place for place in passed if place.name not in self._refused]
            for place in refused + sound[self._keep_last - 1 :]:
                _remove(place)
        except StorageError as error:
            log.warning("old checkpoints stay: %s", error)


def _prepare(place: Location, *, redo: bool) -> str:
    """Make an empty directory; if a whole checkpoint is there already, return its manifest."""
    if not redo and storage.exists(place / MANIFEST):
        with contextlib.suppress(CorruptCheckpoint):
            return _read(place)
    _remove(place)
    storage.make_directory(place)
    return ""


def _read(place: Location) -> str:
    """The manifest, checked, as text."""
    try:
        encoded = storage.read_bytes(place / MANIFEST)
    except StorageError as error:
        raise CorruptCheckpoint(str(error)) from error
    manifest.decode(encoded, str(place))
    return encoded.decode()


def _remove(place: Location) -> None:
    """Remove a checkpoint, its manifest first: half a removal must not look like a checkpoint."""
    storage.remove(place / MANIFEST)
    storage.remove(place)


def _discard(place: Location) -> None:
    try:
        _remove(place)
    except StorageError as error:
        log.warning("a failed checkpoint stays, uncommitted: %s", error)


def _step(place: Location) -> int:
    return (manifest.parse_name(place.name) or (0, 0))[0]


def _attempt(place: Location) -> int:
    return (manifest.parse_name(place.name) or (0, 0))[1]
