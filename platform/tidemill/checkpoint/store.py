"""Store: save the state of a run behind its back, and recover it, on all ranks together.

Training pays for a copy in memory at most; a thread takes it from there to storage. At most one
snapshot is in flight, and a crash at any moment leaves either a whole checkpoint or none.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from queue import SimpleQueue
from typing import Any

from tidemill.checkpoint.exchange import Exchange
from tidemill.checkpoint.manifest import Header, Manifest
from tidemill.checkpoint.memory import Memory
from tidemill.checkpoint.near import Near
from tidemill.checkpoint.persist import Job, Persister, rank_file
from tidemill.checkpoint.restore import Fork, Restored, Restorer
from tidemill.checkpoint.retention import Keep
from tidemill.checkpoint.shelf import Shelf
from tidemill.checkpoint.snapshot import Snapshot
from tidemill.errors import CheckpointError, TidemillError, forget_frames
from tidemill.spec.checkpoint import Verify
from tidemill.spec.progress import Cursor, Recorder, State, World
from tidemill.storage import Location

CLOSE_WAIT_S = 2.0

log = logging.getLogger(__name__)


def _never() -> bool:
    return False


class Store:
    """The checkpoints of one run, as one attempt sees them.

    Args:
        run: The run's directory, on storage that every rank sees.
        header: What each checkpoint says about the run.
        world: This rank's place.
        exchange: Between the ranks of `world`; nobody else may use it once state is saved, and it
            is closed with the store.
        recorder: Hears of each save, from another thread.
        keep: Which checkpoints stay after each commit.
        verify: What is checked when one is loaded.
        retry_for_s: Seconds for which a failing save is tried again.
        near: Memory of nodes that also holds the newest snapshot.
        memory: Memory of this process, which may hold what an earlier attempt left.
        overtaken: Whether a later attempt of the run has begun, asked by rank 0 before it commits;
            from then on this one commits nothing.
    """

    def __init__(
        self,
        run: Location,
        *,
        header: Header,
        world: World,
        exchange: Exchange,
        recorder: Recorder,
        keep: Keep,
        verify: Verify = Verify.full,
        retry_for_s: float = 0.0,
        near: Near | None = None,
        memory: Memory | None = None,
        overtaken: Callable[[], bool] = _never,
    ) -> None:
        self._world = world
        self._exchange = exchange
        self._memory = memory
        self._shelf = Shelf(run, keep, overtaken)
        self._restorer = Restorer(
            run,
            world=world,
            exchange=exchange,
            verify=verify is Verify.full,
            near=near,
            memory=memory,
        )
        self._snapshot = Snapshot(rank_file(world.rank), world.device)
        self._hurry = threading.Event()
        self._persister = Persister(
            shelf=self._shelf,
            header=header,
            world=world,
            exchange=exchange,
            snapshot=self._snapshot,
            recorder=recorder,
            retry_for_s=retry_for_s,
            hurried=self._hurry.is_set,
            near=near,
        )
        self._idle = threading.Event()
        self._idle.set()
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._job: Job | None = None
        self._newest: Manifest | None = None
        self._unsaved: Job | None = None
        self._broken: BaseException | None = None

    @property
    def busy(self) -> bool:
        """Whether this rank has a snapshot in flight."""
        return not self._idle.is_set()

    def load(
        self,
        state: State,
        refused: Callable[[Location, str], None],
        fork: Fork | None = None,
    ) -> Restored | None:
        """Fill `state` from the newest one that is whole, wherever it is. Collective.

        Args:
            state: Its pieces are filled in place, whatever world or strategy made them, and its
                scalars updated.
            refused: Called on every rank with each newer checkpoint that is not whole, and why.
            fork: What to load if the run has no state of its own.

        Returns:
            What was loaded; None if there is none.

        Raises:
            CheckpointError: None of the checkpoints is whole, or the newest whole one is of another
                model or optimizer; the same one on every rank. The state may be half filled.
            TrainingError: A copy in memory was lost while it was read, and storage has none.
        """

        def refuse(place: Location, reason: str) -> None:
            self._shelf.refused.add(place.name)
            refused(place, reason)

        found = self._restorer.load(state, refuse, fork)
        if found is not None:
            self.set_origin(found.origin)
        return found

    def set_origin(self, origin: dict[str, Any]) -> None:
        """Say in every later checkpoint what the run started from, see `Manifest.origin`."""
        self._persister.origin = origin
        if self._memory is not None:
            self._memory.origin = origin

    def prepare(self, state: State) -> None:
        """Allocate the memory that a snapshot of `state` needs, before training is in the way."""
        self._snapshot.reserve(state)

    def save(
        self,
        state: State,
        cursor: Cursor,
        metrics: Mapping[str, float],
        *,
        commit: bool = True,
    ) -> None:
        """Begin to save; training may go on, up to `settle`. Every rank calls it in the same step.

        A save waits for the one before it, unless that one is failing: then this one takes its
        place. What becomes of it is told to the recorder.

        Args:
            state: This rank's share; over all ranks, each element of a tensor exactly once.
            cursor: Where the run goes on; the same on every rank.
            metrics: Figures for people; those of rank 0 are kept.
            commit: False keeps it in near memory only.

        Raises:
            CheckpointError: An earlier save found that the ranks' states do not fit together.
        """
        began_s = time.monotonic()
        self._hurry.set()
        self._idle.wait()
        self._hurry.clear()
        self._raise_if_broken()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="checkpoints", daemon=True)
            self._thread.start()
        self._snapshot.begin(state)
        self._job = Job(
            cursor=cursor,
            metrics=metrics,
            scalars=state.scalars,
            commit=commit,
            begun_s=time.monotonic(),
            stall_s=time.monotonic() - began_s,
        )
        self._idle.clear()
        self._jobs.put(self._job)

    def settle(self) -> None:
        """Wait until the newest snapshot is taken: call it before live memory changes."""
        if self._job is not None:
            began_s = time.monotonic()
            self._snapshot.settle()
            self._job.stall_s += time.monotonic() - began_s
            self._job = None

    def finish(self) -> Manifest | None:
        """Wait until what was begun is saved.

        Returns:
            The manifest of the newest checkpoint that this attempt committed, if any.

        Raises:
            CheckpointError: The newest save failed for good. Earlier checkpoints are as they were.
        """
        self._idle.wait()
        self._raise_if_broken()
        if self._unsaved is not None:
            newest = self._newest.name if self._newest is not None else "that of an earlier attempt"
            raise CheckpointError(
                f"storage: step {self._unsaved.cursor.step} could not be saved "
                f"({self._unsaved.problem}); the newest checkpoint is {newest}"
            )
        return self._newest

    def sweep(self) -> list[str]:
        """Remove what earlier attempts began to save and never committed; only rank 0 does.

        Returns:
            Names of the removed directories.

        Raises:
            StorageError: One cannot be removed.
        """
        return self._shelf.sweep(self._world.attempt) if self._world.rank == 0 else []

    def close(self, wait_s: float = CLOSE_WAIT_S) -> None:
        """End the attempt's saves; ranks hear of it that still wait for this one.

        When it returns, nothing refers to the state any more. A thread that storage keeps waiting
        ends when storage lets it, and commits nothing.

        Args:
            wait_s: Seconds that what is in flight may take; after that it is given up. Use 0 if a
                rank was lost, because no save can succeed then.
        """
        self._jobs.put(None)
        done = self._idle.wait(wait_s)
        self._exchange.close()
        self._snapshot.let_go()
        if self._thread is not None and done:
            self._thread.join()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                saved = self._persister.run(job)
                self._newest = saved or self._newest
                if job.commit:
                    self._unsaved = None if saved else job
            except BaseException as error:
                if not isinstance(error, TidemillError):
                    log.warning("saving failed", exc_info=error)
                forget_frames(error)  # of live state, and connections to other ranks
                self._broken = error
            finally:
                self._idle.set()

    def _raise_if_broken(self) -> None:
        broken, self._broken = self._broken, None
        if broken is not None:
            raise broken
