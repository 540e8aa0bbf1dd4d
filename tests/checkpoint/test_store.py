"""The store, on real ranks: what is saved at one world is loaded at any other, or not at all."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import pickle
import shutil
import signal
import sys
import threading
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import pytest
import torch
import torch.distributed as dist

from tests.checkpoint.states import (
    HEADER,
    SCALARS,
    blank,
    make_store,
    make_tensors,
    same_pieces,
    split,
    whole,
)
from tests.kit.bucket import HAVE_BUCKET, serve_bucket
from tests.kit.world import RankFailed, run_world
from tidemill import storage
from tidemill.checkpoint import persist, snapshot
from tidemill.checkpoint.manifest import MANIFEST, Manifest, committed, read_manifest
from tidemill.checkpoint.restore import Restored
from tidemill.checkpoint.retention import Keep
from tidemill.checkpoint.store import Store
from tidemill.errors import CheckpointError, StorageError
from tidemill.spec.progress import Cursor, Fragment, Piece, State, World
from tidemill.storage import Location, locate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Loaded = tuple[Cursor | None, list[tuple[str, str]], bool, dict[str, Any]]


def _store(world: World, uri: str, keep_last: int = 2, attempt: int = 1, **changes: Any) -> Store:
    at = World(rank=world.rank, size=world.size, attempt=attempt)
    return make_store(at, uri, keep=Keep(last=keep_last), **changes)


def _commit(store: Store, state: State, step: int, samples: int = 0, **metrics: float) -> Manifest:
    """Save, and wait until it is committed."""
    store.save(state, Cursor(step=step, samples=samples), metrics)
    saved = store.finish()
    assert saved is not None
    return saved


def _share(world: World, seed: int) -> State:
    """This rank's share of the tensors that `seed` makes, cut differently at every world."""
    state = split(make_tensors(seed), world.rank, world.size, f"saved {world.size}")
    state.scalars.update(SCALARS, seed=seed)
    return state


def _save(world: World, uri: str, steps: list[int], attempt: int = 1) -> None:
    """Save at each step; the tensors of a step are those that its number seeds."""
    store = _store(world, uri, keep_last=9, attempt=attempt)
    for step in steps:
        _commit(store, _share(world, step), step, 8 * step, loss=1.5)
    store.close()


def _load(world: World, uri: str, expected: int) -> list[Loaded]:
    """Load twice: as shards, and with everything on every rank."""
    tensors = make_tensors(expected)
    found: list[Loaded] = []
    for state in (
        split(blank(tensors), world.rank, world.size, f"loaded {world.size}"),
        whole(blank(tensors)),
    ):
        refused: list[tuple[str, str]] = []
        cursor = _cursor(_store(world, uri, attempt=2).load(state, _noting(refused)))
        found.append((cursor, refused, same_pieces(state, tensors), state.scalars))
    return found


def _noting(refused: list[tuple[str, str]]) -> Callable[[Location, str], None]:
    return lambda place, reason: refused.append((place.name, reason))


def _sweep(world: World, uri: str, attempt: int) -> list[str]:
    return _store(world, uri, attempt=attempt).sweep()


def _here(run: Path, keep_last: int = 2, attempt: int = 1) -> Store:
    """A store of one rank, in this process."""
    return _store(World(), str(run), keep_last, attempt)


