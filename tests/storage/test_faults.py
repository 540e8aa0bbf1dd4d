"""Faults: each form in which a cause is told, and which are met with another try."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest

from tidemill import storage
from tidemill.errors import StorageError
from tidemill.storage import faults, locate

if TYPE_CHECKING:
    from pathlib import Path

# As pyarrow 26 words them; tests/storage/test_bucket.py meets those that a server can bring about.
FORMS = [
    ("NO_SUCH_BUCKET during PutObject operation: no such bucket", "there is no such bucket"),
    ("NO_SUCH_UPLOAD during UploadPart operation: NoSuchUpload", "the upload was aborted by"),
    ("UNKNOWN (HTTP status 507) during PutObject operation: ", "no space is left behind"),
    (
        "UNKNOWN (HTTP status 403) during PutObject operation: ExceptionName: QuotaExceeded",
        "the bucket's quota is used up",
    ),
    ("INVALID_CLIENT_TOKEN_ID during PutObject operation: ", "the credentials are refused"),
    (
        "NETWORK_CONNECTION during HeadObject operation: curlCode: 6, Could not resolve hostname",
        "no connection: no such host",
    ),
    (
        "NETWORK_CONNECTION during HeadObject operation: curlCode: 7, Could not connect to server",
        "no connection; check the network and the endpoint",
    ),
    (
        "NETWORK_CONNECTION during HeadObject operation: curlCode: 28, Timeout was reached",
        "no connection: no answer in time",
    ),
    (
        "NETWORK_CONNECTION during HeadObject operation: curlCode: 60, SSL peer certificate",
        "no connection; check the network and the endpoint",
    ),
]
GOOGLE = [
    ("google::cloud::Status(UNAUTHENTICATED: Permanent error)", "the credentials are refused"),
    ("google::cloud::Status(PERMISSION_DENIED: Permanent error)", "access denied; check the"),
    (
        "google::cloud::Status(NOT_FOUND: The specified bucket does not exist.)",
        "there is no such bucket",
    ),
    ("google::cloud::Status(RESOURCE_EXHAUSTED: Retry policy exhausted)", "the bucket's quota"),
    ("google::cloud::Status(UNAVAILABLE: Retry policy exhausted)", "no connection; check"),
]


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


@pytest.mark.parametrize(("form", "cause"), FORMS)
def test_what_a_bucket_says_is_told_in_plain_words(tmp_path: Path, form: str, cause: str) -> None:
    text = f"When uploading key 'QuotaExceeded' in bucket 'SLOW_DOWN': AWS Error {form}"
    with (
        pytest.raises(StorageError, match=f"^cannot write {tmp_path}: {cause}"),
        storage.explained(locate(str(tmp_path)), "write"),
    ):
        raise OSError(text)


@pytest.mark.parametrize(("text", "cause"), GOOGLE)
def test_what_google_says_is_told_in_plain_words(tmp_path: Path, text: str, cause: str) -> None:
    with (
        pytest.raises(StorageError, match=f"^cannot read {tmp_path}: {cause}"),
        storage.explained(locate(str(tmp_path)), "read"),
    ):
        raise OSError(text)


def test_a_fault_that_passes_is_met_with_another_try(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(faults.time, "sleep", pauses.append)
    left = ["AWS Error SLOW_DOWN during PutObject operation", "errors when deleting objects"] * 5

    def call() -> str:
        if left:
            raise OSError(left.pop())
        return "done"

    assert faults.patiently(call) == "done"
    assert len(pauses) == 10
    assert len(set(pauses)) == 10, "ranks that were throttled together come back together"
    assert max(pauses) <= faults.LONGEST_PAUSE_S


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(
            "AWS Error ACCESS_DENIED during PutObject operation: SLOW_DOWN is a name here"[:32]
        ),
        OSError("AWS Error NETWORK_CONNECTION during PutObject operation: curlCode: 7, refused"),
        OSError("AWS Error UNKNOWN (HTTP status 507) during PutObject operation: "),
        OSError("When looking at key 'SLOW_DOWN': AWS Error NO_SUCH_KEY during GetObject"),
    ],
)
def test_a_fault_that_stays_is_told_at_once(
    monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    def call() -> None:
        raise error

    monkeypatch.setattr(faults.time, "sleep", lambda _: pytest.fail("it waits"))
    with pytest.raises(OSError, match=r".") as raised:
        faults.patiently(call)
    assert raised.value is error


def test_patience_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [0.0]
    tries: list[float] = []
    monkeypatch.setattr(faults.time, "monotonic", lambda: now_s[0])
    monkeypatch.setattr(faults.time, "sleep", lambda _: now_s.__setitem__(0, now_s[0] + 5))

    def call() -> None:
        tries.append(now_s[0])
        raise OSError("AWS Error SLOW_DOWN during PutObject operation")

    with pytest.raises(OSError, match="SLOW_DOWN"):
        faults.patiently(call)
    assert tries[-1] == faults.PATIENCE_S + 5
