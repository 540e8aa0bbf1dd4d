"""The checkpoints of a run in storage, as rank 0 changes them: make room, commit, prune, sweep.

A directory is a checkpoint from the moment its manifest is there until the moment it is not, so
both putting one up and taking one down are a single atomic act, and anything else is litter. Ranks
that were cut off may still train; once a later attempt has begun, they put up nothing.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable

from tidemill import storage
from tidemill.checkpoint import content, manifest
from tidemill.checkpoint.content import StoredSource
from tidemill.checkpoint.manifest import CHECKPOINTS, MANIFEST, Manifest, StoredFile
from tidemill.checkpoint.retention import Candidate, Keep, choose_kept
from tidemill.errors import CheckpointError, CorruptCheckpoint, StorageError
from tidemill.storage import Location

log = logging.getLogger(__name__)


class Shelf:
    """The checkpoints of one run.

    Args:
        run: The run's directory.
        keep: Which checkpoints stay.
        overtaken: Whether a later attempt of the run has begun.

    Attributes:
        over: Whether one was seen to have begun: nothing is committed here any more.
    """

    def __init__(self, run: Location, keep: Keep, overtaken: Callable[[], bool]) -> None:
        self.run = run
        self.refused: set[str] = set()
        self.over = False
        self._keep = keep
        self._overtaken = overtaken
        self._known: dict[str, Candidate] = {}

    def place(self, name: str) -> Location:
        """The directory of the checkpoint called `name`."""
        return self.run / CHECKPOINTS / name

    def prepare(self, name: str) -> bool:
        """Make an empty directory for a checkpoint.

        Returns:
            False if a whole checkpoint of that name is there already.

        Raises:
            CheckpointError: A later attempt has begun.
            StorageError: It cannot be made.
        """
        self._require_current()
        place = self.place(name)
        if name not in self.refused and storage.exists(place / MANIFEST):
            with contextlib.suppress(CorruptCheckpoint):
                manifest.read_manifest(place)
                return False
        remove(place)
        storage.make_directory(place)
        return True

    def commit(self, name: str, encoded: bytes, files: dict[str, StoredFile]) -> None:
        """Publish the manifest, once all files are there.

        Raises:
            CheckpointError: A later attempt has begun; or a file is not there as it was written,
                e.g. because ranks do not see the same storage.
            StorageError: The manifest cannot be written.
        """
        place = self.place(name)
        try:
            content.check_sizes(StoredSource(place), files)
        except CorruptCheckpoint as error:
            raise CheckpointError(
                f"{place}: {error} as rank 0 sees it; use storage that every node sees"
            ) from error
        self._require_current()  # once more, because writing may have taken long
        storage.publish(place / MANIFEST, encoded)

    def discard(self, name: str) -> None:
        """Remove what a failed save left; if that fails too, it stays, uncommitted."""
        try:
            remove(self.place(name))
        except StorageError as error:
            log.warning("a failed checkpoint stays, uncommitted: %s", error)

    def prune(self, newest: Manifest) -> None:
        """Remove what no rule keeps; a failure costs disk, not the run.

        A refused checkpoint ahead of the run is left alone until the run has passed it: it may be
        whole after all, on a better day of the network. And litter is looked for again: the last
        request of a killed attempt may have reached a bucket after the sweep of this one.
        """
        self._known[newest.name] = _candidate(newest)
        try:
            committed, torn = self._look_around()
            for place in torn:
                if _attempt(place) < newest.attempt:
                    storage.remove(place)
            passed = [place for place in committed if _step(place) <= newest.cursor.step]
            sound = [place.name for place in passed if place.name not in self.refused]
            kept = choose_kept([self._look(name) for name in sound], self._keep) | {newest.name}
            for place in passed:
                if place.name not in kept:
                    remove(place)
                    self._known.pop(place.name, None)
        except StorageError as error:
            log.warning("old checkpoints stay: %s", error)

    def sweep(self, attempt: int) -> list[str]:
        """Remove what attempts before `attempt` began to save, or to remove, and did not finish.

        Returns:
            Names of the removed directories.

        Raises:
            StorageError: One cannot be removed.
        """
        litter = [place for place in self._look_around()[1] if _attempt(place) < attempt]
        for place in litter:
            storage.remove(place)
        return [place.name for place in litter]

    def _require_current(self) -> None:
        """Refuse to write for an attempt that a later one may have taken back by now."""
        self.over = self.over or self._overtaken()
        if self.over:
            raise CheckpointError("this attempt is over: a later one goes on with the run")

    def _look_around(self) -> tuple[list[Location], list[Location]]:
        """The directories with a manifest, and those without, newest first."""
        committed: list[Location] = []
        torn: list[Location] = []
        for place in manifest.directories(self.run):
            (committed if storage.exists(place / MANIFEST) else torn).append(place)
        return committed, torn

    def _look(self, name: str) -> Candidate:
        """What the rules want to know; only the search for the best needs to read a manifest."""
        if name not in self._known:
            if not self._keep.best:
                return Candidate(name=name, step=_step(self.place(name)))
            try:
                self._known[name] = _candidate(manifest.read_manifest(self.place(name)))
            except CorruptCheckpoint:
                self._known[name] = Candidate(name=name, step=_step(self.place(name)))
        return self._known[name]


def remove(place: Location) -> None:
    """Remove a checkpoint, its manifest first: half a removal must not look like a checkpoint."""
    storage.remove(place / MANIFEST)
    storage.remove(place)


def _candidate(held: Manifest) -> Candidate:
    return Candidate(
        name=held.name,
        step=held.cursor.step,
        loss=held.metrics.get("loss"),
        val_loss=held.metrics.get("val_loss"),
    )


def _step(place: Location) -> int:
    return (manifest.parse_name(place.name) or (0, 0))[0]


def _attempt(place: Location) -> int:
    return (manifest.parse_name(place.name) or (0, 0))[1]
