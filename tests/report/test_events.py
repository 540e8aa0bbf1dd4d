"""Events survive threads, kills and failing storage, and read back as they were."""

from __future__ import annotations

import itertools
import json
import logging
import math
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.fs as pafs
import pytest

from tests.report.histories import environment
from tidemill.errors import StorageError
from tidemill.report import events as module
from tidemill.report import sinks
from tidemill.report.events import EventLog, EventTail, next_attempt, read_events
from tidemill.spec.progress import Event, EventKind
from tidemill.storage import Location, locate

PATIENCE_S = 60


@pytest.fixture
def run(tmp_path: Path) -> Location:
    return locate(str(tmp_path)) / "run"


@pytest.fixture
def bucket(tmp_path: Path) -> Location:
    """A run where nothing can be appended to."""
    (tmp_path / "run" / "events").mkdir(parents=True)
    tree = pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem())
    place = Location("s3://bucket/run", tree, "run")
    assert not place.is_local
    return place


def record(run: Location, attempt: int, *steps: int) -> None:
    log = EventLog(run, attempt)
    for step in steps:
        log.record(EventKind.step, step=step)
    log.close()


def numbers(events: list[Event]) -> list[int]:
    return [event.fields["step"] for event in events]


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def wait_for(path: Path) -> None:
    for _ in range(PATIENCE_S * 100):
        if path.exists():
            return
        threading.Event().wait(0.01)
    pytest.fail(f"{path} never came")


def test_what_is_recorded_reads_back_bit_for_bit(run: Location) -> None:
    fields: dict[str, Any] = {
        "step": 3,
        "loss": 0.1 + 0.2,
        "lr": 5e-324,
        "applied": False,
        "bits_per_byte": None,
        "error": 'two\nlines, "quoted" | \u2028 \ud800 é',
    }
    log = EventLog(run, 7)
    log.record(EventKind.step, **fields)
    log.close()
    (event,) = read_events(run)
    assert (event.kind, event.attempt, event.fields) == (EventKind.step, 7, fields)


def test_numbers_json_cannot_spell_come_back_and_the_log_stays_json(run: Location) -> None:
    log = EventLog(run, 1)
    log.record(EventKind.step, loss=math.nan, grad_norm=math.inf, name="NaN", norms=[-math.inf, 1])
    log.close()
    (event,) = read_events(run)
    assert math.isnan(event.fields["loss"])
    assert event.fields["grad_norm"] == math.inf
    assert event.fields["norms"] == [-math.inf, 1]
    assert event.fields["name"] == "NaN"

    def refuse(constant: str) -> None:
        pytest.fail(f"{constant} is no JSON")

    line = (Path(run.path) / "events" / "attempt-0001.jsonl").read_text()
    assert json.loads(line, parse_constant=refuse)["non_finite"] == ["loss", "grad_norm", "norms"]


def test_numbers_of_other_libraries_become_numbers_and_the_rest_text(run: Location) -> None:
    log = EventLog(run, 1)
    log.record(
        EventKind.step,
        loss=np.float32(0.5),
        step=np.int64(3),
        grad_norm=np.array(math.inf),
        place=Path("/there"),
    )
    log.close()
    (event,) = read_events(run)
    assert event.fields == {"loss": 0.5, "step": 3, "grad_norm": math.inf, "place": "/there"}


