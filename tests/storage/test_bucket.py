"""Storage on S3, end to end: a server that fails half of the time, refuses, vanishes or hangs."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.kit.bucket import BROKEN, CUT, RESET, THROTTLED, Bucket
from tidemill import storage
from tidemill.errors import StorageError
from tidemill.storage import Location, faults, locate, location, streams

if TYPE_CHECKING:
    from collections.abc import Callable

BIG = os.urandom(2 * streams.PART + 12345)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the first answer for the last, so that a test of refusals does not wait."""
    monkeypatch.setattr(location, "RETRIES", 0)
    monkeypatch.setattr(faults, "PATIENCE_S", -1)


def _here(bucket: Bucket, path: str = "") -> Location:
    return locate(bucket.uri(path))


def _write(place: Location, content: bytes, error: BaseException | None = None) -> None:
    """Write through a stream in uneven strides, and raise in its block if so asked."""
    with storage.open_output(place) as file:
        for start in range(0, len(content), 3 * 2**20):
            file.write(memoryview(content)[start : start + 3 * 2**20])
        if error is not None:
            raise error


def _is_complete(bucket: Bucket, name: str) -> bool:
    objects = bucket.keys()
    return name in objects


# --- a sound bucket --------------------------------------------------------------------------


def test_the_verbs_work_on_a_bucket(bucket: Bucket) -> None:
    root = _here(bucket, "verbs")
    assert storage.children(root) == []
    storage.publish(root / "a/b", b"0123456789")
    _write(root / "c", b"x")
    listed = [(e.location.name, e.size, e.is_directory) for e in storage.children(root)]
    assert listed == [("a", 0, True), ("c", 1, False)]
    assert storage.exists(root / "a")
    with storage.open_input(root / "a/b") as source:
        assert (source.size(), source.read_at(4, 3)) == (10, b"3456")
        source.seek(8)
        buffer = bytearray(4)
        assert (source.readinto(buffer), buffer[:2], source.tell()) == (2, b"89", 10)
        source.seek(1)
        assert (source.read(2), source.read()) == (b"12", b"3456789")
    storage.make_directory(root / "d")
    storage.sync(root / "c")
    assert storage.sweep_hidden(root) == []
    for name in ("a", "c", "none"):
        storage.remove(root / name)
    assert storage.children(root) == []


def test_check_writable_leaves_nothing_in_a_bucket(bucket: Bucket) -> None:
    root = _here(bucket)
    storage.publish(root / "kept/file", b"x")
    storage.publish(root / "kept/.probe", b"of a check that was killed")
    for place in (root / "new/deep", root / "kept", root):
        storage.check_writable(place)
    assert [e.location.name for e in storage.children(root / "kept")] == ["file"]
    assert not storage.exists(root / "new")