def _on(size: int, fn: Callable[..., Any], *args: Any) -> list[Any]:
    """Call `fn` on `size` ranks; one rank needs no other process."""
    return run_world(fn, size, *args) if size > 1 else [fn(World(), *args)]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of which two ranks saved steps 3, 5 and 7; not to be changed."""
    run = tmp_path_factory.mktemp("saved")
    run_world(_save, 2, str(run), [3, 5, 7])
    return run


@pytest.fixture
def run(saved: Path, tmp_path: Path) -> Path:
    """The same, to be changed."""
    return shutil.copytree(saved, tmp_path / "run")


def _names(run: Path) -> list[str]:
    return [place.name for place in committed(locate(str(run)))]


def _files(run: Path) -> list[str]:
    return sorted(str(path.relative_to(run)) for path in run.rglob("*"))


# --- round trips -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("saved", "loaded"), [(1, 1), (2, 2), (3, 3), (1, 3), (3, 1), (2, 3), (3, 2)]
)
def test_what_one_world_saves_any_world_loads_bit_for_bit(
    tmp_path: Path, saved: int, loaded: int
) -> None:
    _on(saved, _save, str(tmp_path), [5, 7])
    for found in _on(loaded, _load, str(tmp_path), 7):
        assert found == [(Cursor(step=7, samples=56), [], True, SCALARS | {"seed": 7})] * 2


def test_the_manifest_says_what_was_saved(tmp_path: Path) -> None:
    store = _here(tmp_path, attempt=4)
    saved = _commit(store, whole(make_tensors(1)), 3, 24, loss=math.nan)
    (place,) = committed(locate(str(tmp_path)))
    assert place.name == "step-0000000003-a0004"
    assert read_manifest(place) == saved
    assert (saved.run, saved.digest, saved.strategy) == (HEADER.run, HEADER.digest, "ddp")
    assert (saved.world, saved.attempt, saved.metrics) == (1, 4, {"loss": None})


def test_a_run_without_checkpoints_loads_nothing_and_keeps_its_state(tmp_path: Path) -> None:
    tensors = make_tensors(1)
    state = whole(tensors)
    assert _here(tmp_path / "none").load(state, _unexpected) is None
    assert same_pieces(state, make_tensors(1))
    assert state.scalars == {}


def _cursor(found: Restored | None) -> Cursor | None:
    return found.cursor if found else None


def _unexpected(place: Location, reason: str) -> None:
    raise AssertionError(f"refused {place}: {reason}")


def test_saving_a_step_again_changes_nothing(tmp_path: Path) -> None:
    store = _here(tmp_path)
    first = _commit(store, whole(make_tensors(1)), 1, 8)
    written = (tmp_path / "checkpoints" / first.name / MANIFEST).read_bytes()
    _commit(store, whole(make_tensors(2)), 1, 8)
    assert (tmp_path / "checkpoints" / first.name / MANIFEST).read_bytes() == written
    state = whole(blank(make_tensors(1)))
    store.load(state, _unexpected)
    assert same_pieces(state, make_tensors(1))


# --- what a crash leaves ---------------------------------------------------------------------


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class _DeadlyFile:
    """Kills its process once some bytes are out."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.written = 0

    def write(self, part: Any) -> None:
        self.inner.write(part)
        self.written += len(part)
        if self.written > 500:
            self.inner.flush()
            _die()


def _save_and_die(world: World, uri: str, moment: str) -> None:
    store = _store(world, uri, attempt=2)
    open_output, publish, remove = storage.open_output, storage.publish, storage.remove

    @contextlib.contextmanager
    def deadly_output(location: Location) -> Iterator[Any]:
        with open_output(location) as file:
            yield _DeadlyFile(file) if world.rank == 1 else file

    def deadly_publish(location: Location, content: bytes) -> None:
        if moment == "after the manifest":
            publish(location, content)
        _die()

    def deadly_remove(location: Location) -> None:
        remove(location)
        if location.name == MANIFEST and location.parent.name != "step-0000000009-a0002":
            _die()

    fakes = {
        "while writing": ("open_output", deadly_output),
        "before the manifest": ("publish", deadly_publish),
        "after the manifest": ("publish", deadly_publish),
        "while pruning": ("remove", deadly_remove),
    }
    with mock.patch.object(storage, *fakes[moment]):
        _commit(store, _share(world, 9), 9, 72)


@pytest.mark.parametrize(
    ("moment", "culprit", "survivor"),
    [
        ("while writing", 1, 7),
        ("before the manifest", 0, 7),
        ("after the manifest", 0, 9),
        ("while pruning", 0, 9),
    ],
)
def test_a_kill_leaves_the_old_checkpoint_or_the_new_one(
    run: Path, moment: str, culprit: int, survivor: int
) -> None:
    with pytest.raises(RankFailed) as failure:
        run_world(_save_and_die, 2, str(run), moment)
    assert (failure.value.rank, failure.value.exit_code) == (culprit, -signal.SIGKILL)

    for found in run_world(_load, 3, str(run), survivor):
        for cursor, refused, same, scalars in found:
            assert cursor == Cursor(step=survivor, samples=8 * survivor)
            assert (refused, same, scalars["seed"]) == ([], True, survivor)

    whole_ones = _names(run)
    torn = {path.name for path in (run / "checkpoints").iterdir()} - set(whole_ones)
    assert bool(torn) == (moment != "after the manifest")
    swept = _here(run, attempt=3).sweep()
    assert set(swept) == torn
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == sorted(whole_ones)


