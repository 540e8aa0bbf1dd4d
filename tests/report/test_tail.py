"""What dies with the first rank is known to the others, and comes into the log of a later one."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import pytest

from tests.kit.training import Memory
from tests.report.histories import environment
from tidemill.errors import StorageError
from tidemill.report import tail as module
from tidemill.report.codec import encode_fields, encode_line
from tidemill.report.events import (
    EventLog,
    joined_steps,
    next_attempt,
    read_events,
    stream_events,
)
from tidemill.report.history import make_history
from tidemill.report.ledger import make_run_report
from tidemill.report.tail import Remembering, Tail, Told, catch_up, merge, read_told
from tidemill.spec.progress import Event, EventKind
from tidemill.storage import Location, locate


def at(kind: EventKind, attempt: int, step: int = 0, **fields: Any) -> Event:
    known = {} if kind is EventKind.attempt_started else {"step": step}
    return Event(kind=kind, at_s=float(step), attempt=attempt, fields=known | fields)


def step(attempt: int, number: int, **fields: Any) -> Event:
    return at(EventKind.step, attempt, number, **fields)


def line(event: Event) -> str:
    return encode_line(event.kind, event.at_s, event.attempt, encode_fields(event.fields))


def tail_of(*events: Event) -> Tail:
    tail = Tail()
    for event in events:
        tail.note(event)
    return tail


def steps_of(lines: list[str]) -> list[tuple[int, int]]:
    """(attempt, step) of each."""
    return [(event.attempt, event.fields["step"]) for event in merge([lines]).values()]


@pytest.fixture
def run(tmp_path: Path) -> Location:
    return locate(str(tmp_path)) / "run"


def write(run: Location, attempt: int, *events: Event) -> None:
    log = EventLog(run, attempt)
    for event in events:
        if event.attempt == attempt:
            log.record(event.kind, **event.fields)
        else:
            log.tell_late(event)
    log.close()


# --- what is remembered ----------------------------------------------------------------------


def test_only_the_history_is_remembered_and_all_is_passed_on() -> None:
    tail, heard = Tail(), Memory()
    recorder = Remembering(tail, 3, heard)
    for kind in EventKind:
        recorder.record(kind, step=7)
    recorder.record(EventKind.step)
    assert [kind for kind, _ in heard.heard] == [*EventKind, EventKind.step]
    offered = merge([tail.offer(Told(), 4)]).values()
    kinds = {"attempt_started", "restored", "step", "used", "evaluated"}
    assert {event.kind.value for event in offered} <= kinds
    assert len(tail.offer(Told(), 4)) == len(kinds)
    assert {event.attempt for event in offered} == {3}


def test_a_rank_without_a_log_remembers_too() -> None:
    tail = Tail()
    recorder = Remembering(tail, 1)
    recorder.record(EventKind.step, step=0, loss=math.nan, lr=0.1 + 0.2)
    recorder.flush()
    (event,) = merge([tail.offer(Told(), 2)]).values()
    assert math.isnan(event.fields.pop("loss"))
    assert event.fields == {"step": 0, "lr": 0.1 + 0.2}


def test_flushing_reaches_the_log() -> None:
    flushed: list[str] = []

    class Log(Memory):
        def flush(self) -> None:
            flushed.append("log")

    Remembering(Tail(), 1, Log()).flush()
    assert flushed == ["log"]


def test_no_more_is_remembered_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_REMEMBERED", 3)
    tail = tail_of(*(step(1, number) for number in range(10)))
    assert steps_of(tail.offer(Told(), 2)) == [(1, 7), (1, 8), (1, 9)]


# --- what is missing -------------------------------------------------------------------------


def test_what_follows_the_newest_line_of_an_attempt_is_missing() -> None:
    tail = tail_of(
        at(EventKind.attempt_started, 1),
        step(1, 0),
        at(EventKind.used, 1, 1),
        at(EventKind.evaluated, 1, 2),
        step(1, 2),
    )
    for place, missing in (
        (None, 5),
        ((-1, 0), 4),
        ((1, 0), 3),
        ((2, 0), 2),
        ((2, 1), 1),
        ((3, 0), 0),
    ):
        told = Told(0, {} if place is None else {1: place})
        assert len(tail.offer(told, 2)) == missing


def test_nothing_is_missing_of_this_attempt_or_of_those_before_one_that_took_a_step() -> None:
    tail = tail_of(step(1, 0), step(2, 1), step(3, 2), step(4, 3))
    assert steps_of(tail.offer(Told(2, {2: (1, 0)}), 4)) == [(2, 1), (3, 2)]


def test_what_several_ranks_offer_is_told_once_and_in_order() -> None:
    mine, other = [step(1, 4), step(2, 5)], [step(1, 4), at(EventKind.evaluated, 1, 5), step(1, 5)]
    offered = [[line(event) for event in events] for events in ([], mine, other)]
    assert [(event.attempt, event.kind.value) for event in merge(offered).values()] == [
        (1, "step"),
        (1, "evaluated"),
        (1, "step"),
        (2, "step"),
    ]


# --- how far logs tell -----------------------------------------------------------------------


@pytest.fixture(params=["file", "segments"])
def place(request: pytest.FixtureRequest, tmp_path: Path, run: Location) -> Location:
    """A run on a local disk, and one where nothing can be appended to."""
    if request.param == "file":
        return run
    (tmp_path / "run" / "events").mkdir(parents=True)
    tree = pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem())
    return Location("s3://bucket/run", tree, "run")


def test_a_run_without_logs_tells_nothing(place: Location) -> None:
    told = read_told(place / "events")
    assert (told.since, told.places) == (0, {})


def test_the_end_of_the_newest_attempt_with_a_step_is_enough(
    place: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(place, 1, *(step(1, number) for number in range(3)))
    write(place, 2, at(EventKind.attempt_started, 2), step(2, 3), at(EventKind.evaluated, 2, 4))
    write(place, 3, step(2, 4), at(EventKind.restored, 3, 5))
    write(place, 4, at(EventKind.attempt_started, 4))
    read: list[str] = []
    decode = module.decode_events
    monkeypatch.setattr(module, "decode_events", lambda text: read.append(text) or decode(text))
    told = read_told(place / "events")
    assert told.since == 2
    assert told.places == {2: (5, 0), 3: (5, 0), 4: (-1, 0)}
    assert len(read) == 3


def test_of_a_long_log_only_the_end_is_read(run: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "END_BYTES", 100)
    write(run, 1, *(step(1, number) for number in range(100)))
    read: list[bytes] = []
    decode = module.decode_events
    monkeypatch.setattr(module, "decode_events", lambda text: read.append(text) or decode(text))
    assert read_told(run / "events").places == {1: (100, 0)}
    assert sum(map(len, read)) <= 500


def test_steps_further_up_are_found(run: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "END_BYTES", 50)
    failures = (at(EventKind.checkpoint_failed, 1, 1, reason="x" * 50) for _ in range(30))
    write(run, 1, step(1, 0), *failures)
    told = read_told(run / "events")
    assert (told.since, told.places) == (1, {1: (1, 0)})


def test_odd_lines_tell_nothing(run: Location) -> None:
    write(run, 1, step(1, 0), Event(kind=EventKind.step, at_s=0, attempt=1, fields={"step": "x"}))
    assert read_told(run / "events").places == {1: (1, 0)}


def test_storage_that_cannot_be_read_tells_nothing(
    run: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(run, 1, step(1, 0))

    def refuse(_: Location) -> None:
        raise StorageError("no connection")

    monkeypatch.setattr(module, "find_logs", refuse)
    told = read_told(run / "events")
    assert (told.since, told.places) == (0, {})


# --- catching up -----------------------------------------------------------------------------


def test_every_line_is_in_its_own_attempt_once_and_says_where_it_was_told(run: Location) -> None:
    write(run, 1, at(EventKind.attempt_started, 1), step(1, 0), step(1, 1))
    tail = tail_of(step(1, 0), step(1, 1), step(1, 2), at(EventKind.attempt_started, 2))
    log = EventLog(run, 2)
    log.record(EventKind.attempt_started)
    catch_up(tail, 2, log, lambda value: [value])
    log.record(EventKind.restored, step=3)
    log.close()
    events = read_events(run)
    assert [(event.attempt, event.kind.value) for event in events] == [
        (1, "attempt_started"),
        (1, "step"),
        (1, "step"),
        (1, "step"),
        (2, "attempt_started"),
        (2, "restored"),
    ]
    assert events[3].fields == {"step": 2, "late": 2}
    assert events[3].at_s == 2.0
    assert next_attempt(run) == 3


def test_what_was_told_late_and_in_time_counts_once(run: Location) -> None:
    """As when a rank that was cut off writes its log after all."""
    write(run, 2, step(1, 0), step(1, 1), step(1, 2), at(EventKind.restored, 2, 3), step(2, 3))
    write(run, 1, *(step(1, number, tokens=10, seconds=1.0) for number in range(3)))
    write(run, 3, step(1, 2), step(2, 3), step(2, 4), at(EventKind.restored, 3, 5))
    events = read_events(run)
    assert [(event.attempt, event.fields["step"]) for event in events] == [
        (1, 0),
        (1, 1),
        (1, 2),
        (2, 3),
        (2, 3),
        (2, 4),
        (3, 5),
    ]
    report = make_run_report(events)
    assert report is not None
    assert report.tokens == 30
    assert [event.fields["step"] for event in joined_steps(events)] == [0, 1, 2, 3, 4]


FIRST_RANK = """
import sys, time
from tidemill.report.events import EventLog
from tidemill.report.tail import Remembering, Tail
from tidemill.spec.progress import EventKind
from tidemill.storage import locate

