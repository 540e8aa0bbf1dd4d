"""Two drivers never work on one run; one that was killed is in nobody's way."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pyarrow import fs as pafs

from tests.kit.doors import ROOT
from tidemill.errors import SpecError, StorageError
from tidemill.launch import lock
from tidemill.launch.lock import find_driver, sole_driver, this_driver
from tidemill.storage import Location, exists, locate, read_bytes

PATIENCE_S = 30.0
HOLDER = """
import sys, time
from tidemill.launch.lock import sole_driver
from tidemill.storage import locate

with sole_driver(locate(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def run(tmp_path: Path) -> Location:
    return locate(str(tmp_path / "mill"))


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Location:
    """A run on a filesystem that is not the local one; signs of life are quick.

    An object is there as a whole or not at all.
    """
    (tmp_path / "mill").mkdir()

    def put(location: Location, content: bytes) -> None:
        hidden = tmp_path / f"hidden-{threading.get_ident()}"
        hidden.write_bytes(content)
        hidden.replace(tmp_path / location.path)

    monkeypatch.setattr(lock, "publish", put)
    monkeypatch.setattr(lock, "BEAT_S", 0.02)
    monkeypatch.setattr(lock, "SILENCE_S", 1.0)
    monkeypatch.setattr(lock, "LOOK_S", 0.02)
    below = pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem())
    return Location("s3://tide/mill", below, "mill")


@pytest.fixture
def holder(run: Location) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that drives the run."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, run.path],
        env=os.environ | {"PYTHONPATH": str(ROOT / "platform")},
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        try:
            yield process
        finally:
            process.kill()


def wait_until(done: Callable[[], bool]) -> None:
    until_s = time.monotonic() + PATIENCE_S
    while not done():
        assert time.monotonic() < until_s
        time.sleep(0.005)


def files_of(run: Location) -> list[str]:
    return sorted(path.name for path in Path(run.path).iterdir())


# --- on a disk -------------------------------------------------------------------------------


def test_a_second_driver_is_refused_with_the_name_of_the_first(
    run: Location, holder: subprocess.Popen[bytes]
) -> None:
    with pytest.raises(SpecError, match=f"by process {holder.pid} on ") as caught, sole_driver(run):
        pytest.fail("there are two")
    assert caught.value.key == "name"
    assert caught.value.exit_code == 2
    assert find_driver(run) == str(dataclasses.replace(this_driver(), pid=holder.pid))


def test_a_driver_that_was_killed_is_in_nobodys_way(
    run: Location, holder: subprocess.Popen[bytes]
) -> None:
    holder.kill()
    holder.wait()
    assert find_driver(run) is None
    with sole_driver(run):
        assert files_of(run) == ["driver.lock"]
    assert files_of(run) == []


def test_a_lock_is_free_again_after_its_driver(run: Location) -> None:
    assert find_driver(run) is None
    for _ in range(2):
        with sole_driver(run):
            assert find_driver(run) == str(this_driver())
            with pytest.raises(SpecError), sole_driver(run):
                pytest.fail("there are two")
            # Whoever was refused has not taken it away.
            assert find_driver(run) == str(this_driver())
        assert find_driver(run) is None


def test_of_many_at_once_one_wins_at_a_time(run: Location) -> None:
    at_work: list[int] = []
    won: list[int] = []

    def drive(number: int) -> None:
        for _ in range(40):
            try:
                with sole_driver(run):
                    at_work.append(number)
                    assert at_work == [number]
                    won.append(number)
                    at_work.remove(number)
            except SpecError:
                pass

    threads = [threading.Thread(target=drive, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert at_work == []
    assert won


def test_a_place_that_cannot_be_written_is_told(run: Location) -> None:
    Path(run.path).mkdir()
    (Path(run.path) / "driver.lock").mkdir()
    with pytest.raises(StorageError, match="cannot write"), sole_driver(run):
        pytest.fail("nothing is locked")


# --- in a bucket -----------------------------------------------------------------------------


def sign(bucket: Location, **changes: object) -> None:
    driver = dataclasses.asdict(this_driver()) | changes
    held = json.dumps({"driver": driver, "number": 3})
    lock.publish(bucket / "driver.json", held.encode())


def number_of(bucket: Location) -> int:
    return json.loads(read_bytes(bucket / "driver.json"))["number"]


def test_a_driver_that_gives_signs_of_life_is_refused_company(bucket: Location) -> None:
    with sole_driver(bucket):
        wait_until(lambda: number_of(bucket) > 2)
        assert find_driver(bucket) == str(this_driver())
        with pytest.raises(SpecError, match="by process"), sole_driver(bucket):
            pytest.fail("there are two")
    assert not exists(bucket / "driver.json")
    assert find_driver(bucket) is None


def test_a_dead_driver_of_this_machine_is_not_waited_for(
    bucket: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "SILENCE_S", 1e9)
    sign(bucket, born=this_driver().born - 1)
    with sole_driver(bucket):
        assert number_of(bucket) < 3


@pytest.mark.parametrize("elsewhere", [{"host": "far"}, {"space": "pid:[1]"}])
def test_a_silent_driver_of_another_machine_is_waited_for(
    elsewhere: dict[str, str], bucket: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "SILENCE_S", 0.2)
    sign(bucket, born=-5, **elsewhere)
    before_s = time.monotonic()
    with sole_driver(bucket):
        assert time.monotonic() - before_s >= 0.2
        assert json.loads(read_bytes(bucket / "driver.json"))["driver"]["born"] > 0


def test_a_driver_that_ends_meanwhile_is_waited_for_no_longer(
    bucket: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "SILENCE_S", 1e9)
    sign(bucket, host="far")
    threading.Timer(
        0.1, lambda: Path(bucket.filesystem.base_path, "mill/driver.json").unlink()
    ).start()
    assert find_driver(bucket) is None


def test_a_driver_that_was_taken_for_dead_stops(
    bucket: Location, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(lock.os, "kill", lambda *sending: sent.append(sending))
    with sole_driver(bucket):
        sign(bucket, host="far")
        wait_until(lambda: bool(sent))
    assert sent == [(os.getpid(), signal.SIGTERM)]
    assert "another driver has taken over" in caplog.text
    assert number_of(bucket) == 3  # it has left the other's sign alone


def test_storage_that_falters_does_not_end_a_driver(
    bucket: Location, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(location: Location, content: bytes) -> None:
        raise StorageError(f"cannot write {location}: no connection")

    with sole_driver(bucket):
        with monkeypatch.context() as patch:
            patch.setattr(lock, "publish", refuse)
            wait_until(lambda: "no connection" in caplog.text)
        before = number_of(bucket)
        wait_until(lambda: number_of(bucket) > before)