def test_a_sweep_takes_only_uncommitted_directories_of_earlier_attempts(tmp_path: Path) -> None:
    _commit(_here(tmp_path), whole(make_tensors(1)), 1, 8)
    held = tmp_path / "checkpoints"
    for name in ("step-0000000002-a0001", "step-0000000002-a0002", "mine"):
        (held / name).mkdir()
        (held / name / "rank-00000.bin").write_bytes(b"x")
    assert run_world(_sweep, 2, str(tmp_path), 2) == [["step-0000000002-a0001"], []]
    assert sorted(path.name for path in held.iterdir()) == [
        "mine",
        "step-0000000001-a0001",
        "step-0000000002-a0002",
    ]


def test_what_lands_after_the_sweep_goes_with_the_next_commit(tmp_path: Path) -> None:
    _commit(_here(tmp_path), whole(make_tensors(1)), 1)
    store = _here(tmp_path, attempt=2)
    assert store.sweep() == []
    for name in ("step-0000000002-a0001", "step-0000000009-a0003"):
        storage.publish(locate(str(tmp_path)) / "checkpoints" / name / "rank-00000.bin", b"late")
    _commit(store, whole(make_tensors(2)), 2)
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {
        "step-0000000001-a0001",
        "step-0000000002-a0002",
        "step-0000000009-a0003",
    }


# --- what a disk does ------------------------------------------------------------------------


def _flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 4
    path.write_bytes(content)


DAMAGE: dict[str, tuple[str, Callable[[Path], object]]] = {
    "rank-00001.bin has": ("truncated", lambda d: os.truncate(d / "rank-00001.bin", 1000)),
    "rank-00001.bin has changed": ("flipped", lambda d: _flip(d / "rank-00001.bin", 1001)),
    "rank-00000.bin has changed": ("padded", lambda d: _flip(d / "rank-00000.bin", -1)),
    "rank-00000.bin is missing": ("deleted", lambda d: (d / "rank-00000.bin").unlink()),
    "does not match its own checksum": ("flipped manifest", lambda d: _flip(d / MANIFEST, 300)),
    "is cut short": ("truncated manifest", lambda d: os.truncate(d / MANIFEST, 900)),
    "is no manifest": ("empty manifest", lambda d: os.truncate(d / MANIFEST, 0)),
}


@pytest.mark.parametrize("reason", DAMAGE, ids=[name for name, _ in DAMAGE.values()])
def test_a_damaged_checkpoint_is_refused_by_all_and_the_previous_one_used(
    run: Path, reason: str
) -> None:
    DAMAGE[reason][1](run / "checkpoints/step-0000000007-a0001")
    for found in run_world(_load, 3, str(run), 5):
        for cursor, refused, same, scalars in found:
            assert (cursor, same, scalars["seed"]) == (Cursor(step=5, samples=40), True, 5)
            assert [name for name, _ in refused] == ["step-0000000007-a0001"]
            assert reason in refused[0][1]


def _load_fails(world: World, uri: str, stray: str = "") -> tuple[str, list[str]]:
    tensors = make_tensors(5)
    match stray:
        case "missing":
            tensors["param.new"] = torch.zeros(2)
        case "extra":
            del tensors["param.half"]
        case "shape" if world.rank == 1:
            tensors["param.half"] = torch.zeros(34, dtype=torch.float16)
        case "dtype":
            tensors["param.half"] = tensors["param.half"].bfloat16()
    refused: list[str] = []
    state = whole(tensors)
    with pytest.raises(CheckpointError) as error:
        _store(world, uri, attempt=2).load(state, lambda place, _: refused.append(place.name))
    assert state.scalars == {}
    return str(error.value), refused


def test_checkpoints_of_which_none_is_whole_stop_the_run(run: Path) -> None:
    for name in _names(run):
        os.truncate(run / "checkpoints" / name / "rank-00000.bin", 10)
    first, second = run_world(_load_fails, 2, str(run))
    assert first == second
    assert "no checkpoint is whole" in first[0]
    assert "step-0000000005-a0001: rank-00000.bin has 10 bytes" in first[0]
    assert first[1] == [f"step-000000000{step}-a0001" for step in (7, 5, 3)]