def test_times_never_go_back(run: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    log = EventLog(run, 1)
    log.record(EventKind.step, step=0)
    monkeypatch.setattr(module.time, "time", lambda: 0.0)
    log.record(EventKind.step, step=1)
    log.close()
    first, second = read_events(run)
    assert first.at_s <= second.at_s


def test_attempts_read_in_order_and_the_next_one_is_known(run: Location) -> None:
    assert next_attempt(run) == 1
    assert read_events(run) == []
    record(run, 10, 5)
    record(run, 2, 3, 4)
    record(run, 1, 1, 2)
    (Path(run.path) / "events" / "attempt-0099.jsonl.bak").touch()
    assert numbers(read_events(run)) == [1, 2, 3, 4, 5]
    assert next_attempt(run) == 11


@pytest.mark.parametrize("torn", [b'{"kind":"step","at', b'{"kind":"step"}', b"\xff", b"[]", b"1"])
def test_a_torn_line_costs_itself_alone(run: Location, torn: bytes) -> None:
    record(run, 1, 1)
    path = Path(run.path) / "events" / "attempt-0001.jsonl"
    with path.open("ab") as file:
        file.write(torn)
    assert numbers(read_events(run)) == [1]
    record(run, 1, 2)
    assert numbers(read_events(run)) == [1, 2]


def test_a_newer_versions_kinds_and_keys_do_no_harm(run: Location) -> None:
    record(run, 1, 1)
    with (Path(run.path) / "events" / "attempt-0001.jsonl").open("a") as file:
        file.write('{"kind":"teleported","at_s":1.0,"attempt":1,"fields":{}}\n')
        file.write('{"kind":"step","at_s":1.0,"attempt":1,"fields":{"step":2,"new":3},"more":4}\n')
    assert [event.fields for event in read_events(run)] == [{"step": 1}, {"step": 2, "new": 3}]


def test_many_threads_lose_and_tear_nothing(run: Location) -> None:
    log = EventLog(run, 1)

    def write(thread: int) -> None:
        for i in range(500):
            log.record(EventKind.step, step=thread * 1000 + i)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close()
    found = numbers(read_events(run))
    assert sorted(found) == sorted(n * 1000 + i for n in range(8) for i in range(500))
    for n in range(8):
        own = [step for step in found if step // 1000 == n]
        assert own == sorted(own)


def test_recording_does_not_wait_for_storage(
    bucket: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, publish = threading.Event(), sinks.publish

    def slow(location: Location, content: bytes) -> None:
        assert gate.wait(PATIENCE_S)
        publish(location, content)

    monkeypatch.setattr(sinks, "publish", slow)
    log = EventLog(bucket, 1)
    for step in range(1000):
        log.record(EventKind.step, step=step)  # would never return if it waited
    gate.set()
    log.close()
    assert numbers(read_events(bucket)) == list(range(1000))


def test_storage_that_fails_for_a_while_costs_nothing(
    run: Location, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tried = threading.Event()
    mkdir = Path.mkdir

    def refuse(*_: Any, **__: Any) -> None:
        tried.set()
        raise PermissionError

    monkeypatch.setattr(Path, "mkdir", refuse)
    log = EventLog(run, 1)
    log.record(EventKind.step, step=1)
    assert tried.wait(PATIENCE_S)
    monkeypatch.setattr(Path, "mkdir", mkdir)
    log.record(EventKind.step, step=2)
    log.close()
    assert numbers(read_events(run)) == [1, 2]
    assert not caplog.records


def test_a_write_that_stops_halfway_goes_on_where_it_stopped(
    run: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, calls = sinks.os.write, itertools.count()

    def meagre(file: int, content: bytes) -> int:
        if next(calls) % 2:
            raise OSError(28, "No space left on device")
        return write(file, content[:11])

    monkeypatch.setattr(module, "CLOSE_TRIES", 1000)
    monkeypatch.setattr(module, "CLOSE_RETRY_S", 0)
    monkeypatch.setattr(sinks.os, "write", meagre)
    record(run, 1, 1, 2, 3)
    assert numbers(read_events(run)) == [1, 2, 3]


def test_events_that_are_lost_are_reported_once(
    run: Location, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    Path(run.path).write_text("a file is in the way")
    monkeypatch.setattr(module, "CLOSE_RETRY_S", 0)
    monkeypatch.setattr(module, "MOST_HELD_EVENTS", 3)
    log = EventLog(run, 1)
    for step in range(10):
        log.record(EventKind.step, step=step)
    log.close()
    log.record(EventKind.step, step=10)
    assert [item.levelno for item in caplog.records] == [logging.ERROR]
    assert "lost" in caplog.text
    assert str(run) in caplog.text


def test_what_waits_for_storage_is_bounded_and_the_oldest_of_it_is_kept(
    run: Location, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "MOST_HELD_EVENTS", 3)
    Path(run.path).write_text("a file is in the way")
    log = EventLog(run, 1)
    for step in range(10):
        log.record(EventKind.step, step=step)
    Path(run.path).unlink()
    log.close()
    assert numbers(read_events(run)) == [0, 1, 2]
    assert len(caplog.records) == 1


def test_closing_twice_is_closing(run: Location) -> None:
    log = EventLog(run, 1)
    log.record(EventKind.step, step=1)
    log.close()
    log.close()
    assert numbers(read_events(run)) == [1]


def test_object_stores_get_numbered_segments(bucket: Location, tmp_path: Path) -> None:
    directory = tmp_path / "run" / "events"
    log = EventLog(bucket, 1)
    log.record(EventKind.attempt_started, step=0)
    wait_for(directory / "attempt-0001.000000.jsonl")
    log.record(EventKind.step, step=1)
    log.close()
    record(bucket, 1, 2)  # another process of the same attempt overwrites nothing
    record(bucket, 2, 3)
    assert names(directory) == [
        "attempt-0001.000000.jsonl",
        "attempt-0001.000001.jsonl",
        "attempt-0001.000002.jsonl",
        "attempt-0002.000000.jsonl",
    ]
    assert numbers(read_events(bucket)) == [0, 1, 2, 3]
    assert next_attempt(bucket) == 3


def test_a_segment_that_failed_keeps_its_number_and_content(
    bucket: Location, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish, outcomes = sinks.publish, iter([True, False])

    def flaky(location: Location, content: bytes) -> None:
        publish(location, content)
        if next(outcomes, False):
            raise StorageError("the answer was lost on its way")

    monkeypatch.setattr(sinks, "publish", flaky)
    monkeypatch.setattr(sinks, "LOCAL_FLUSH_S", PATIENCE_S)
    monkeypatch.setattr(module, "CLOSE_RETRY_S", 0)
    record(bucket, 1, 1, 2)
    assert names(tmp_path / "run" / "events") == ["attempt-0001.000000.jsonl"]
    assert numbers(read_events(bucket)) == [1, 2]


def test_a_tail_gives_each_event_once_and_whole_lines_only(run: Location) -> None:
    tail = EventTail(run, 1)
    assert tail.poll() == []
    record(run, 1, 1, 2)
    assert numbers(tail.poll()) == [1, 2]
    assert tail.poll() == []
    path = Path(run.path) / "events" / "attempt-0001.jsonl"
    line = path.read_bytes().splitlines(keepends=True)[0]
    with path.open("ab") as file:
        file.write(line[:20])
        file.flush()
        assert tail.poll() == []
        file.write(line[20:])
    assert numbers(tail.poll()) == [1]
    record(run, 2, 9)
    assert tail.poll() == []


def test_a_tail_reads_no_byte_twice(run: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    tail, decode, read = EventTail(run, 1), module.decode_events, list[int]()

    def count(content: bytes) -> list[Event]:
        read.append(len(content))
        return decode(content)

    monkeypatch.setattr(module, "decode_events", count)
    for step in range(3):
        record(run, 1, step)
        tail.poll()
    assert sum(read) == (Path(run.path) / "events" / "attempt-0001.jsonl").stat().st_size


def test_a_tail_follows_segments(bucket: Location) -> None:
    tail = EventTail(bucket, 1)
    assert tail.poll() == []
    record(bucket, 1, 1)
    record(bucket, 1, 2)
    assert numbers(tail.poll()) == [1, 2]
    assert tail.poll() == []
    record(bucket, 1, 3)
    assert numbers(tail.poll()) == [3]


WRITER = """
import sys, time
from tidemill.report.events import EventLog
from tidemill.spec.progress import EventKind
from tidemill.storage import locate

log = EventLog(locate(sys.argv[1]), 1)
for step in range(100):
    log.record(EventKind.step, step=step)
"""
THEN_GO_ON = """
time.sleep(0.5)
print("half a second later", flush=True)
while True:
    step += 1
    log.record(EventKind.step, step=step)
    time.sleep(0.001)
"""


def test_a_kill_costs_at_most_the_last_half_second(run: Location) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WRITER + THEN_GO_ON, run.path],
        stdout=subprocess.PIPE,
        env=environment(),
    ) as writer:
        assert writer.stdout is not None
        said = writer.stdout.readline()
        writer.send_signal(signal.SIGKILL)
    assert said == b"half a second later\n"
    found = numbers(read_events(run))
    assert len(found) >= 100
    assert found == list(range(len(found)))


def test_a_process_that_forgets_to_close_loses_nothing(run: Location) -> None:
    subprocess.run([sys.executable, "-c", WRITER, run.path], check=True, env=environment())
    assert numbers(read_events(run)) == list(range(100))


def test_processes_share_a_log(run: Location) -> None:
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, run.path], env=environment())
        for _ in range(2)
    ]
    assert [writer.wait(PATIENCE_S) for writer in writers] == [0, 0]
    assert sorted(numbers(read_events(run))) == sorted([*range(100), *range(100)])


def test_attempts_are_ordered_as_numbers_and_directories_are_no_logs(run: Location) -> None:
    record(run, 10_000, 2)
    record(run, 9_999, 1)
    (Path(run.path) / "events" / "attempt-20000.jsonl").mkdir()
    assert numbers(read_events(run)) == [1, 2]
    assert next_attempt(run) == 10_001


def test_only_the_first_segment_is_in_a_hurry(bucket: Location) -> None:
    log = EventLog(bucket, 1)
    assert log._sink.pause_s == sinks.LOCAL_FLUSH_S
    log.record(EventKind.step, step=0)
    log.close()
    assert log._sink.pause_s == sinks.SEGMENT_S


def test_an_object_store_that_fails_for_a_while_costs_nothing(
    bucket: Location, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    publish, failed = sinks.publish, threading.Event()

    def refuse(location: Location, content: bytes) -> None:
        failed.set()
        raise StorageError("no connection")

    monkeypatch.setattr(sinks, "publish", refuse)
    log = EventLog(bucket, 1)
    log.record(EventKind.step, step=0)
    assert failed.wait(PATIENCE_S)
    log.record(EventKind.step, step=1)
    assert read_events(bucket) == []
    monkeypatch.setattr(sinks, "publish", publish)
    log.record(EventKind.step, step=2)
    log.close()
    assert numbers(read_events(bucket)) == [0, 1, 2]
    assert not caplog.records


# --- flushing --------------------------------------------------------------------------------


@pytest.fixture
def lazy(bucket: Location, monkeypatch: pytest.MonkeyPatch) -> Location:
    """A run whose logs are written when somebody asks for it, or ends."""
    monkeypatch.setattr(sinks, "LOCAL_FLUSH_S", PATIENCE_S)
    return bucket


def test_what_is_flushed_is_in_storage(lazy: Location) -> None:
    log = EventLog(lazy, 1)
    for step in range(3):
        log.record(EventKind.step, step=step)
        assert numbers(read_events(lazy)) == list(range(step))
        log.flush()
        assert numbers(read_events(lazy)) == list(range(step + 1))
    log.close()


def test_flushing_nothing_leaves_nothing(lazy: Location, tmp_path: Path) -> None:
    log = EventLog(lazy, 1)
    log.flush()
    log.close()
    log.flush()
    assert names(tmp_path / "run" / "events") == []


def test_a_flush_waits_for_a_try_that_began_after_it(
    lazy: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish, begun, go_on = sinks.publish, threading.Semaphore(0), threading.Semaphore(0)

    def slow(location: Location, content: bytes) -> None:
        begun.release()
        assert go_on.acquire(timeout=PATIENCE_S)
        publish(location, content)

    monkeypatch.setattr(sinks, "publish", slow)
    log = EventLog(lazy, 1)
    log.record(EventKind.step, step=0)
    early = threading.Thread(target=log.flush)
    early.start()
    assert begun.acquire(timeout=PATIENCE_S)
    log.record(EventKind.step, step=1)  # too late for the try that goes on
    found: list[int] = []

    def flush() -> None:
        log.flush()
        found.extend(numbers(read_events(lazy)))

    late = threading.Thread(target=flush)
    late.start()
    go_on.release()
    assert begun.acquire(timeout=PATIENCE_S)
    assert late.is_alive()
    go_on.release()
    for thread in (early, late):
        thread.join(PATIENCE_S)
    assert found == [0, 1]
    log.close()


def test_a_flush_ends_when_storage_fails(lazy: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    publish = sinks.publish

    def refuse(location: Location, content: bytes) -> None:
        raise StorageError("no connection")

    monkeypatch.setattr(sinks, "publish", refuse)
    monkeypatch.setattr(module, "FLUSH_WAIT_S", PATIENCE_S * 100)
    log = EventLog(lazy, 1)
    log.record(EventKind.step, step=0)
    log.flush()
    assert read_events(lazy) == []
    monkeypatch.setattr(sinks, "publish", publish)
    log.flush()
    assert numbers(read_events(lazy)) == [0]
    log.close()


def test_a_flush_does_not_wait_for_ever(lazy: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    monkeypatch.setattr(sinks, "publish", lambda *_: gate.wait(PATIENCE_S))
    monkeypatch.setattr(module, "FLUSH_WAIT_S", 0.01)
    log = EventLog(lazy, 1)
    log.record(EventKind.step, step=0)
    log.flush()
    assert not gate.is_set()
    gate.set()
    log.close()
