"""Verbs on a disk: what a crash leaves, and what a person is told."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tidemill import storage
from tidemill.errors import StorageError
from tidemill.storage import locate


def _everything(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


def test_publish_replaces_and_leaves_nothing_beside(tmp_path: Path) -> None:
    place = locate(str(tmp_path)) / "a/b/file"
    storage.publish(place, b"one")
    storage.publish(place, b"two")
    assert storage.read_bytes(place) == b"two"
    assert _everything(tmp_path) == ["a", "a/b", "a/b/file"]


def test_publish_that_fails_keeps_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = locate(str(tmp_path)) / "file"
    storage.publish(place, b"old")

    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageError, match=r"cannot write .*/file: no space is left on the disk"):
        storage.publish(place, b"new")
    assert storage.read_bytes(place) == b"old"
    assert _everything(tmp_path) == ["file"]


def test_publish_syncs_content_then_moves_then_syncs_the_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def note_sync(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        steps.append("directory" if path.is_dir() else path.name.partition(".file.")[1])
        fsync(descriptor)

    def note_replace(path: Path, target: Path) -> Path:
        steps.append("move")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(Path, "replace", note_replace)
    storage.publish(locate(str(tmp_path)) / "file", b"x")
    assert steps == [".file.", "move", "directory"]


def test_new_directories_are_synced_into_their_parents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: set[str] = set()
    fsync = os.fsync

    def note_sync(descriptor: int) -> None:
        synced.add(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note_sync)
    storage.make_directory(locate(str(tmp_path)) / "a/b")
    assert synced == {str(tmp_path), f"{tmp_path}/a"}


def test_children_are_listed_by_name_with_sizes(tmp_path: Path) -> None:
    root = locate(str(tmp_path))
    storage.publish(root / "b", b"12345")
    storage.publish(root / "a/c", b"")
    listed = [(e.location.name, e.size, e.is_directory) for e in storage.children(root)]
    assert listed == [("a", 0, True), ("b", 5, False)]
    assert storage.children(root / "none") == []


def test_remove_takes_files_trees_and_nothing(tmp_path: Path) -> None:
    root = locate(str(tmp_path))
    storage.publish(root / "a/b/c", b"x")
    storage.publish(root / "d", b"x")
    for name in ("a", "d", "none"):
        storage.remove(root / name)
    assert _everything(tmp_path) == []


def test_check_writable_leaves_nothing(tmp_path: Path) -> None:
    storage.check_writable(locate(str(tmp_path)))
    storage.check_writable(locate(str(tmp_path)) / "new/deep")
    assert _everything(tmp_path) == []


def test_check_writable_that_fails_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageError, match=r"cannot write below .*/new/deep: no space is left"):
        storage.check_writable(locate(str(tmp_path)) / "new/deep")
    assert _everything(tmp_path) == []


def test_a_file_in_the_way_is_told_as_that(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    root = locate(str(tmp_path)) / "runs"
    way = "a file is in the way of a directory"
    with pytest.raises(StorageError, match=rf"cannot write below .*/runs: {way}"):
        storage.check_writable(root)
    with pytest.raises(StorageError, match=rf"cannot write .*/runs/a: {way}"):
        storage.publish(root / "a", b"")
    with pytest.raises(StorageError, match=rf"cannot create .*/runs: {way}"):
        storage.make_directory(root)
    with (
        pytest.raises(StorageError, match=rf"cannot write .*/runs/a: {way}"),
        storage.open_output(root / "a"),
    ):
        pass
    with pytest.raises(StorageError, match=r"cannot list .*/runs: "):
        storage.children(root)


def test_a_missing_file_is_told_as_that(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot read .*/none: there is no such file"):
        storage.read_bytes(locate(str(tmp_path)) / "none")


DIE_IN_FSYNC = """
import os, signal, sys
from tidemill import storage
os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
place = storage.locate(sys.argv[2])
storage.publish(place / "file", b"x") if sys.argv[1] == "publish" else storage.check_writable(place)
"""


def _die_in(verb: str, directory: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", DIE_IN_FSYNC, verb, str(directory)], check=False, timeout=60
    )
    assert done.returncode == -signal.SIGKILL


def test_what_a_killed_check_leaves_is_removed_by_the_next(tmp_path: Path) -> None:
    _die_in("check", tmp_path)
    assert _everything(tmp_path) == [".probe"]
    storage.check_writable(locate(str(tmp_path)))
    assert _everything(tmp_path) == []


def test_checks_at_once_do_not_disturb_each_other(tmp_path: Path) -> None:
    places = [locate(str(tmp_path / "new" / "deep"))] * 200
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(storage.check_writable, places)) == [None] * 200
    assert set(_everything(tmp_path)) <= {"new", "new/deep"}  # whose is the last to leave?


def test_a_check_removes_no_directory_that_another_has_come_to_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlink = Path.unlink

    def meanwhile(path: Path, *, missing_ok: bool = False) -> None:
        unlink(path, missing_ok=missing_ok)
        (tmp_path / "new" / "theirs").write_text("")

    monkeypatch.setattr(Path, "unlink", meanwhile)
    storage.check_writable(locate(str(tmp_path)) / "new")
    assert _everything(tmp_path) == ["new", "new/theirs"]


def test_what_a_killed_publish_leaves_is_swept(tmp_path: Path) -> None:
    root = locate(str(tmp_path))
    _die_in("publish", tmp_path)
    (litter,) = _everything(tmp_path)
    kept = [".hidden", ".file.0123abcd.json", "file.0123abcd", ".spare.0123abcd/below"]
    for name in kept:
        storage.publish(root / name, b"x")
    assert storage.sweep_hidden(root) == [litter]
    assert all(storage.exists(root / name) for name in kept)
    assert storage.sweep_hidden(root) == []
    assert storage.sweep_hidden(root / "none") == []
