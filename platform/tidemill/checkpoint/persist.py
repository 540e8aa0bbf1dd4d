"""From a snapshot to a commit, on all ranks in step: what happens behind training's back.

Every stage is agreed on before the next one begins, so a failure on one rank is a failure on all,
and they try again together. No stage touches the process group that training uses.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tidemill import storage
from tidemill.checkpoint import manifest, shares
from tidemill.checkpoint.content import WINDOW
from tidemill.checkpoint.exchange import Exchange
from tidemill.checkpoint.manifest import Header, Manifest
from tidemill.checkpoint.near import Near
from tidemill.checkpoint.sealed import require_json
from tidemill.checkpoint.shelf import Shelf
from tidemill.checkpoint.snapshot import Image, Snapshot
from tidemill.errors import CheckpointError
from tidemill.spec.progress import Cursor, EventKind, Recorder, World

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 15.0
GLANCE_S = 0.2
"""Seconds between looks, during a pause, for a newer snapshot that wants to be saved instead."""

log = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class Job:
    """One snapshot to save.

    Attributes:
        cursor: Where the run goes on.
        metrics: Figures for people.
        scalars: JSON values of the state.
        commit: Whether it goes to storage, or to near memory only.
        begun_s: When the snapshot was begun, by the monotonic clock.
        stall_s: Seconds that training has waited for it so far.
        problem: Why it was not saved, as of the last try.
    """

    cursor: Cursor
    metrics: Mapping[str, float]
    scalars: dict[str, Any]
    commit: bool
    begun_s: float
    stall_s: float = 0.0
    problem: str = ""


class Persister:
    """Saves snapshots; every rank has one, and gives it the same jobs in the same order.

    Args:
        shelf: Where they go.
        header: What each manifest says about the run.
        world: This rank's place.
        exchange: Used by nobody else while a job runs.
        snapshot: Has been begun when a job is given.
        recorder: Hears what became of each job.
        retry_for_s: Seconds for which a failing save is tried again.
        hurried: Whether a newer snapshot waits on this rank.
        near: Memory of nodes, if snapshots are kept there too.
    """

    def __init__(
        self,
        *,
        shelf: Shelf,
        header: Header,
        world: World,
        exchange: Exchange,
        snapshot: Snapshot,
        recorder: Recorder,
        retry_for_s: float,
        hurried: Callable[[], bool],
        near: Near | None,
    ) -> None:
        self.origin: dict[str, Any] = {}
        self._shelf = shelf
        self._header = header
        self._world = world
        self._exchange = exchange
        self._snapshot = snapshot
        self._recorder = recorder
        self._retry_for_s = retry_for_s
        self._hurried = hurried
        self._near = near
        self._file = rank_file(world.rank)

    def run(self, job: Job) -> Manifest | None:
        """Save what the snapshot holds. Collective.

        Returns:
            The manifest if it was committed; None if it went to near memory only, or if storage
            failed for longer than is tried again.

        Raises:
            CheckpointError: The ranks' shares do not make up one state.
        """
        images: list[Image] = []

        def take() -> shares.Share:
            image = self._snapshot.take()
            images.append(image)
            for key, value in job.scalars.items():
                require_json(key, value)
            return shares.describe(image, self._file, job.cursor, job.scalars)

        try:
            heard = self._exchange.together(take)
            text = self._exchange.first(lambda: self._compose(heard, job))
        except CheckpointError as error:
            self._note_failure(job, error, tries=1, retry_in_s=None)
            raise
        (image,) = images
        saved = manifest.decode(text.encode(), str(self._shelf.run))
        if self._near is not None:
            self._keep_near(self._near, saved, image, text.encode(), job)
        return self._commit(saved, image, text.encode(), job) if job.commit else None

    def _compose(self, heard: list[shares.Share], job: Job) -> str:
        """The manifest of one state; all that led to it is in the log by then.

        A run may go on from the state as soon as it is sealed or committed, whatever becomes of
        this process, and its log must not lack the steps before.
        """
        self._recorder.flush()
        shares.require_one_moment(heard)
        shares.require_equal_scalars(heard)
        header = self._header
        composed = Manifest(
            run=header.run,
            digest=header.digest,
            identity=header.identity,
            corpus_digest=header.corpus_digest,
            cursor=job.cursor,
            world=self._world.size,
            strategy=header.strategy,
            precision=header.precision,
            attempt=self._world.attempt,
            saved_at_s=time.time(),
            origin=self.origin,
            metrics={
                key: float(value) if math.isfinite(value) else None
                for key, value in job.metrics.items()
            },
            scalars=job.scalars,
            tensors=shares.join_tensors(heard),
            files=shares.join_files(heard),
        )
        return manifest.encode(composed).decode()

    def _keep_near(self, near: Near, saved: Manifest, image: Image, text: bytes, job: Job) -> None:
        """Leave copies in the memory of nodes; without them, there is still storage."""
        try:
            nodes = self._exchange.together(lambda: near.keep(saved.name, self._file, image.memory))
            self._exchange.together(lambda: near.seal(saved.name, text))
        except CheckpointError as error:
            self._recorder.record(EventKind.near_refused, step=saved.cursor.step, reason=str(error))
            return
        self._recorder.record(
            EventKind.near_kept,
            step=saved.cursor.step,
            nodes=min(nodes),
            bytes=saved.size,
            seconds=time.monotonic() - job.begun_s,
        )

    def _commit(self, saved: Manifest, image: Image, text: bytes, job: Job) -> Manifest | None:
        """Write files and manifest, again and again if need be."""
        tries, pause_s = 0, FIRST_PAUSE_S
        give_up_s = time.monotonic() + self._retry_for_s
        while True:
            tries += 1
            try:
                return self._try_to_commit(saved, image, text, job)
            except CheckpointError as error:
                hopeless = self._exchange.first(
                    lambda: self._shelf.over or time.monotonic() >= give_up_s
                )
                self._note_failure(job, error, tries, None if hopeless else pause_s)
                if hopeless or self._overtaken(pause_s):
                    return None
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _try_to_commit(self, saved: Manifest, image: Image, text: bytes, job: Job) -> Manifest:
        place = self._shelf.place(saved.name)
        try:
            if self._exchange.first(lambda: self._shelf.prepare(saved.name)):
                self._exchange.together(lambda: write(place / self._file, image.memory))
                self._exchange.first(lambda: self._shelf.commit(saved.name, text, saved.files))
        except CheckpointError:
            if self._world.rank == 0:
                self._shelf.discard(saved.name)
            raise
        self._recorder.record(
            EventKind.checkpoint_saved,
            step=saved.cursor.step,
            name=saved.name,
            bytes=saved.size,
            seconds=time.monotonic() - job.begun_s,
            stall_s=job.stall_s,
        )
        if self._world.rank == 0:
            self._shelf.prune(saved)
        return saved

    def _overtaken(self, pause_s: float) -> bool:
        """Wait before another try; True as soon as a rank has a newer snapshot to save instead."""
        until_s = time.monotonic() + pause_s
        while True:
            heard = self._exchange.all_gather([self._hurried(), time.monotonic() >= until_s])
            if any(hurried for hurried, _ in heard):
                return True
            if heard[0][1]:
                return False
            time.sleep(GLANCE_S)

    def _note_failure(
        self, job: Job, error: CheckpointError, tries: int, retry_in_s: float | None
    ) -> None:
        job.problem = str(error)
        log.warning("step %d was not saved (try %d): %s", job.cursor.step, tries, error)
        self._recorder.record(
            EventKind.checkpoint_failed,
            step=job.cursor.step,
            reason=str(error),
            tries=tries,
            retry_in_s=retry_in_s,
        )


def rank_file(rank: int) -> str:
    """Name of the file that a rank writes."""
    return f"rank-{rank:05d}.bin"


def write(location: storage.Location, memory: memoryview) -> None:
    """Write a file from memory; it is on the disk itself when this returns.

    Raises:
        StorageError: It cannot be written.
    """
    with storage.open_output(location) as file:
        for start in range(0, len(memory), WINDOW):
            file.write(memory[start : start + WINDOW])
    storage.sync(location)