@pytest.mark.parametrize(
    ("stray", "complaint"),
    [
        ("missing", "param.new is not in the checkpoint"),
        ("extra", "param.half is not in the run"),
        ("shape", "param.half is float16 [33] in the checkpoint and float16 [34] in the run"),
        ("dtype", "param.half is float16 [33] in the checkpoint and bfloat16 [33] in the run"),
    ],
)
def test_another_model_is_refused_by_all_naming_the_tensor(
    run: Path, stray: str, complaint: str
) -> None:
    first, second = run_world(_load_fails, 2, str(run), stray)
    assert first == second
    assert complaint in first[0]
    assert first[1] == []


# --- what fails while saving -----------------------------------------------------------------


def _no_space(*_: object) -> Any:
    raise OSError(errno.ENOSPC, "No space left on device")


def _make_trouble(  # noqa: C901 - one case each
    trouble: str, world: World, store: Store, state: State
) -> contextlib.AbstractContextManager[object]:
    """Break one thing for as long as the context lasts, or the state for good."""
    match trouble:
        case "disk" if world.rank == 1:
            return mock.patch.object(storage, "open_output", _no_space)
        case "sync" if world.rank == 1:
            return mock.patch.object(os, "fsync", _no_space)
        case "manifest":
            return mock.patch.object(storage, "publish", _no_space)
        case "directory":
            return mock.patch.object(storage, "make_directory", _no_space)
        case "elsewhere" if world.rank == 1:
            other = store._shelf.run.parent / "another-node"
            return mock.patch.object(store._shelf, "run", other)
        case "gap" if world.rank == 1:
            state.tensors["param.cube"] = Fragment((2, 3, 5), "float32", ())
        case "gap":
            cube = make_tensors(9)["param.cube"].view(-1)
            state.tensors["param.cube"] = Fragment((2, 3, 5), "float32", (Piece(0, cube[:7]),))
        case "overlap":
            state.tensors["param.cube"] = whole(make_tensors(9)).tensors["param.cube"]
        case "scalar":
            state.scalars["seed"] = world.rank
        case "json":
            state.scalars["seed"] = (1, 2)
    return contextlib.nullcontext()


def _save_fails(world: World, uri: str, trouble: str) -> tuple[str, list[str], int]:
    store = _store(world, uri, attempt=2)
    state = _share(world, 9)
    cursor = Cursor(step=9 + world.rank * (trouble == "cursor"), samples=72)
    with _make_trouble(trouble, world, store, state), pytest.raises(CheckpointError) as error:
        _commit(store, state, cursor.step, cursor.samples)
    dist.barrier()
    left = _files(Path(uri))
    dist.barrier()
    again = _commit(store, _share(world, 9), 9, 72)
    store.close()
    return str(error.value), left, again.cursor.step


@pytest.mark.parametrize(
    ("trouble", "complaint"),
    [
        ("disk", "rank 1: OSError: [Errno 28] No space left on device"),
        ("sync", "no space is left on the disk"),
        ("manifest", "rank 0: OSError: [Errno 28] No space left on device"),
        ("directory", "rank 0: OSError: [Errno 28] No space left on device"),
        ("gap", "param.cube: elements 7 to 29 are held by no rank"),
        ("overlap", "param.cube: elements 0 to 29 are held more than once"),
        ("scalar", "rank 0: scalar seed differs between rank 0 and rank 1"),
        ("json", "scalar seed: (1, 2) does not survive JSON"),
        ("cursor", "rank 1 is at [step, samples] [10, 72] and rank 0 at [9, 72]"),
        ("elsewhere", "rank-00001.bin is missing as rank 0 sees it; use storage that every node"),
    ],
)
def test_trouble_on_one_rank_fails_all_alike_and_leaves_the_old_checkpoint_alone(
    run: Path, trouble: str, complaint: str
) -> None:
    before = _files(run)
    first, second = run_world(_save_fails, 2, str(run), trouble)
    assert first == second
    assert complaint in first[0]
    assert first[1] == before, "nothing is left of it"
    assert first[2] == 9, "and the next save works"
    state = whole(blank(make_tensors(9)))
    assert _cursor(_here(run, attempt=3).load(state, _unexpected)) == Cursor(step=9, samples=72)
    assert same_pieces(state, make_tensors(9))


# --- the end of an attempt -------------------------------------------------------------------


