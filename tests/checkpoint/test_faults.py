"""Full disks, read-only disks, lost and failing buckets: nothing committed is lost, all is told."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

import pytest

from tests.checkpoint.states import blank, make_store, make_tensors, same_pieces, whole
from tests.kit.bucket import HAVE_BUCKET, serve_flaky_bucket
from tests.kit.disk import Disk, small_disk
from tests.kit.training import Memory
from tidemill.checkpoint import persist
from tidemill.checkpoint.manifest import committed
from tidemill.errors import CheckpointError, StorageError
from tidemill.spec.progress import Cursor, EventKind, World
from tidemill.storage import locate

if TYPE_CHECKING:
    from tests.kit.bucket import Bucket
    from tidemill.checkpoint.store import Store

SIZE = 256 * 1024


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(persist, "FIRST_PAUSE_S", 0.02)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with small_disk(tmp_path, SIZE) as disk:
        yield disk


def _save(store: Store, step: int) -> None:
    store.save(whole(make_tensors(step)), Cursor(step=step, samples=step), {})
    store.finish()


def _newest(uri: str) -> int:
    """The step that a new attempt would go on from; its state must be that step's."""
    state = whole(blank(make_tensors(1)))
    found = make_store(World(attempt=9), uri).load(state, mock.Mock(side_effect=AssertionError))
    assert found is not None
    assert same_pieces(state, make_tensors(found.cursor.step))
    return found.cursor.step


def _names(uri: str) -> list[str]:
    return sorted(entry.name for entry in (Path(uri) / "checkpoints").iterdir())


def test_a_full_disk_keeps_what_was_committed_and_nothing_half_done(disk: Disk) -> None:
    uri = str(disk.path)
    store = make_store(World(), uri)
    _save(store, 1)
    disk.fill(leave=8192)
    with pytest.raises(CheckpointError, match="no space is left on the disk") as error:
        _save(store, 2)
    assert "step 2 could not be saved" in str(error.value)
    assert _names(uri) == ["step-0000000001-a0001"]
    assert _newest(uri) == 1
    disk.free()
    _save(store, 3)
    store.close()
    assert _newest(uri) == 3


def test_a_save_waits_out_a_full_disk(disk: Disk) -> None:
    memory = Memory()
    store = make_store(World(), str(disk.path), recorder=memory, retry_for_s=60.0)
    disk.fill(leave=8192)
    store.save(whole(make_tensors(1)), Cursor(step=1, samples=1), {})
    while len(memory.all(EventKind.checkpoint_failed)) < 2:
        time.sleep(0.01)
    disk.free()
    assert store.finish() is not None
    store.close()
    assert _newest(str(disk.path)) == 1


def test_a_disk_that_becomes_read_only_still_gives_what_it_has(disk: Disk) -> None:
    uri = str(disk.path)
    store = make_store(World(), uri)
    _save(store, 1)
    disk.make_read_only()
    with pytest.raises(CheckpointError, match="the filesystem is read-only"):
        _save(store, 2)
    store.close()
    assert make_store(World(attempt=2), uri).sweep() == []
    assert _newest(uri) == 1


if HAVE_BUCKET:

    @pytest.fixture
    def bucket() -> Iterator[Bucket]:
        with serve_flaky_bucket("tide", rate=0) as bucket:
            yield bucket

    def test_a_bucket_that_fails_half_of_all_requests_serves_a_run(bucket: Bucket) -> None:
        bucket.rate = 0.5
        uri = bucket.uri("run")
        store = make_store(World(), uri, retry_for_s=60.0)
        for step in range(1, 5):
            _save(store, step)
        store.close()
        assert _newest(uri) == 4
        assert make_store(World(attempt=2), uri).sweep() == []
        bucket.rate = 0
        assert [place.name for place in committed(locate(uri))] == [
            "step-0000000004-a0001",
            "step-0000000003-a0001",
        ]
        assert bucket.uploads() == []
        assert sum(bucket.failed.values()) > sum(bucket.asked.values()) / 4

    def test_a_bucket_that_vanishes_and_comes_back_costs_one_checkpoint_at_most(
        bucket: Bucket,
    ) -> None:
        uri = bucket.uri("run")
        memory = Memory()
        store = make_store(World(), uri, recorder=memory, retry_for_s=60.0)
        _save(store, 1)
        bucket.refusal = (503, "SlowDown")
        store.save(whole(make_tensors(2)), Cursor(step=2, samples=2), {})
        timer = threading.Timer(1.0, setattr, (bucket, "refusal", None))
        timer.start()
        assert store.finish() is not None
        timer.join()
        store.close()
        assert _newest(uri) == 2

    def test_a_bucket_that_is_removed_is_named(bucket: Bucket) -> None:
        store = make_store(World(), bucket.uri("run"))
        _save(store, 1)
        bucket.remove()
        with pytest.raises(CheckpointError, match="there is no such bucket"):
            _save(store, 2)
        with pytest.raises((CheckpointError, StorageError), match="there is no such bucket"):
            make_store(World(attempt=2), bucket.uri("run")).sweep()
        bucket.create()
        _save(store, 3)
        store.close()
        assert _newest(bucket.uri("run")) == 3

    def test_a_refusal_is_named(bucket: Bucket) -> None:
        store = make_store(World(), bucket.uri("run"))
        _save(store, 1)
        bucket.refusal = (403, "AccessDenied")
        with pytest.raises(CheckpointError, match="access denied"):
            _save(store, 2)
        bucket.refusal = None
        store.close()
        assert _newest(bucket.uri("run")) == 1
