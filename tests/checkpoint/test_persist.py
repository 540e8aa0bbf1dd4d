"""Behind training's back: what a save waits for, how failures are borne, and what is told."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from tests.checkpoint.nodes import Node
from tests.checkpoint.states import blank, make_store, make_tensors, same_pieces, split, whole
from tests.kit.training import Memory
from tests.kit.world import run_world
from tidemill import storage
from tidemill.checkpoint import persist
from tidemill.checkpoint.manifest import committed
from tidemill.checkpoint.retention import Keep
from tidemill.checkpoint.store import Store
from tidemill.errors import CheckpointError, StorageError
from tidemill.spec.progress import Cursor, EventKind, World
from tidemill.storage import Location, locate


@pytest.fixture
def memory() -> Memory:
    return Memory()


@pytest.fixture
def store(tmp_path: Path, memory: Memory) -> Iterator[Store]:
    store = make_store(World(), str(tmp_path), recorder=memory, retry_for_s=60.0)
    yield store
    store.close()


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(persist, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(persist, "GLANCE_S", 0.005)


def _names(run: Path) -> list[str]:
    return [place.name for place in committed(locate(str(run)))]


def _at(step: int) -> Cursor:
    return Cursor(step=step, samples=step)


class Storm:
    """Storage that refuses to be written until it is told otherwise, or so many times."""

    def __init__(self, refusals: float) -> None:
        self.refusals = refusals
        self._publish = storage.publish

    def publish(self, location: Location, content: bytes) -> None:
        """Instead of `storage.publish`."""
        self.refusals -= 1
        if self.refusals >= 0:
            raise StorageError(f"cannot write {location}: the tide is out")
        self._publish(location, content)


def test_training_goes_on_while_a_snapshot_is_written(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, let_write = persist.write, threading.Event()

    def slow(location: Location, memory: memoryview) -> None:
        let_write.wait(30)
        write(location, memory)

    monkeypatch.setattr(persist, "write", slow)
    tensors = make_tensors(1)
    store.save(whole(tensors), _at(1), {})
    store.settle()
    for tensor in tensors.values():
        tensor.zero_()
    assert store.busy
    assert _names(tmp_path) == []
    let_write.set()
    store.finish()
    assert not store.busy
    again = whole(blank(make_tensors(1)))
    make_store(World(attempt=2), str(tmp_path)).load(again, mock.Mock())
    assert same_pieces(again, make_tensors(1)), "it is what the state was when it was saved"


def test_a_save_waits_for_the_one_before(
    tmp_path: Path, store: Store, memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, let_write = persist.write, threading.Event()

    def slow(location: Location, content: memoryview) -> None:
        let_write.wait(30)
        write(location, content)

    monkeypatch.setattr(persist, "write", slow)
    tensors = make_tensors(1)
    store.save(whole(tensors), _at(1), {})
    second = threading.Thread(target=lambda: store.save(whole(tensors), _at(2), {}))
    second.start()
    time.sleep(0.05)
    assert second.is_alive()
    let_write.set()
    second.join()
    store.finish()
    assert len(_names(tmp_path)) == 2
    first, later = memory.all(EventKind.checkpoint_saved)
    assert (first["step"], later["step"]) == (1, 2)
    assert first["stall_s"] < 0.04 < later["stall_s"] <= later["stall_s"] + later["seconds"]


def test_a_failing_save_is_told_and_tried_again_until_storage_is_back(
    tmp_path: Path, store: Store, memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "publish", Storm(3).publish)
    store.save(whole(make_tensors(1)), _at(1), {})
    assert store.finish() is not None
    failures = memory.all(EventKind.checkpoint_failed)
    assert [failure["tries"] for failure in failures] == [1, 2, 3]
    assert [failure["retry_in_s"] for failure in failures] == [0.01, 0.02, 0.04]
    assert "the tide is out" in failures[0]["reason"]
    assert len(memory.all(EventKind.checkpoint_saved)) == 1
    assert _names(tmp_path) == ["step-0000000001-a0001"]


def test_a_save_that_fails_for_good_costs_the_checkpoint_and_not_the_run(
    tmp_path: Path, memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store(World(), str(tmp_path), recorder=memory)
    store.save(whole(make_tensors(1)), _at(1), {})
    store.finish()
    storm = Storm(1)
    monkeypatch.setattr(storage, "publish", storm.publish)
    store.save(whole(make_tensors(2)), _at(2), {})
    with pytest.raises(CheckpointError) as error:
        store.finish()
    assert str(error.value).startswith("storage: step 2 could not be saved (")
    assert str(error.value).endswith("the newest checkpoint is step-0000000001-a0001")
    assert "the tide is out" in str(error.value)
    assert memory.all(EventKind.checkpoint_failed)[-1]["retry_in_s"] is None
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == _names(tmp_path)

    store.save(whole(make_tensors(3)), _at(3), {})
    store.finish()
    store.close()
    assert _names(tmp_path) == ["step-0000000003-a0001", "step-0000000001-a0001"]


def test_a_newer_snapshot_takes_the_place_of_one_that_cannot_be_saved(
    tmp_path: Path, store: Store, memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    storm = Storm(float("inf"))
    monkeypatch.setattr(storage, "publish", storm.publish)
    store.save(whole(make_tensors(1)), _at(1), {})
    while not memory.all(EventKind.checkpoint_failed):
        time.sleep(0.005)
    store.save(whole(make_tensors(2)), _at(2), {})
    storm.refusals = 0
    store.finish()
    assert _names(tmp_path) == ["step-0000000002-a0001"]
    assert [saved["step"] for saved in memory.all(EventKind.checkpoint_saved)] == [2]


def _save_in_a_storm(world: World, uri: str) -> tuple[list[int], list[str]]:
    memory = Memory()
    store = make_store(world, uri, recorder=memory, retry_for_s=60.0)
    write, left = persist.write, [2]

    def refuse(location: Location, content: memoryview) -> None:
        left[0] -= 1
        if world.rank == 1 and left[0] >= 0:
            raise StorageError("rank 1 is under water")
        write(location, content)

    with (
        mock.patch.object(persist, "write", refuse),
        mock.patch.object(persist, "FIRST_PAUSE_S", 0.01),
    ):
        store.save(split(make_tensors(1), world.rank, world.size, "x"), _at(1), {})
        store.finish()
    store.close()
    failures = memory.all(EventKind.checkpoint_failed)
    return [failure["tries"] for failure in failures], [failure["reason"] for failure in failures]


def test_ranks_try_again_together(tmp_path: Path) -> None:
    first, second = run_world(_save_in_a_storm, 2, str(tmp_path))
    assert first == second == ([1, 2], ["rank 1: rank 1 is under water"] * 2)
    assert _names(tmp_path) == ["step-0000000001-a0001"]


def test_the_best_and_the_round_ones_stay(tmp_path: Path) -> None:
    store = make_store(World(), str(tmp_path), keep=Keep(last=1, best=1, every_steps=4))
    for step, loss in enumerate([5.0, 1.0, 3.0, 4.0, 2.0, 6.0], start=1):
        store.save(whole(make_tensors(1)), _at(step), {"loss": 0.0, "val_loss": loss})
    store.finish()
    store.close()
    steps = [int(name[5:15]) for name in _names(tmp_path)]
    assert steps == [6, 4, 2]
    later = make_store(World(attempt=2), str(tmp_path), keep=Keep(last=1, best=1))
    later.save(whole(make_tensors(1)), _at(7), {"loss": 0.0})
    later.finish()
    later.close()
    assert [int(name[5:15]) for name in _names(tmp_path)] == [7, 2], "read from the manifests"


def test_what_is_not_one_state_ends_the_run(store: Store, memory: Memory) -> None:
    state = whole(make_tensors(1))
    state.scalars["betas"] = (0.9, 0.95)
    store.save(state, _at(1), {})
    with pytest.raises(CheckpointError, match="scalar betas"):
        store.save(whole(make_tensors(1)), _at(2), {})
    (failure,) = memory.all(EventKind.checkpoint_failed)
    assert failure["retry_in_s"] is None


def test_the_log_has_been_written_before_a_snapshot_is_sealed_or_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []

    class Log(Memory):
        def record(self, kind: EventKind, **fields: Any) -> None:
            super().record(kind, **fields)
            told.append(kind.value)

        def flush(self) -> None:
            told.append("flush")

    class Shelf(Node):
        def seal(self, version: str, manifest: bytes) -> None:
            super().seal(version, manifest)
            told.append("seal")

    publish = storage.publish

    def note(location: Location, content: bytes) -> None:
        told.append("commit")
        publish(location, content)

    monkeypatch.setattr(storage, "publish", note)
    log = Log()
    store = make_store(World(), str(tmp_path), recorder=log, near=Shelf())
    log.record(EventKind.step)
    store.save(whole(make_tensors(1)), _at(1), {})
    store.finish()
    store.save(whole(make_tensors(1)), _at(2), {}, commit=False)
    store.finish()
    store.close()
    assert told == [
        *("step", "flush", "seal", "near_kept", "commit", "checkpoint_saved"),
        *("flush", "seal", "near_kept"),
    ]


@pytest.mark.parametrize("begins", ["before", "while it is written"])
def test_nothing_is_committed_once_a_later_attempt_has_begun(
    tmp_path: Path, memory: Memory, monkeypatch: pytest.MonkeyPatch, begins: str
) -> None:
    begun = threading.Event()
    write = persist.write

    def slow(location: Location, content: memoryview) -> None:
        write(location, content)
        begun.set()

    monkeypatch.setattr(persist, "write", slow)
    store = make_store(
        World(), str(tmp_path), recorder=memory, retry_for_s=60.0, overtaken=begun.is_set
    )
    if begins == "before":
        begun.set()
    store.save(whole(make_tensors(1)), _at(1), {})
    with pytest.raises(CheckpointError, match="this attempt is over: a later one goes on"):
        store.finish()
    store.close()
    (failure,) = memory.all(EventKind.checkpoint_failed)
    assert (failure["tries"], failure["retry_in_s"]) == (1, None), "it is not tried again"
    assert list((tmp_path / "checkpoints").glob("*")) == []


def test_the_thread_ends_with_the_store(tmp_path: Path) -> None:
    store = make_store(World(), str(tmp_path))
    store.save(whole(make_tensors(1)), _at(1), {})
    store.finish()
    threads: Any = [thread for thread in threading.enumerate() if thread.name == "checkpoints"]
    assert threads
    store.close()
    assert not any(thread is store._thread and thread.is_alive() for thread in threads)
