"""Streams on a disk: what a broken one leaves, and what a full disk does."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from tests.kit.disk import small_disk
from tidemill import storage
from tidemill.errors import StorageError
from tidemill.storage import locate


def test_open_output_makes_parents_and_open_input_reads_anywhere(tmp_path: Path) -> None:
    place = locate(str(tmp_path)) / "a/file"
    with storage.open_output(place) as file:
        file.write(b"0123456789")
    storage.sync(place)
    with storage.open_input(place) as source:
        assert source.read_at(3, 4) == b"456"


def test_a_full_disk_is_told_as_that() -> None:
    with (
        pytest.raises(StorageError, match=r"cannot write /dev/full: no space is left on the disk"),
        storage.open_output(locate("/dev/full")) as file,
    ):
        file.write(b"x" * 2**20)


def test_a_device_is_never_removed() -> None:
    with (
        pytest.raises(StorageError, match="no space is left"),
        storage.open_output(locate("/dev/full")) as file,
    ):
        file.write(b"x" * 2**20)
    assert stat.S_ISCHR(Path("/dev/full").stat().st_mode)


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_a_block_that_raises_leaves_no_file(tmp_path: Path, kind: type[BaseException]) -> None:
    def write_half() -> None:
        with storage.open_output(locate(str(tmp_path)) / "file") as file:
            file.write(b"half of it")
            raise kind

    with pytest.raises(kind):
        write_half()
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_opened_stays(tmp_path: Path) -> None:
    (tmp_path / "file" / "below").mkdir(parents=True)
    with (
        pytest.raises(StorageError, match=r"cannot write .*/file: "),
        storage.open_output(locate(str(tmp_path)) / "file"),
    ):
        pass
    assert (tmp_path / "file" / "below").is_dir()


def test_a_full_disk_leaves_what_was_there_and_nothing_torn(tmp_path: Path) -> None:
    with small_disk(tmp_path, 2**20) as disk:
        root = locate(str(disk.path))
        storage.publish(root / "old", b"tide" * 1000)
        disk.fill()
        full = "no space is left on the disk$"
        with pytest.raises(StorageError, match=rf"^cannot write {root}/new: {full}"):
            storage.publish(root / "new", b"x" * 5000)
        with pytest.raises(StorageError, match=rf"^cannot write {root}/old: {full}"):
            storage.publish(root / "old", b"x" * 5000)
        with (
            pytest.raises(StorageError, match=rf"^cannot write {root}/stream: {full}"),
            storage.open_output(root / "stream") as file,
        ):
            file.write(b"x" * 2**20)
        with pytest.raises(StorageError, match=rf"^cannot write below {root}: {full}"):
            storage.check_writable(root)
        assert [entry.location.name for entry in storage.children(root)] == [".filler", "old"]
        assert storage.read_bytes(root / "old") == b"tide" * 1000
        disk.free()
        storage.publish(root / "new", b"x" * 5000)


def test_a_disk_that_turned_read_only_says_so(tmp_path: Path) -> None:
    with small_disk(tmp_path, 2**20) as disk:
        root = locate(str(disk.path))
        storage.publish(root / "old", b"tide")
        disk.make_read_only()
        why = "the filesystem is read-only$"
        with pytest.raises(StorageError, match=rf"^cannot write {root}/new: {why}"):
            storage.publish(root / "new", b"x")
        with (
            pytest.raises(StorageError, match=rf"^cannot write {root}/stream: {why}"),
            storage.open_output(root / "stream"),
        ):
            pass
        with pytest.raises(StorageError, match=rf"^cannot remove {root}/old: {why}"):
            storage.remove(root / "old")
        with pytest.raises(StorageError, match=rf"^cannot create {root}/below: {why}"):
            storage.make_directory(root / "below")
        with pytest.raises(StorageError, match=rf"^cannot write below {root}: {why}"):
            storage.check_writable(root)
        assert storage.read_bytes(root / "old") == b"tide"
