"""A wish to stop reaches the launch it is meant for and no other; signals are such a wish."""

from __future__ import annotations

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
from tidemill.errors import StorageError
from tidemill.launch import stop
from tidemill.launch.stop import Interrupts, StopWatch, request_stop, stop_marker, withdraw_stop
from tidemill.storage import Location, exists, locate

PATIENCE_S = 30.0


@pytest.fixture
def run(tmp_path: Path) -> Location:
    (tmp_path / "mill").mkdir()
    return locate(str(tmp_path / "mill"))


@pytest.fixture
def bucket(tmp_path: Path) -> Location:
    """A run on a filesystem that is not the local one."""
    (tmp_path / "mill" / "control").mkdir(parents=True)
    below = pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem())
    return Location("s3://tide/mill", below, "mill")


class Looks:
    """Counts looks for the marker; the next ones may fail."""

    def __init__(self) -> None:
        self.count = 0
        self.failures = 0

    def exists(self, location: Location) -> bool:
        self.count += 1
        if self.failures:
            self.failures -= 1
            raise StorageError("cannot look at it: no connection")
        return exists(location)

    def wait(self, more: int) -> None:
        """Wait until the watch has looked so often again."""
        goal = self.count + more
        wait_until(lambda: self.count >= goal)


def wait_until(done: Callable[[], bool]) -> None:
    until_s = time.monotonic() + PATIENCE_S
    while not done():
        assert time.monotonic() < until_s
        time.sleep(0.005)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Looks:
    looks = Looks()
    monkeypatch.setattr(stop, "exists", looks.exists)
    monkeypatch.setattr(stop, "LOCAL_POLL_S", 0.005)
    monkeypatch.setattr(stop, "REMOTE_POLL_S", 0.005)
    return looks


@pytest.fixture
def watch(run: Location, looks: Looks) -> Iterator[Callable[[int], StopWatch]]:
    """Start watches for launches; they are closed at the end."""
    watches: list[StopWatch] = []

    def start(launch: int) -> StopWatch:
        watches.append(StopWatch(run, launch))
        return watches[-1]

    yield start
    for started in watches:
        started.close()


# --- the marker ------------------------------------------------------------------------------


def test_a_request_is_seen(run: Location, looks: Looks, watch: Callable[[int], StopWatch]) -> None:
    watching = watch(3)
    looks.wait(2)
    assert not watching.requested()
    request_stop(run, 3)
    wait_until(watching.requested)


def test_a_request_from_before_the_watch_is_seen(
    run: Location, watch: Callable[[int], StopWatch]
) -> None:
    request_stop(run, 3)
    wait_until(watch(3).requested)


@pytest.mark.parametrize("other", [1, 2, 4, 30])
def test_a_request_stops_no_other_launch(
    other: int, run: Location, looks: Looks, watch: Callable[[int], StopWatch]
) -> None:
    request_stop(run, other)
    watching = watch(3)
    looks.wait(3)
    assert not watching.requested()


def test_a_storage_that_falters_is_asked_again(
    run: Location,
    looks: Looks,
    watch: Callable[[int], StopWatch],
    caplog: pytest.LogCaptureFixture,
) -> None:
    looks.failures = 2
    watching = watch(3)
    looks.wait(3)
    assert "cannot look for a stop request" in caplog.text
    assert not watching.requested()
    request_stop(run, 3)
    wait_until(watching.requested)


def test_a_closed_watch_looks_no_more(
    run: Location, looks: Looks, watch: Callable[[int], StopWatch]
) -> None:
    watching = watch(3)
    looks.wait(1)
    watching.close()
    looked = looks.count
    request_stop(run, 3)
    assert not any(thread.name == "stop-watch" for thread in threading.enumerate())
    assert looks.count == looked
    assert not watching.requested()


def test_a_withdrawn_request_leaves_nothing(run: Location) -> None:
    kept = Path(run.path) / "spec.json"
    kept.write_text("{}")
    request_stop(run, 3)
    assert exists(stop_marker(run, 3))
    withdraw_stop(run, 3)
    assert list(Path(run.path).iterdir()) == [kept]
    withdraw_stop(run, 3)


def test_a_request_in_a_bucket(bucket: Location, looks: Looks) -> None:
    request_stop(bucket, 2)
    request_stop(bucket, 3)
    watching = StopWatch(bucket, 3)
    wait_until(watching.requested)
    watching.close()
    withdraw_stop(bucket, 3)
    assert not exists(stop_marker(bucket, 3))
    assert exists(stop_marker(bucket, 2))


# --- signals ---------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_becomes_a_request(number: signal.Signals, run: Location) -> None:
    said: list[str] = []
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    with Interrupts(run, 3, said.append) as signals:
        signals.raise_if_repeated()
        assert signals.exit_code == 0
        assert not exists(stop_marker(run, 3))
        signal.raise_signal(number)
        assert exists(stop_marker(run, 3))
        signals.raise_if_repeated()
        assert said == ["stopping: saving a checkpoint first (once more to end at once)"]
        assert signals.exit_code == 128 + number
    assert not exists(run / "control")
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before
    assert signals.exit_code == 128 + number


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_the_second_signal_ends_at_once(second: signal.Signals, run: Location) -> None:
    said: list[str] = []
    with Interrupts(run, 3, said.append) as signals:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(second)
        assert len(said) == 1
        with pytest.raises(KeyboardInterrupt):
            signals.raise_if_repeated()
    assert signals.exit_code == 128 + signal.SIGTERM
    assert not exists(run / "control")


def test_without_a_signal_a_request_of_someone_else_stays(run: Location) -> None:
    with Interrupts(run, 3, pytest.fail):
        request_stop(run, 3)
    assert exists(stop_marker(run, 3))


def test_what_a_killed_driver_left_stops_nobody(run: Location) -> None:
    # It was killed before its workers wrote an event, so this launch has the same number.
    request_stop(run, 3)
    with Interrupts(run, 3, pytest.fail):
        assert not exists(stop_marker(run, 3))


def test_outside_the_main_thread_signals_are_left_alone(run: Location) -> None:
    before = signal.getsignal(signal.SIGINT)
    seen: list[object] = []

    def enter() -> None:
        with Interrupts(run, 3, pytest.fail):
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [before]


DRIVER = """
import sys, time
from tidemill.launch.stop import Interrupts
from tidemill.storage import locate

with Interrupts(locate(sys.argv[1]), 3, lambda line: print(line, flush=True)) as signals:
    print("ready", flush=True)
    while True:
        time.sleep(0.01)
        signals.raise_if_repeated()
"""


def test_a_process_takes_two_signals(run: Location) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", DRIVER, run.path],
        env=os.environ | {"PYTHONPATH": str(ROOT / "platform")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as driver:
        assert driver.stdout is not None
        assert driver.stderr is not None
        assert driver.stdout.readline() == b"ready\n"
        driver.send_signal(signal.SIGINT)
        assert driver.stdout.readline().startswith(b"stopping: saving a checkpoint first")
        wait_until(lambda: exists(stop_marker(run, 3)))
        assert driver.poll() is None
        driver.send_signal(signal.SIGINT)
        assert driver.stderr.read().rstrip().endswith(b"KeyboardInterrupt")
    assert not exists(run / "control")
