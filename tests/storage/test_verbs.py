"""Storage: what a crash leaves, what a person is told, and the same verbs on a bucket."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.kit.bucket import HAVE_BUCKET, serve_bucket
from tidemill import storage
from tidemill.errors import StorageError
from tidemill.storage import Location, locate

if TYPE_CHECKING:
    from collections.abc import Iterator


def _everything(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


def test_a_relative_path_is_resolved_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    place = locate("runs") / "a/b"
    assert (place.path, place.name) == (f"{tmp_path}/runs/a/b", "b")
    assert locate(place.uri) == place
    assert place.parent == locate("runs/a")


def test_home_and_file_uris_are_local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert locate("~/runs") == locate(f"file://{tmp_path}/runs") == locate(f"{tmp_path}/runs")


def test_a_local_name_may_hold_a_question_mark(tmp_path: Path) -> None:
    place = locate(str(tmp_path)) / "what?" / "now"
    storage.publish(place, b"x")
    assert (tmp_path / "what?" / "now").read_bytes() == b"x"
    assert locate(place.uri) == place
    assert str(place) == f"{tmp_path}/what?/now"


def test_options_stay_behind_the_path_and_out_of_sight() -> None:
    place = locate("s3://tide/runs?endpoint_override=127.0.0.1:9&scheme=http") / "a" / "b"
    assert place.uri == "s3://tide/runs/a/b?endpoint_override=127.0.0.1:9&scheme=http"
    assert locate(place.uri).path == "tide/runs/a/b"
    assert place.parent.uri == "s3://tide/runs/a?endpoint_override=127.0.0.1:9&scheme=http"
    assert (str(place), repr(place)) == ("s3://tide/runs/a/b", "Location('s3://tide/runs/a/b')")


@pytest.mark.parametrize("uri", ["ftp://host/runs", "S4://bucket", "://x"])
def test_an_unknown_scheme_names_the_known_ones(uri: str) -> None:
    with pytest.raises(StorageError, match=r"use a path, s3:// or gs://"):
        locate(uri)


@pytest.mark.parametrize(
    "uri", ["s3://id:hunter2@bucket/x", "s3://bucket/x?access_key=id&secret_key=hunter2"]
)
def test_a_secret_in_a_uri_is_refused_and_not_repeated(uri: str) -> None:
    with pytest.raises(StorageError, match="environment") as error:
        locate(uri)
    assert "hunter2" not in str(error.value)


def test_an_unknown_option_is_one_line() -> None:
    with pytest.raises(StorageError, match=r"s3://bucket/x: .*colour") as error:
        locate("s3://bucket/x?colour=teal&endpoint_override=127.0.0.1:9")
    assert "\n" not in str(error.value)


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


def test_open_output_makes_parents_and_open_input_reads_anywhere(tmp_path: Path) -> None:
    place = locate(str(tmp_path)) / "a/file"
    with storage.open_output(place) as file:
        file.write(b"0123456789")
    storage.sync(place)
    with storage.open_input(place) as source:
        assert source.read_at(3, 4) == b"456"


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


def test_a_full_disk_is_told_as_that() -> None:
    with (
        pytest.raises(StorageError, match=r"cannot write /dev/full: no space is left on the disk"),
        storage.open_output(locate("/dev/full")) as file,
    ):
        file.write(b"x" * 2**20)


def test_a_missing_file_is_told_as_that(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot read .*/none: there is no such file"):
        storage.read_bytes(locate(str(tmp_path)) / "none")


@pytest.mark.parametrize(
    ("number", "cause"),
    [
        (errno.EACCES, "permission denied"),
        (errno.EROFS, "the filesystem is read-only"),
        (errno.EDQUOT, "the disk quota is used up"),
    ],
)
def test_known_causes_are_plain_words(tmp_path: Path, number: int, cause: str) -> None:
    place = locate(str(tmp_path))
    with (
        pytest.raises(StorageError, match=f"^cannot write {tmp_path}: {cause}$"),
        storage.explained(place, "write"),
    ):
        raise OSError(number, f"Error {number}\nwith a second line")


def test_an_unknown_cause_is_told_in_its_own_words_on_one_line(tmp_path: Path) -> None:
    with (
        pytest.raises(StorageError, match=r"strange thing at sea$"),
        storage.explained(locate(str(tmp_path)), "write"),
    ):
        raise OSError("strange thing\n  at sea")


def test_google_without_a_connection_says_so_within_its_patience() -> None:
    place = locate(
        "gs://anonymous@bucket/x?endpoint_override=127.0.0.1:9&scheme=http&retry_limit_seconds=1"
    )
    with pytest.raises(StorageError, match=r"gs://anonymous@bucket/x.*: no connection"):
        storage.read_bytes(place)


if HAVE_BUCKET:

    @pytest.fixture(scope="module")
    def endpoint() -> Iterator[str]:
        with serve_bucket("tide") as endpoint:
            yield endpoint

    @pytest.fixture
    def bucket(endpoint: str) -> Location:
        return locate(f"s3://tide?endpoint_override={endpoint}&scheme=http")

    def test_the_verbs_work_on_a_bucket(bucket: Location) -> None:
        root = bucket / "verbs"
        assert storage.children(root) == []
        storage.publish(root / "a/b", b"0123456789")
        with storage.open_output(root / "c") as file:
            file.write(b"x")
        listed = [(e.location.name, e.size, e.is_directory) for e in storage.children(root)]
        assert listed == [("a", 0, True), ("c", 1, False)]
        assert storage.exists(root / "a")
        with storage.open_input(root / "a/b") as source:
            assert source.read_at(3, 4) == b"456"
        storage.make_directory(root / "d")
        storage.sync(root / "c")
        storage.remove(root / "a")
        storage.remove(root / "c")
        storage.remove(root / "none")
        assert storage.children(root) == []

    def test_check_writable_leaves_nothing_in_a_bucket(bucket: Location) -> None:
        storage.publish(bucket / "kept/file", b"x")
        storage.check_writable(bucket / "new/deep")
        storage.check_writable(bucket / "kept")
        storage.check_writable(bucket)
        assert [e.location.name for e in storage.children(bucket / "kept")] == ["file"]
        assert not storage.exists(bucket / "new")

    def test_a_missing_bucket_or_object_is_told_as_that(endpoint: str, bucket: Location) -> None:
        missing = locate(f"s3://no-such-tide/x?endpoint_override={endpoint}&scheme=http")
        with pytest.raises(
            StorageError, match=r"^cannot write below s3://no-such-tide/x: there is no such bucket$"
        ):
            storage.check_writable(missing)
        with pytest.raises(StorageError, match=r"^cannot read s3://tide/none: there is no such"):
            storage.read_bytes(bucket / "none")

    def test_the_endpoint_may_come_from_the_environment(
        endpoint: str, bucket: Location, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        storage.publish(bucket / "seen", b"x")
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{endpoint}")
        assert storage.read_bytes(locate("s3://tide/seen")) == b"x"

    def test_an_unknown_access_key_is_told_as_that(bucket: Location) -> None:
        text = "When reading: AWS Error INVALID_ACCESS_KEY_ID during GetObject: no such key"
        with (
            pytest.raises(StorageError, match=r"the credentials are refused$"),
            storage.explained(bucket, "read"),
        ):
            raise OSError(text)
