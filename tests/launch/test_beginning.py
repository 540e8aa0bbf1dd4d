"""How an attempt begins: what it is filled with, what it says of it, and whom it shuts out."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch

from tests.checkpoint.states import make_store
from tests.kit.training import Memory, in_precision, tiny_run
from tidemill.checkpoint.checksum import checksum
from tidemill.checkpoint.exchange import Exchange
from tidemill.checkpoint.memory import Memory as Processes
from tidemill.checkpoint.store import Store
from tidemill.errors import CheckpointError, TrainingError
from tidemill.launch.beginning import Beginning
from tidemill.report.events import EventLog, next_attempt
from tidemill.spec.checkpoint import CheckpointSpec
from tidemill.spec.progress import Cursor, EventKind, Fragment, Piece, Recorder, State, World
from tidemill.spec.run import RunSpec
from tidemill.storage import locate
from tidemill.train.engine import Engine
from tidemill.train.guard import Guard
from tidemill.train.loop import look_at


class TinyEngine:
    """An engine of four parameters."""

    def __init__(self) -> None:
        self.weights = torch.zeros(4)
        self.scalars: dict[str, Any] = {"taken_steps": 0, "loss_scale": {"value": 1.0}}

    def state(self) -> State:
        """See `Engine.state`."""
        return State(self.wanted().tensors, dict(self.scalars))

    def wanted(self) -> State:
        """See `Engine.wanted`."""
        return State({"param.w": Fragment((4,), "float32", (Piece(0, self.weights),))})

    def restore(self, filled: State) -> None:
        """See `Engine.restore`."""
        self.scalars |= {key: filled.scalars[key] for key in filled.scalars if key != "guard"}


class Process:
    """What a worker's process keeps, and one attempt after the other in it."""

    def __init__(self, place: Path, spec: RunSpec | None = None) -> None:
        self.place = place
        self.spec = spec or tiny_run(storage=str(place))
        self.processes = Processes()
        self.recorder: Any = Memory()
        self.attempt = 0
        self.kind = TinyEngine

    def begin(self, recorder: Recorder | None = None, **changes: Any) -> Cursor:
        """Begin the next attempt."""
        self.attempt += 1
        self.world = World(attempt=self.attempt)
        self.engine = self.kind()
        self.guard = Guard(self.spec.precision, cast("Engine", self.engine))
        self.store: Store = make_store(
            self.world, str(self.place / self.spec.name), memory=self.processes, **changes
        )
        return Beginning(
            spec=self.spec,
            engine=cast("Engine", self.engine),
            tied={},
            guard=self.guard,
            store=self.store,
            exchange=Exchange(self.world),
            recorder=recorder or self.recorder,
            replicated=True,
        ).find()

    def train(self, cursor: Cursor, *, save: bool = False) -> None:
        """Take a step from a cursor, have it in memory, and perhaps in storage; then end."""
        keeper = self.processes.begin(self.world, self._look, cursor, replicated=True, every=1)
        keeper.tear()
        self.engine.weights += 1
        self.engine.scalars["taken_steps"] += 1
        self.guard.skipped += 2
        cursor = Cursor(step=cursor.step + 1, samples=cursor.samples + 8)
        keeper.commit(cursor)
        if save:
            self.store.save(self._look(), cursor, {})
            self.store.finish()
        keeper.keep()
        self.store.close()

    def _look(self) -> State:
        return look_at(cast("Engine", self.engine), self.guard)


def test_a_fresh_run_starts_from_nothing_and_says_so_to_nobody(tmp_path: Path) -> None:
    process = Process(tmp_path)
    assert process.begin() == Cursor()
    assert process.recorder.heard == []


def test_a_kept_process_goes_on_from_its_memory(tmp_path: Path) -> None:
    process = Process(tmp_path)
    process.train(process.begin())
    process.train(process.begin())
    assert process.begin() == Cursor(step=2, samples=16)
    assert process.engine.weights.tolist() == [2.0] * 4
    assert process.engine.scalars["taken_steps"] == 2
    assert process.guard.state() == {"skipped": 4, "in_a_row": 0}
    assert process.recorder.all(EventKind.restored)[-1] == {
        "step": 2,
        "samples": 16,
        "saved_world": 1,
        "source": "memory",
        "checksum": f"{checksum(process.engine.state()):016x}",
    }


def test_a_state_that_came_over_otherwise_than_it_was_held_is_refused(tmp_path: Path) -> None:
    class Careless(TinyEngine):
        def restore(self, filled: State) -> None:
            super().restore(filled)
            self.weights[2] += 2**-20

    process = Process(tmp_path)
    process.train(process.begin())
    process.kind = Careless
    with pytest.raises(TrainingError, match="the state that rank 0 took over is not the one"):
        process.begin()


def test_a_new_process_goes_on_from_storage(tmp_path: Path) -> None:
    process = Process(tmp_path)
    process.train(process.begin(), save=True)
    process.train(process.begin())
    process.processes = Processes()
    assert process.begin() == Cursor(step=1, samples=8)
    assert process.guard.state() == {"skipped": 2, "in_a_row": 0}
    assert process.recorder.all(EventKind.restored)[-1] == {
        "step": 1,
        "samples": 8,
        "saved_world": 1,
        "source": "storage",
        "checkpoint": "step-0000000001-a0001",
        "run": "tide",
    }


def test_a_fork_counts_its_own_failures_and_has_its_own_number_format(tmp_path: Path) -> None:
    old = Process(tmp_path, tiny_run(name="old", storage=str(tmp_path)))
    old.begin()
    old.engine.scalars["loss_scale"] = {"value": 8.0}
    old.train(Cursor(), save=True)
    fork = CheckpointSpec(every_steps=0, from_run="old")
    for kind, scale in (("fp32", 8.0), ("fp16", 1.0)):  # checkpoints of this test are in fp32
        spec = tiny_run(
            name=kind, storage=str(tmp_path), checkpoint=fork, precision=in_precision(kind)
        )
        process = Process(tmp_path, spec)
        assert process.begin() == Cursor(step=1, samples=8)
        assert process.guard.state() == {"skipped": 0, "in_a_row": 0}
        assert process.engine.scalars["loss_scale"] == {"value": scale}
        (told,) = process.recorder.all(EventKind.restored)
        assert (told["source"], told["run"]) == ("fork", "tide")


def test_an_attempt_is_in_the_log_before_it_looks_and_shuts_out_those_before(
    tmp_path: Path,
) -> None:
    run = locate(str(tmp_path / "tiny"))
    cut_off = Process(tmp_path)
    cursor = cut_off.begin(overtaken=lambda: next_attempt(run) > 2)
    later = Process(tmp_path)
    later.attempt = 1
    log = EventLog(run, 2)
    log.record(EventKind.attempt_started)
    assert later.begin(log) == Cursor()
    assert next_attempt(run) == 3, "it is in storage by now"
    with pytest.raises(CheckpointError, match="this attempt is over"):
        cut_off.train(cursor, save=True)
    log.close()
    assert not (tmp_path / "tiny" / "checkpoints").exists(), "nothing was even begun"