def test_the_endpoint_may_come_from_the_environment(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.publish(_here(bucket, "seen"), b"x")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{bucket.endpoint}")
    assert storage.read_bytes(locate("s3://tide/seen")) == b"x"


@pytest.mark.parametrize("size", [0, 1, streams.PART - 1])
def test_a_small_object_is_one_put(bucket: Bucket, size: int) -> None:
    place = _here(bucket, "small")
    _write(place, BIG[:size])
    assert bucket.asked == {"PUT": 1}
    assert storage.read_bytes(place) == BIG[:size]
    storage.publish(place, b"x")
    assert bucket.asked["PUT"] == 2


@pytest.mark.parametrize(("size", "parts"), [(streams.PART, 1), (len(BIG), 3)])
def test_a_large_object_is_uploaded_in_parts(bucket: Bucket, size: int, parts: int) -> None:
    place = _here(bucket, "large")
    _write(place, BIG[:size])
    assert bucket.asked == {"POST": 2, "PUT": parts}  # begin and complete, and the parts
    assert storage.read_bytes(place) == BIG[:size]
    bucket.heal()
    storage.publish(place, BIG[:size])
    assert bucket.asked == {"POST": 2, "PUT": parts}
    assert bucket.uploads() == []


def test_what_waits_to_be_sent_is_bounded(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "PARTS_UNDERWAY", 2)
    bucket.delay_s = 0.2
    with storage.open_output(_here(bucket, "bounded")) as file:
        file.write(BIG)
        assert file.tell() == len(BIG)
        assert bucket.asked["PUT"] == 2, "it returned before what was to be sent first was sent"


def test_an_object_that_s3_could_not_hold_is_refused_in_time(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "MOST_PARTS", 1)
    with pytest.raises(StorageError, match=r"s3://tide/huge: an object of a bucket holds at most"):
        _write(_here(bucket, "huge"), BIG)
    assert not _is_complete(bucket, "huge")


# --- faults that pass ------------------------------------------------------------------------


def test_every_verb_outlasts_a_server_that_fails_half_of_the_time(bucket: Bucket) -> None:
    root = _here(bucket, "half")
    content = BIG[:100_000]
    bucket.rate = 0.5
    for name in ("a", "b", "c"):
        storage.publish(root / name, content)
        assert storage.exists(root / name)
        assert storage.read_bytes(root / name) == content
        with storage.open_input(root / name) as source:
            source.seek(99_000)
            assert source.read(32) == content[99_000:99_032]
    _write(root / "large", BIG)
    assert storage.read_bytes(root / "large") == BIG
    assert [entry.size for entry in storage.children(root)] == [100_000] * 3 + [len(BIG)]
    storage.remove(root / "a")
    storage.check_writable(root)
    assert [entry.location.name for entry in storage.children(root)] == ["b", "c", "large"]
    storage.remove(root)
    assert not storage.exists(root)
    assert set(bucket.failed) == {THROTTLED, BROKEN, RESET, CUT}
    assert bucket.failed.total() > 20


def test_a_read_of_fewer_bytes_than_an_error_has_is_repeated(bucket: Bucket) -> None:
    # pyarrow takes an error that does not fit the buffer of the read for final.
    place = _here(bucket, "tiny")
    storage.publish(place, b"tide")
    bucket.heal()
    with storage.open_input(place) as source:
        bucket.upcoming = [THROTTLED, BROKEN, RESET, CUT]
        assert source.read(4) == b"tide"
    assert bucket.asked == {"HEAD": 1, "GET": 5}
    bucket.upcoming = [None, THROTTLED, None, BROKEN]
    assert storage.read_bytes(place) == b"tide"


def test_faults_never_use_up_the_right_to_try_again(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With pyarrow's standard strategy, the 101st in the life of a filesystem is final.
    monkeypatch.setattr(faults, "PATIENCE_S", -1)
    root = _here(bucket)
    bucket.upcoming = [RESET, None] * 105
    assert all(storage.exists(root) for _ in range(105))
    assert bucket.failed == {RESET: 105}


# --- streams that break ----------------------------------------------------------------------


@pytest.mark.parametrize("size", [1000, len(BIG)])
def test_a_block_that_raises_completes_no_object(bucket: Bucket, size: int) -> None:
    place = _here(bucket, f"broken-{size}")
    with pytest.raises(KeyboardInterrupt):
        _write(place, BIG[:size], KeyboardInterrupt())
    gc.collect()
    assert not storage.exists(place)
    assert not _is_complete(bucket, place.name)
    assert (place.name in bucket.uploads()) == (size > streams.PART)


def test_a_block_that_raises_leaves_the_object_that_was_there(bucket: Bucket) -> None:
    place = _here(bucket, "replaced")
    storage.publish(place, b"old")
    with pytest.raises(ValueError, match="new"):
        _write(place, BIG, ValueError("new"))
    gc.collect()
    assert storage.read_bytes(place) == b"old"


BREAK = """
import gc, sys
from tidemill import storage
try:
    with storage.open_output(storage.locate(sys.argv[1])) as file:
        file.write(bytes(12 * 2**20))
        raise ValueError
except ValueError:
    del file
gc.collect()
"""


def test_a_process_that_ends_in_a_stream_completes_no_object(bucket: Bucket) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BREAK, bucket.uri("ended")], check=False, timeout=60
    )
    assert done.returncode == 0
    assert "ended" in bucket.uploads()
    assert not _is_complete(bucket, "ended")


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("moment", ["begin", "part", "end"])
def test_a_bucket_that_fails_amid_a_stream_is_named_and_completes_no_object(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    monkeypatch.setattr(streams, "PARTS_UNDERWAY", 1)
    place = _here(bucket, f"amid-{moment}")
    denied = (403, "AccessDenied")
    bucket.upcoming = {
        "begin": [denied],
        "part": [None, None, denied],
        "end": [None] * 4 + [denied],
    }[moment]
    with pytest.raises(StorageError, match=rf"^cannot write s3://tide/{place.name}: access denied"):
        _write(place, BIG)
    assert bucket.failed == {denied: 1}
    gc.collect()  # the bucket is well again: what pyarrow would complete, it could now
    assert not _is_complete(bucket, place.name)


# --- faults that stay ------------------------------------------------------------------------

BODILESS = {  # what remains of a cause where the answer has no body, as to HEAD
    400: "the request is refused",
    403: "access denied; check the credentials in the environment and the bucket's policy$",
    500: "the service fails$",
    503: "the service fails$",
}


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize(
    ("status", "code", "cause"),
    [
        (403, "AccessDenied", "access denied; check the credentials in the environment and the"),
        (403, "InvalidAccessKeyId", "the credentials are refused$"),
        (403, "SignatureDoesNotMatch", "the credentials are refused$"),
        (400, "InvalidToken", "the credentials are refused$"),
        (400, "ExpiredToken", "the credentials have expired$"),
        (403, "RequestTimeTooSkewed", "this machine's clock is wrong$"),
        (403, "QuotaExceeded", "the bucket's quota is used up$"),
        (507, "XMinioStorageFull", "no space is left behind the bucket$"),
        (301, "PermanentRedirect", "the bucket is in another region; name it with .region="),
        (400, "AuthorizationHeaderMalformed", "the bucket is in another region"),
        (503, "SlowDown", "the service throttles requests$"),
        (503, "ServiceUnavailable", "the service fails$"),
        (500, "InternalError", "the service fails$"),
        (400, "InvalidArgument", "When .*InvalidArgument"),
    ],
)
def test_what_a_bucket_refuses_is_one_line_with_place_and_cause(
    bucket: Bucket, status: int, code: str, cause: str
) -> None:
    root = _here(bucket, "run")
    bucket.refusal = (status, code)
    told = [
        (rf"^cannot write s3://tide/run/a: {cause}", lambda: storage.publish(root / "a", b"x")),
        (rf"^cannot write s3://tide/run/b: {cause}", lambda: _write(root / "b", BIG)),
        (rf"^cannot list s3://tide/run: {cause}", lambda: storage.children(root)),
        (
            rf"^cannot read s3://tide/run/a: {BODILESS.get(status, cause)}",
            lambda: storage.read_bytes(root / "a"),
        ),
        (
            rf"^cannot look at s3://tide/run/a: {BODILESS.get(status, cause)}",
            lambda: storage.exists(root / "a"),
        ),
        (
            rf"^cannot remove s3://tide/run/a: {BODILESS.get(status, cause)}",
            lambda: storage.remove(root / "a"),
        ),
    ]
    for line, verb in told:
        with pytest.raises(StorageError, match=line) as error:
            verb()
        assert "\n" not in str(error.value)


def _verbs(root: Location) -> dict[str, Callable[[], Any]]:
    """Those that must notice when there is nothing left to work on."""
    return {
        "write below": lambda: storage.check_writable(root),
        "write": lambda: storage.publish(root, b"x"),
        "list": lambda: storage.children(root),
        "read": lambda: storage.read_bytes(root),
    }


def test_a_bucket_that_is_removed_in_the_middle_is_told_as_that(bucket: Bucket) -> None:
    root = _here(bucket, "run")
    storage.publish(root, b"x")
    bucket.remove()
    try:
        for verb, call in _verbs(root).items():
            told = f"^cannot {verb} s3://tide/run: there is no such bucket$"
            with pytest.raises(StorageError, match=told):
                call()
        assert not storage.exists(root)
        storage.remove(root)
    finally:
        bucket.create()


def test_a_bucket_or_an_object_that_never_was_is_told_as_that(bucket: Bucket) -> None:
    missing = locate(bucket.uri("x").replace("tide", "no-such-tide"))
    with pytest.raises(
        StorageError, match=r"^cannot write below s3://no-such-tide/x: there is no such bucket$"
    ):
        storage.check_writable(missing)
    with pytest.raises(StorageError, match=r"^cannot read s3://tide/none: there is no such file$"):
        storage.read_bytes(_here(bucket, "none"))


@pytest.mark.usefixtures("hasty")
def test_a_service_that_is_gone_is_told_as_that(bucket: Bucket) -> None:
    root = _here(bucket, "run")
    bucket.vanished = True
    nowhere = locate("s3://tide/run?endpoint_override=127.0.0.1:9&scheme=http")
    for place in (root, nowhere):
        for verb, call in _verbs(place).items():
            told = f"^cannot {verb} s3://tide/run: no connection; check the network and the endpoi"
            with pytest.raises(StorageError, match=told):
                call()


@pytest.mark.usefixtures("hasty")
def test_a_service_that_says_nothing_is_left_in_time(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(location, "SILENCE_S", 1.0)
    root = _here(bucket, "run")
    bucket.delay_s = 30
    began_s = time.monotonic()
    with pytest.raises(StorageError, match=r"s3://tide/run: no connection: no answer in time"):
        storage.read_bytes(root)
    assert time.monotonic() - began_s < 20


def test_a_request_is_repeated_as_often_as_is_said(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(location, "RETRIES", 3)
    monkeypatch.setattr(faults, "PATIENCE_S", -1)
    bucket.refusal = THROTTLED
    with pytest.raises(StorageError, match="throttles"):
        storage.publish(_here(bucket, "x"), b"x")
    assert bucket.asked == {"PUT": 4}