log = EventLog(locate(sys.argv[1]), 1)
recorder = Remembering(Tail(), 1, log)
recorder.record(EventKind.attempt_started, world=3)
for step in range(20):
    recorder.record(EventKind.step, step=step, samples=8 * step + 8, tokens=1, seconds=1.0)
    if step == 12:
        recorder.flush()
        log._write = lambda: False  # from now on, nothing gets out
print("twenty steps", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("restored", [20, 17])
@pytest.mark.parametrize("first", [0, 1])
def test_a_first_rank_that_is_killed_leaves_no_gap_and_nothing_twice(
    run: Location, restored: int, first: int
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", FIRST_RANK, run.path], stdout=subprocess.PIPE, env=environment()
    ) as killed:
        assert killed.stdout is not None
        assert killed.stdout.readline() == b"twenty steps\n"
        killed.send_signal(signal.SIGKILL)
    assert [event.fields["step"] for event in joined_steps(read_events(run))] == [*range(13)]

    # One of the two others has taken the last step, and one is not the first of the new group.
    tails, gather = (Tail(), Tail()), gathering(2)

    def go_on(rank: int) -> None:
        tail, before = tails[rank], Remembering(tails[rank], 1)
        for number in range(19 + (rank == 1)):
            before.record(
                EventKind.step, step=number, samples=8 * number + 8, tokens=1, seconds=1.0
            )
        log = EventLog(run, 2) if rank == first else None
        recorder = Remembering(tail, 2, log)
        recorder.record(EventKind.attempt_started, world=2)
        catch_up(tail, 2, log, lambda value: gather(rank ^ first, value))
        recorder.record(EventKind.restored, step=restored, samples=8 * restored)
        for number in range(restored, 23):
            recorder.record(
                EventKind.step, step=number, samples=8 * number + 8, tokens=1, seconds=1.0
            )
        if log is not None:
            log.close()

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(go_on, range(2)))
    events = read_events(run)
    curve = [(event.fields["step"], event.attempt) for event in joined_steps(events)]
    assert curve == [(n, 1 if n < restored else 2) for n in range(23)]
    report, history = make_run_report(events), make_history(stream_events(run))
    assert report is not None
    assert (report.tokens, report.redone_steps) == (23, 20 - restored)
    assert (list(history.steps), history.repeats) == ([*range(23)], [])
    assert history.taken_back == 20 - restored


def gathering(size: int) -> Callable[[int, Any], list[Any]]:
    """What ranks that are threads of this process gather with, by rank."""
    said: dict[int, Any] = {}
    barrier = threading.Barrier(size)

    def gather(rank: int, value: Any) -> list[Any]:
        said[rank] = json.loads(json.dumps(value))
        barrier.wait(60)
        found = [said[one] for one in range(size)]
        barrier.wait(60)
        return found

    return gather
