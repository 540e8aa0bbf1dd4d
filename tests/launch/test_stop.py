"""A wish to stop or to save reaches the launch it is meant for and no other; signals are wishes."""

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
from tidemill.launch.stop import (
    Interrupts,
    StopWatch,
    find_launch,
    request_save,
    request_stop,
    save_marker,
    stop_marker,
)
from tidemill.storage import Entry, Location, children, exists, locate

PATIENCE_S = 30.0
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


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
    """Counts looks for markers; the next ones may fail."""

    def __init__(self) -> None:
        self.count = 0
        self.failures = 0

    def children(self, location: Location) -> list[Entry]:
        self.count += 1
        if self.failures:
            self.failures -= 1
            raise StorageError("cannot list it: no connection")
        return children(location)

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
    monkeypatch.setattr(stop, "children", looks.children)
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


# --- markers ---------------------------------------------------------------------------------


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
    assert "cannot look for requests: cannot list it" in caplog.text
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


def test_a_checkpoint_is_asked_for_once(
    run: Location, looks: Looks, watch: Callable[[int], StopWatch]
) -> None:
    watching = watch(3)
    for _ in range(2):
        looks.wait(2)
        assert not watching.save_requested()
        request_save(run, 3)
        wait_until(watching.save_requested)
        assert not exists(save_marker(run, 3))
    looks.wait(2)
    assert not watching.save_requested()
    assert not watching.requested()


def test_requests_that_come_together_are_one(
    run: Location, looks: Looks, watch: Callable[[int], StopWatch]
) -> None:
    watching = watch(3)
    for _ in range(3):
        request_save(run, 3)
        wait_until(lambda: not exists(save_marker(run, 3)))
    looks.wait(2)
    assert watching.save_requested()
    assert not watching.save_requested()


def test_a_checkpoint_can_be_asked_for_with_a_stop(
    run: Location, watch: Callable[[int], StopWatch]
) -> None:
    request_stop(run, 3)
    request_save(run, 3)
    watching = watch(3)
    wait_until(watching.requested)
    wait_until(watching.save_requested)


def test_another_launch_keeps_its_requests(
    run: Location, looks: Looks, watch: Callable[[int], StopWatch]
) -> None:
    request_save(run, 4)
    watching = watch(3)
    looks.wait(3)
    assert not watching.save_requested()
    assert exists(save_marker(run, 4))