def _close_amid_a_save(world: World, uri: str) -> tuple[bool, bool, bool]:
    """Rank 0's storage hangs, and rank 1 waits for rank 0, when the attempt ends."""
    store = _store(world, uri)
    array = np.arange(world.size * 1000, dtype=np.float32)
    trace = weakref.ref(array)
    write, began, let_write = persist.write, threading.Event(), threading.Event()

    def slow(location: Location, content: memoryview) -> None:
        began.set()
        if world.rank == 0:
            let_write.wait()
        write(location, content)

    with mock.patch.object(persist, "write", slow):
        store.save(split({"param.w": torch.from_numpy(array)}, world.rank, 2, "x"), Cursor(), {})
        del array
        began.wait()
        store.close(wait_s=0)
        pinned, hangs = trace() is not None, store.busy
        thread = store._thread
        assert thread is not None
        if world.rank == 1:
            thread.join(30)
        left = thread.is_alive()
        dist.barrier()
        let_write.set()
        thread.join(30)
    return pinned, hangs and world.rank == 0, left


def test_an_attempt_ends_although_a_save_hangs(tmp_path: Path) -> None:
    first, second = run_world(_close_amid_a_save, 2, str(tmp_path))
    assert first == (False, True, True), "nothing is pinned, and storage does not hold it up"
    assert second == (False, False, False), "who waited for it is set free"
    assert _names(tmp_path) == []


def test_an_attempt_does_not_end_while_its_state_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_copy = threading.Event()
    lay_out = snapshot.lay_out

    def slow(*arguments: Any) -> Any:
        let_copy.wait(30)
        return lay_out(*arguments)

    monkeypatch.setattr(snapshot, "lay_out", slow)
    store = _here(tmp_path)
    store.save(whole(make_tensors(1)), Cursor(step=1), {})
    closing = threading.Thread(target=store.close, kwargs={"wait_s": 0})
    closing.start()
    closing.join(0.05)
    assert closing.is_alive()
    let_copy.set()
    closing.join(30)
    assert not closing.is_alive()


def test_what_is_in_flight_may_still_be_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, closing = persist.write, threading.Event()

    def slow(location: Location, content: memoryview) -> None:
        closing.wait(30)
        write(location, content)

    monkeypatch.setattr(persist, "write", slow)
    store = _here(tmp_path)
    store.save(whole(make_tensors(1)), Cursor(step=1), {})
    threading.Timer(0.05, closing.set).start()
    store.close(wait_s=30)
    assert _names(tmp_path) == ["step-0000000001-a0001"]


def _fail_in_the_copy(world: World, uri: str) -> bool:
    store = _store(world, uri)
    array = np.arange(9, dtype=np.float32)
    trace = weakref.ref(array)
    wrong = Fragment((4,), "float32", (Piece(0, torch.from_numpy(array)),))
    store.save(State({"param.w": wrong}), Cursor(), {})
    del array, wrong
    store._idle.wait()
    assert store._broken is not None
    return trace() is not None


def test_an_error_pins_no_live_state(tmp_path: Path) -> None:
    assert not _fail_in_the_copy(World(), str(tmp_path))


# --- what is kept ----------------------------------------------------------------------------


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    store = _here(tmp_path, keep_last=2)
    for step in (9, 10, 11):
        _commit(store, whole(make_tensors(step)), step)
    assert _names(tmp_path) == ["step-0000000011-a0001", "step-0000000010-a0001"]
    _commit(_here(tmp_path, keep_last=1, attempt=2), whole(make_tensors(1)), 12)
    assert _names(tmp_path) == ["step-0000000012-a0002"]


def test_a_manifest_is_removed_before_the_rest_of_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = _here(tmp_path, keep_last=1)
    _commit(store, whole(make_tensors(1)), 1)
    removed: list[str] = []
    remove = storage.remove

    def note(location: Location) -> None:
        removed.append(location.path.removeprefix(f"{tmp_path}/checkpoints/"))
        remove(location)

    monkeypatch.setattr(storage, "remove", note)
    _commit(store, whole(make_tensors(1)), 2)
    assert removed[-2:] == ["step-0000000001-a0001/manifest.json", "step-0000000001-a0001"]


def test_pruning_that_fails_costs_disk_and_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = _here(tmp_path, keep_last=1)
    _commit(store, whole(make_tensors(1)), 1)
    remove = storage.remove

    def fail(location: Location) -> None:
        if "step-0000000001" in location.path:
            raise StorageError(f"cannot remove {location}: permission denied")
        remove(location)

    monkeypatch.setattr(storage, "remove", fail)
    _commit(store, whole(make_tensors(1)), 2)
    assert _names(tmp_path) == ["step-0000000002-a0001", "step-0000000001-a0001"]
    assert "old checkpoints stay: cannot remove" in caplog.text


