"""How an attempt begins: with the newest state of its run, or what a fresh run is to start from."""

from __future__ import annotations

from dataclasses import dataclass

from tidemill.checkpoint.checksum import add_up, checksum
from tidemill.checkpoint.exchange import Exchange
from tidemill.checkpoint.imports import fill_from_safetensors
from tidemill.checkpoint.restore import Fork, Origin, Restored
from tidemill.checkpoint.store import Store
from tidemill.errors import TrainingError
from tidemill.spec.progress import Cursor, EventKind, Recorder, State
from tidemill.spec.run import RunSpec
from tidemill.storage import Location, locate
from tidemill.train.engine import Engine
from tidemill.train.guard import Guard


@dataclass(frozen=True, slots=True, kw_only=True)
class Beginning:
    """What takes part in it, on one rank; every rank begins alike.

    Attributes:
        spec: The run.
        engine: Fresh; filled with what is found.
        tied: Further names of its tensors, see `tied_names`.
        guard: Takes over the counts of earlier attempts.
        store: Has the run's checkpoints.
        exchange: Between the ranks.
        recorder: Hears what was found.
        replicated: Whether every rank has all of the state.
    """

    spec: RunSpec
    engine: Engine
    tied: dict[str, str]
    guard: Guard
    store: Store
    exchange: Exchange
    recorder: Recorder
    replicated: bool = False

    def find(self) -> Cursor:
        """Fill the engine, and say where the run goes on. Collective.

        This attempt is in the event log before it looks, and earlier ones that were cut off commit
        nothing from then on; so what it finds is the newest state there will be.

        Raises:
            CheckpointError: There is something to start from and it cannot be used.
            TrainingError: It was lost while it was read.
        """
        policy, wanted = self.spec.checkpoint, self.engine.wanted()
        fork = None
        if policy.from_run:
            fork = Fork(run=locate(self.spec.storage) / policy.from_run, step=policy.from_step)
        self.recorder.flush()
        found = self.store.load(wanted, self._refused, fork)
        if found is not None:
            return self._go_on(found, wanted)
        if policy.init_from:
            self._take_weights(policy.init_from, wanted)
        return Cursor()

    def _go_on(self, found: Restored, wanted: State) -> Cursor:
        saved = found.manifest
        if found.source is not Origin.fork:
            self.guard.restore(wanted.scalars["guard"])
        elif saved is not None and saved.precision != self.spec.precision.kind.value:
            wanted.scalars.pop("loss_scale", None)  # another number format has its own
        self.engine.restore(wanted)
        told = {} if saved is None else {"checkpoint": saved.name, "run": saved.run}
        if found.checksum is not None:
            self._require(found.checksum)
            told["checksum"] = f"{found.checksum:016x}"
        self.recorder.record(
            EventKind.restored,
            step=found.cursor.step,
            samples=found.cursor.samples,
            saved_world=found.world,
            source=found.source.value,
            **told,
        )
        return found.cursor

    def _require(self, held: int) -> None:
        """Compare weights and moments of all ranks with what was held. Collective.

        Raises:
            TrainingError: Some rank has others.
        """
        everything = checksum(self.engine.wanted()) if self.replicated else held
        heard = self.exchange.all_gather([checksum(self.engine.state()), everything])
        differs = [rank for rank, (_, all_of_it) in enumerate(heard) if all_of_it != held]
        if differs or add_up([share for share, _ in heard]) != held:
            where = f"rank {differs[0]}" if differs else "the ranks together"
            raise TrainingError(
                f"the state that {where} took over is not the one that the group before held"
            )

    def _take_weights(self, place: str, wanted: State) -> None:
        """Somebody's weights, with moments that are still zero."""
        self.exchange.together(lambda: fill_from_safetensors(wanted, locate(place), self.tied))
        wanted.scalars["taken_steps"] = 0
        self.engine.restore(wanted)
        self.store.set_origin({"weights": place})
        self.recorder.record(
            EventKind.restored, step=0, samples=0, source="weights", checkpoint=place
        )

    def _refused(self, place: Location, reason: str) -> None:
        self.recorder.record(EventKind.checkpoint_refused, name=place.name, reason=reason)
