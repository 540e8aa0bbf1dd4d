"""Locations: what a URI means, what is refused, and what people are shown of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tidemill import storage
from tidemill.errors import StorageError
from tidemill.storage import locate

if TYPE_CHECKING:
    from pathlib import Path

ELSEWHERE = "s3://tide/runs?endpoint_override=127.0.0.1:9&scheme=http"


def _options(uri: str) -> dict[str, Any]:
    """What the filesystem of a URI was built with."""
    _, (options,) = locate(uri).filesystem.__reduce__()
    return options


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


def test_a_bucket_keeps_every_option_of_its_uri() -> None:
    options = _options(
        f"{ELSEWHERE}&region=eu-north-1&allow_bucket_creation=true&tls_ca_file_path=/ca.pem"
    )
    assert options["endpoint_override"] == "127.0.0.1:9"
    assert options["scheme"] == "http"
    assert options["region"] == "eu-north-1"
    assert options["allow_bucket_creation"]
    assert options["tls_ca_file_path"] == "/ca.pem"
    assert options["access_key"] is None  # the environment is asked, now and later


def test_a_bucket_has_bounded_time_to_connect_and_to_be_silent() -> None:
    options = _options(ELSEWHERE)
    assert (options["connect_timeout"], options["request_timeout"]) == (5, 10)


def test_a_small_object_is_put_at_once_unless_the_uri_says_otherwise() -> None:
    assert _options(ELSEWHERE)["allow_delayed_open"]
    assert not _options(f"{ELSEWHERE}&allow_delayed_open=false")["allow_delayed_open"]


def test_virtual_addressing_may_be_forced_for_services_that_want_it() -> None:
    forced = locate(f"{ELSEWHERE}&force_virtual_addressing=true&region=us-east-2")
    assert forced.uri.endswith("&force_virtual_addressing=true&region=us-east-2")
    assert _options(forced.uri)["force_virtual_addressing"]
    assert not _options(ELSEWHERE)["force_virtual_addressing"]
    with pytest.raises(StorageError, match="force_virtual_addressing must be true or false"):
        locate(f"{ELSEWHERE}&force_virtual_addressing=perhaps")


def test_options_that_only_pyarrow_can_set_are_left_to_it() -> None:
    options = _options(f"{ELSEWHERE}&tls_verify_certificates=false")
    assert options["connect_timeout"] < 0  # its own default: this one was not rebuilt


def test_google_is_held_to_a_minute() -> None:
    assert locate("gs://tide/runs").uri == "gs://tide/runs?retry_limit_seconds=60"
    assert locate("gs://tide/runs?retry_limit_seconds=7").uri.endswith("?retry_limit_seconds=7")