def test_a_request_that_cannot_be_removed_is_not_heard_twice(
    run: Location,
    looks: Looks,
    watch: Callable[[int], StopWatch],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(location: Location) -> None:
        raise StorageError(f"cannot remove {location}: permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(stop, "remove", refuse)
        request_save(run, 3)
        watching = watch(3)
        looks.wait(3)
        assert not watching.save_requested()
    wait_until(watching.save_requested)
    looks.wait(2)
    assert not watching.save_requested()


def test_requests_in_a_bucket(bucket: Location, looks: Looks) -> None:
    request_stop(bucket, 2)
    request_save(bucket, 3)
    watching = StopWatch(bucket, 3)
    wait_until(watching.save_requested)
    assert not watching.requested()
    request_stop(bucket, 3)
    wait_until(watching.requested)
    watching.close()
    assert exists(stop_marker(bucket, 2))
    assert not exists(save_marker(bucket, 3))


# --- who is at work --------------------------------------------------------------------------


def test_a_launch_is_found_while_it_goes_on(run: Location) -> None:
    kept = Path(run.path) / "spec.json"
    kept.write_text("{}")
    assert find_launch(run) is None
    with Interrupts(run, 12, pytest.fail):
        assert find_launch(run) == 12
        request_save(run, 12)
        request_stop(run, 12)
        assert find_launch(run) == 12
    assert find_launch(run) is None
    assert list(Path(run.path).iterdir()) == [kept]


def test_a_launch_in_a_bucket_leaves_nothing_either(bucket: Location) -> None:
    request_stop(bucket, 2)
    with Interrupts(bucket, 3, pytest.fail):
        assert [entry.location.name for entry in children(bucket / "control")] == ["launch-a0003"]
        assert find_launch(bucket) == 3
    assert children(bucket / "control") == []


def test_a_driver_that_was_killed_is_forgotten_by_the_next(run: Location) -> None:
    stop.publish(run / "control" / "launch-a0002", b"")
    assert find_launch(run) == 2
    with Interrupts(run, 3, pytest.fail):
        assert find_launch(run) == 3
    assert find_launch(run) is None


def test_storage_that_fails_at_the_end_costs_a_warning(
    run: Location, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(location: Location) -> None:
        raise StorageError(f"cannot remove {location}: no connection")

    with Interrupts(run, 3, pytest.fail):
        monkeypatch.setattr(stop, "remove", refuse)
    assert "cannot remove" in caplog.text


# --- signals ---------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_becomes_a_request(number: signal.Signals, run: Location) -> None:
    said: list[str] = []
    before = [signal.getsignal(each) for each in SIGNALS]
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
    assert [signal.getsignal(each) for each in SIGNALS] == before
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


def test_a_signal_asks_for_a_checkpoint_as_often_as_it_comes(run: Location) -> None:
    said: list[str] = []
    with Interrupts(run, 3, said.append) as signals:
        for _ in range(2):
            assert not exists(save_marker(run, 3))
            signal.raise_signal(signal.SIGUSR1)
            assert exists(save_marker(run, 3))
            stop.remove(save_marker(run, 3))
        signals.raise_if_repeated()
        assert not exists(stop_marker(run, 3))
        assert said == ["saving a checkpoint; the run goes on"] * 2
    assert signals.exit_code == 0


def test_a_run_that_stops_saves_anyway(run: Location) -> None:
    said: list[str] = []
    with Interrupts(run, 3, said.append) as signals:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGUSR1)
        assert len(said) == 1
        assert not exists(save_marker(run, 3))
        signals.raise_if_repeated()


def test_workers_that_cannot_be_asked_are_told_of(
    run: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(location: Location, content: bytes) -> None:
        raise StorageError(f"cannot write {location}: no space is left on the disk")

    said: list[str] = []
    with Interrupts(run, 3, said.append):
        monkeypatch.setattr(stop, "publish", refuse)
        signal.raise_signal(signal.SIGUSR1)
    assert said[1].startswith("the workers cannot be asked: cannot write ")


@pytest.mark.parametrize("request_", [request_stop, request_save])
def test_what_a_killed_driver_left_is_not_for_the_next(
    request_: Callable[[Location, int], None], run: Location
) -> None:
    # It was killed before its workers wrote an event, so this launch has the same number.
    request_(run, 3)
    with Interrupts(run, 3, pytest.fail):
        assert not exists(stop_marker(run, 3))
        assert not exists(save_marker(run, 3))


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


def test_a_process_takes_signals(run: Location) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", DRIVER, run.path],
        env=os.environ | {"PYTHONPATH": str(ROOT / "platform")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as driver:
        assert driver.stdout is not None
        assert driver.stderr is not None
        assert driver.stdout.readline() == b"ready\n"
        driver.send_signal(signal.SIGUSR1)
        assert driver.stdout.readline() == b"saving a checkpoint; the run goes on\n"
        wait_until(lambda: exists(save_marker(run, 3)))
        assert find_launch(run) == 3
        driver.send_signal(signal.SIGINT)
        assert driver.stdout.readline().startswith(b"stopping: saving a checkpoint first")
        wait_until(lambda: exists(stop_marker(run, 3)))
        assert driver.poll() is None
        driver.send_signal(signal.SIGINT)
        assert driver.stderr.read().rstrip().endswith(b"KeyboardInterrupt")
    assert not exists(run / "control")
