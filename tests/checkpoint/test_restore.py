"""Which state a run goes on from: the newest, wherever it is, or that of the run it forks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from tests.checkpoint.nodes import Node
from tests.checkpoint.states import blank, make_store, make_tensors, same_pieces, whole
from tests.kit.training import Memory
from tidemill import storage
from tidemill.checkpoint import manifest
from tidemill.checkpoint.manifest import MANIFEST, committed, decode, encode, read_manifest
from tidemill.checkpoint.memory import Memory as Processes
from tidemill.checkpoint.restore import Fork, Origin, Restored
from tidemill.errors import CheckpointError, TrainingError
from tidemill.spec.checkpoint import Verify
from tidemill.spec.progress import Cursor, EventKind, State, World
from tidemill.storage import locate


def _save(run: Path, step: int, near: Node | None = None, **options: Any) -> Memory:
    memory = Memory()
    store = make_store(World(), str(run), near=near, recorder=memory)
    store.save(whole(make_tensors(step)), Cursor(step=step, samples=step), {}, **options)
    store.finish()
    store.close()
    return memory


def _load(
    run: Path, near: Node | None = None, *, fork: Fork | None = None, **changes: Any
) -> tuple[Restored | None, State]:
    state = whole(blank(make_tensors(1)))
    store = make_store(World(attempt=2), str(run), near=near, **changes)
    return store.load(state, mock.Mock(), fork), state


def test_a_snapshot_in_near_memory_is_newer_than_what_was_committed(tmp_path: Path) -> None:
    node = Node()
    _save(tmp_path, 3, node)
    told = _save(tmp_path, 5, node, commit=False)
    assert [event["nodes"] for event in told.all(EventKind.near_kept)] == [2]
    assert told.all(EventKind.checkpoint_saved) == []
    assert [place.name for place in committed(locate(str(tmp_path)))] == ["step-0000000003-a0001"]
    found, state = _load(tmp_path, node)
    assert found is not None
    assert (found.source, found.cursor.step) == (Origin.near, 5)
    assert same_pieces(state, make_tensors(5))


def test_what_is_in_both_places_is_read_from_memory(tmp_path: Path) -> None:
    node = Node()
    _save(tmp_path, 3, node)
    found, _ = _load(tmp_path, node)
    assert found is not None
    assert found.source is Origin.near
    directory = committed(locate(str(tmp_path)))[0]
    assert encode(read_manifest(directory)) == node.sealed["step-0000000003-a0001"]


@pytest.mark.parametrize("trouble", ["deaf", "lost", "flipped", "short"])
def test_storage_stands_in_for_near_memory(tmp_path: Path, trouble: str) -> None:
    node = Node()
    _save(tmp_path, 3)
    _save(tmp_path, 5, node, commit=False)
    held = node.files["step-0000000005-a0001"]
    match trouble:
        case "flipped":
            held["rank-00000.bin"] = held["rank-00000.bin"].replace(b"\0", b"\1", 1)
        case "short":
            held["rank-00000.bin"] = held["rank-00000.bin"][:-1]
        case _:
            setattr(node, trouble, True)
    found, state = _load(tmp_path, node)
    assert found is not None
    assert (found.source, found.cursor.step) == (Origin.storage, 3)
    assert same_pieces(state, make_tensors(3))


def test_a_half_filled_state_without_any_other_needs_a_new_process(tmp_path: Path) -> None:
    node = Node()
    _save(tmp_path, 5, node, commit=False)
    node.lost = True
    with pytest.raises(TrainingError, match="was lost while it was read"):
        _load(tmp_path, node)


def test_snapshots_of_this_or_a_later_attempt_are_somebody_elses(tmp_path: Path) -> None:
    node = Node()
    _save(tmp_path, 5, node, commit=False)
    assert (
        make_store(World(attempt=1), str(tmp_path), near=node).load(
            whole(blank(make_tensors(1))), mock.Mock()
        )
        is None
    )


def test_full_memory_is_told_and_storage_goes_on(tmp_path: Path) -> None:
    told = _save(tmp_path, 3, Node(full=True))
    (refusal,) = told.all(EventKind.near_refused)
    assert (refusal["step"], refusal["reason"]) == (
        3,
        "checkpoint.near_gib: the budget is used up",
    )
    assert len(told.all(EventKind.checkpoint_saved)) == 1


def test_a_fork_takes_the_other_runs_state_and_says_so_from_then_on(tmp_path: Path) -> None:
    for step in (3, 5):
        _save(tmp_path / "old", step)
    new, old = tmp_path / "new", locate(str(tmp_path / "old"))
    found, state = _load(new, fork=Fork(run=old, step=3))
    assert found is not None
    assert (found.source, found.cursor.step) == (Origin.fork, 3)
    assert same_pieces(state, make_tensors(3))

    store = make_store(World(attempt=2), str(new))
    store.load(whole(blank(make_tensors(1))), mock.Mock(), Fork(run=old))
    store.save(whole(make_tensors(7)), Cursor(step=7, samples=7), {})
    saved = store.finish()
    store.close()
    assert saved is not None
    assert saved.origin == {"run": "tide", "step": 5}

    own, _ = _load(new, fork=Fork(run=old))
    assert own is not None
    assert (own.source, own.cursor.step) == (Origin.storage, 7), "it has its own by now"
    later = make_store(World(attempt=3), str(new))
    later.load(whole(blank(make_tensors(1))), mock.Mock())
    later.save(whole(make_tensors(9)), Cursor(step=9, samples=9), {})
    again = later.finish()
    later.close()
    assert again is not None
    assert again.origin == {"run": "tide", "step": 5}


def test_a_fork_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    _save(tmp_path / "old", 3)
    with pytest.raises(CheckpointError, match=r"^checkpoint\.from_run: .* has no checkpoint"):
        _load(tmp_path / "new", fork=Fork(run=locate(str(tmp_path / "old")), step=4))


def test_other_random_numbers_are_not_gone_on_with(tmp_path: Path) -> None:
    _save(tmp_path, 3)
    (place,) = committed(locate(str(tmp_path)))
    other = replace(decode((Path(place.path) / MANIFEST).read_bytes(), ""), rng="per rank")
    (Path(place.path) / MANIFEST).write_bytes(encode(other))
    with pytest.raises(CheckpointError, match="random numbers were per rank, not keyed"):
        _load(tmp_path)
    assert manifest.RNG == "keyed"


def test_whether_bytes_are_compared_is_a_choice(tmp_path: Path) -> None:
    for step in (3, 5):
        _save(tmp_path, step)
    path = tmp_path / "checkpoints/step-0000000005-a0001/rank-00000.bin"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    careful, _ = _load(tmp_path)
    hasty, _ = _load(tmp_path, verify=Verify.size)
    assert careful is not None
    assert hasty is not None
    assert (careful.cursor.step, hasty.cursor.step) == (3, 5)


# --- memory of processes ---------------------------------------------------------------------


def _remember(step: int, *, reached: int = 0, **scalars: Any) -> Processes:
    """What this process holds after attempt 1 has ended with a step, or got further."""
    processes = Processes()
    state = whole(make_tensors(step))
    state.scalars.update(scalars)
    at = Cursor(step=step, samples=step)
    processes.begin(World(), lambda: state, at, replicated=True, every=1).keep()
    processes._slabs.step = max(step, reached)
    return processes


def _unheard(*_: object) -> Any:
    raise AssertionError("nobody was to be asked")


def test_what_processes_hold_is_taken_without_a_word_to_anybody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = Node()
    _save(tmp_path, 5, node)
    monkeypatch.setattr(storage, "children", _unheard)
    monkeypatch.setattr(node, "find", _unheard)
    found, state = _load(tmp_path, node, memory=_remember(5, guard={"skipped": 2}))
    assert found is not None
    assert (found.source, found.cursor, found.world) == (
        Origin.memory,
        Cursor(step=5, samples=5),
        1,
    )
    assert found.manifest is None
    assert same_pieces(state, make_tensors(5))
    assert state.scalars == {"guard": {"skipped": 2}}


@pytest.mark.parametrize("commit", [True, False])
def test_a_checkpoint_that_is_newer_than_what_processes_hold_is_taken(
    tmp_path: Path, commit: bool
) -> None:
    node = Node()
    for step in (3, 5):
        _save(tmp_path, step, node, commit=commit)
    found, state = _load(tmp_path, node, memory=_remember(4, reached=6))
    assert found is not None
    assert (found.source, found.cursor.step) == (Origin.near, 5)
    assert same_pieces(state, make_tensors(5))
    found, state = _load(tmp_path, node, memory=_remember(5, reached=6))
    assert found is not None
    assert found.source is Origin.memory, "of equals, the nearest"


def test_processes_stand_in_for_a_newer_checkpoint_that_is_not_whole(tmp_path: Path) -> None:
    for step in (3, 5):
        _save(tmp_path, step)
    newest = committed(locate(str(tmp_path)))[0]
    (Path(newest.path) / "rank-00000.bin").write_bytes(b"torn")
    found, state = _load(tmp_path, memory=_remember(4, reached=5))
    assert found is not None
    assert (found.source, found.cursor.step) == (Origin.memory, 4)
    assert same_pieces(state, make_tensors(4))


def test_a_process_that_holds_nothing_changes_nothing(tmp_path: Path) -> None:
    _save(tmp_path, 3)
    found, _ = _load(tmp_path, memory=Processes())
    assert found is not None
    assert found.source is Origin.storage


def test_a_run_that_is_in_memory_only_is_no_fresh_one(tmp_path: Path) -> None:
    _save(tmp_path / "old", 7)
    fork = Fork(run=locate(str(tmp_path / "old")))
    found, _ = _load(tmp_path / "new", memory=_remember(2, reached=3), fork=fork)
    assert found is not None
    assert (found.source, found.cursor.step) == (Origin.memory, 2)


def test_what_a_run_started_from_is_remembered_with_its_state(tmp_path: Path) -> None:
    _save(tmp_path / "old", 3)
    fork = Fork(run=locate(str(tmp_path / "old")))
    processes = Processes()
    store = make_store(World(), str(tmp_path / "new"), memory=processes)
    state = whole(blank(make_tensors(1)))
    assert store.load(state, mock.Mock(), fork) is not None
    at = Cursor(step=4, samples=4)
    processes.begin(World(), lambda: state, at, replicated=True, every=1).keep()

    store = make_store(World(attempt=2), str(tmp_path / "new"), memory=processes)
    found = store.load(state, mock.Mock())
    assert found is not None
    assert (found.source, found.origin) == (Origin.memory, {"run": "tide", "step": 3})
    store.save(state, Cursor(step=5, samples=5), {})
    saved = store.finish()
    store.close()
    assert saved is not None
    assert saved.origin == {"run": "tide", "step": 3}