def test_a_refused_checkpoint_neither_pushes_out_good_ones_nor_outlives_the_run_passing_it(
    tmp_path: Path,
) -> None:
    store = _here(tmp_path)
    for step in (10, 20):
        _commit(store, whole(make_tensors(step)), step)
    _flip(tmp_path / "checkpoints/step-0000000020-a0001/rank-00000.bin", 0)

    store = _here(tmp_path, attempt=2)
    refused: list[tuple[str, str]] = []
    state = whole(blank(make_tensors(10)))
    assert _cursor(store.load(state, _noting(refused))) == Cursor(step=10, samples=0)
    assert [name for name, _ in refused] == ["step-0000000020-a0001"]
    _commit(store, state, 15)
    assert _names(tmp_path) == [
        "step-0000000020-a0001",
        "step-0000000015-a0002",
        "step-0000000010-a0001",
    ]
    _commit(store, state, 20)
    assert _names(tmp_path) == ["step-0000000020-a0002", "step-0000000015-a0002"]


def test_a_refused_checkpoint_of_the_same_attempt_is_written_anew(tmp_path: Path) -> None:
    for step in (10, 20):
        _commit(_here(tmp_path), whole(make_tensors(step)), step)
    _flip(tmp_path / "checkpoints/step-0000000020-a0001/rank-00000.bin", 0)
    store = _here(tmp_path)
    store.load(whole(blank(make_tensors(10))), _noting([]))
    _commit(store, whole(make_tensors(20)), 20)
    state = whole(blank(make_tensors(20)))
    assert _cursor(_here(tmp_path).load(state, _unexpected)) == Cursor(step=20, samples=0)
    assert same_pieces(state, make_tensors(20))


# --- what is never used ----------------------------------------------------------------------


class PickledError(Exception):
    """Something pickled or unpickled."""


def _refuse(*_: object, **__: object) -> Any:
    raise PickledError


def _live_without_pickle(world: World, uri: str) -> tuple[bool, bool]:
    def listen(event: str, _: object) -> None:
        if event == "pickle.find_class" and armed:
            raise PickledError

    armed = True
    sys.addaudithook(listen)
    names = ("dump", "dumps", "load", "loads", "Pickler", "Unpickler", "_Pickler", "_Unpickler")
    with contextlib.ExitStack() as stack:
        for name in names:
            stack.enter_context(mock.patch.object(pickle, name, _refuse))
        for name in ("_pickler", "_unpickler"):
            stack.enter_context(mock.patch.object(dist.distributed_c10d, name, _refuse))
        with pytest.raises(PickledError):
            dist.all_gather_object([None] * world.size, world.rank)
        _save(world, uri, [5])
        found = _load(world, uri, 5)
    armed = False
    return found[0][2], found[1][2]


def test_saving_and_loading_use_no_pickle(tmp_path: Path) -> None:
    assert run_world(_live_without_pickle, 2, str(tmp_path / "run")) == [(True, True)] * 2


# --- object storage --------------------------------------------------------------------------

if HAVE_BUCKET:

    def test_a_bucket_holds_a_run_as_a_disk_does() -> None:
        with serve_bucket("tide") as endpoint:
            uri = f"s3://tide/runs/one?endpoint_override={endpoint}&scheme=http"
            run_world(_save, 2, uri, [5, 7])
            run = locate(uri)
            newest, older = committed(run)
            assert [newest.name, older.name] == ["step-0000000007-a0001", "step-0000000005-a0001"]
            storage.publish(newest / "rank-00001.bin", b"torn")
            storage.publish(run / "checkpoints/step-0000000008-a0001/rank-00000.bin", b"torn")
            for found in run_world(_load, 3, uri, 5):
                for cursor, refused, same, _ in found:
                    assert (cursor, same) == (Cursor(step=5, samples=40), True)
                    assert [name for name, _ in refused] == [newest.name]
            assert run_world(_sweep, 2, uri, 2) == [["step-0000000008-a0001"], []]
            assert not storage.exists(run / "checkpoints/step-0000000008-a0001")
            store = _store(World(), uri, keep_last=1, attempt=2)
            _commit(store, whole(make_tensors(1)), 9, 72)
            assert [place.name for place in committed(run)] == ["step-0000000009-a0002"]
