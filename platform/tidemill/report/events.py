"""The event log of a run: written without making training wait, read back whatever became of it.

One line of JSON is one event, and nothing is ever rewritten: a log is only appended to (numbered
segments on object stores, which cannot append), so a kill costs the unwritten tail and no more.
"""

from __future__ import annotations

import atexit
import logging
import os
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tidemill.errors import StorageError
from tidemill.report.codec import decode_events, encode_fields, encode_line
from tidemill.report.ledger import joined_steps
from tidemill.spec.progress import Event, EventKind
from tidemill.storage import Location, children, exists, publish, read_bytes

__all__ = ["EventLog", "EventTail", "joined_steps", "next_attempt", "read_events"]

LOCAL_FLUSH_S = 0.2
SEGMENT_S = 10.0
CLOSE_TRIES = 3
CLOSE_RETRY_S = 0.2
CLOSE_WAIT_S = 30.0
MOST_HELD_EVENTS = 100_000
READERS = 16

_LOG_NAME = re.compile(r"attempt-(\d{4,})(?:\.(\d{6,}))?\.jsonl")

logger = logging.getLogger(__name__)


class EventLog:
    """Writes the events of one attempt; a `spec.progress.Recorder`, safe to share by threads.

    `record` only queues a line. A thread writes it within half a second on a local disk; on an
    object store the first event goes out at once and the rest in a segment every 10 s. While
    storage fails, up to `MOST_HELD_EVENTS` lines wait for it to recover. A process that ends
    without `close` still flushes, unless it is killed.

    Args:
        run: The run's directory.
        attempt: Number of this attempt, see `next_attempt`.
    """

    def __init__(self, run: Location, attempt: int) -> None:
        self._events = run / "events"
        self._attempt = attempt
        self._lock = threading.Lock()
        self._queued: list[str] = []
        self._held = 0
        self._lost = 0
        self._closing = threading.Event()
        self._monotonic_to_epoch_s = time.time() - time.monotonic()
        sink = _LocalFile if run.is_local else _Segments
        self._sink: _LocalFile | _Segments = sink(self._events, attempt)
        self._thread = threading.Thread(target=self._keep_writing, name="event-log", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def record(self, kind: EventKind, **fields: Any) -> None:
        """Note that `kind` happened now; takes microseconds and never waits for storage.

        Args:
            kind: What happened.
            fields: JSON values, see `docs/events.md`. Scalars of other libraries become numbers
                and anything else becomes text.
        """
        encoded = encode_fields(fields)
        with self._lock:
            lost = self._closing.is_set() or self._held >= MOST_HELD_EVENTS
            if not lost:
                at_s = self._monotonic_to_epoch_s + time.monotonic()
                self._queued.append(encode_line(kind, at_s, self._attempt, encoded))
                self._held += 1
        if lost:
            self._report_loss(1, "the log is closed or storage has not taken any for too long")

    def close(self) -> None:
        """Write what is queued and stop; waits at most `CLOSE_WAIT_S`, and may be repeated."""
        atexit.unregister(self.close)
        with self._lock:
            self._closing.set()
        self._thread.join(CLOSE_WAIT_S)
        with self._lock:
            unwritten, self._held = self._held, 0
        if unwritten:
            self._report_loss(unwritten, "storage did not take them")

    def _keep_writing(self) -> None:
        while not self._closing.wait(self._sink.pause_s):
            self._write()
        for _ in range(CLOSE_TRIES):
            if self._write():
                break
            time.sleep(CLOSE_RETRY_S)
        self._sink.close()

    def _write(self) -> bool:
        """Hand the queue to the sink; on failure the sink keeps it for the next call."""
        with self._lock:
            lines, self._queued = self._queued, []
        try:
            written = self._sink.write(lines)
        except (StorageError, OSError) as error:
            logger.debug("events of %s wait for storage: %s", self._events, error)
            return False
        with self._lock:
            self._held -= written
        return True

    def _report_loss(self, count: int, why: str) -> None:
        with self._lock:
            first, self._lost = self._lost == 0, self._lost + count
        if first:
            logger.error("lost %d or more events of %s: %s", count, self._events, why)


class _LocalFile:
    """Appends whole lines to one file, which several processes may share."""

    pause_s = LOCAL_FLUSH_S

    def __init__(self, events: Location, attempt: int) -> None:
        self._path = Path(events.path) / f"attempt-{attempt:04}.jsonl"
        self._file: int | None = None
        self._bytes = b""
        self._lines = 0

    def write(self, lines: list[str]) -> int:
        """Append `lines` and what an earlier call could not; return how many lines that is."""
        self._bytes += "".join(lines).encode()
        self._lines += len(lines)
        if not self._bytes:
            return 0
        if self._file is None:
            self._file = self._open()
        while self._bytes:
            self._bytes = self._bytes[os.write(self._file, self._bytes) :]
        written, self._lines = self._lines, 0
        return written

    def _open(self) -> int:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        torn = _ends_torn(self._path)
        file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._bytes = b"\n" + self._bytes if torn else self._bytes
        return file

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


class _Segments:
    """Publishes numbered objects; a failed one is tried again under its own number."""

    def __init__(self, events: Location, attempt: int) -> None:
        self._events = events
        self._attempt = attempt
        self._number: int | None = None
        self._open: list[str] = []
        self._waiting: list[str] = []
        self.pause_s = LOCAL_FLUSH_S  # until the first is out, so that an attempt is soon known

    def write(self, lines: list[str]) -> int:
        """Publish `lines` and what an earlier call could not; return how many lines that is."""
        self._waiting += lines
        written = 0
        while self._open or self._waiting:
            if not self._open:
                self._open, self._waiting = self._waiting, []
            if self._number is None:
                self._number = self._next_free()
            segment = self._events / _segment_name(self._attempt, self._number)
            publish(segment, "".join(self._open).encode())
            self._number += 1
            self.pause_s = SEGMENT_S
            written += len(self._open)
            self._open = []
        return written

    def close(self) -> None:
        """Nothing stays open between segments."""

    def _next_free(self) -> int:
        """A process that died may have left segments of this attempt."""
        return 1 + max((s for a, s, _ in _logs(self._events) if a == self._attempt), default=-1)


class EventTail:
    """Follows the log of one attempt, reading every byte once.

    Args:
        run: The run's directory.
        attempt: The attempt to follow; it need not have started.
    """

    def __init__(self, run: Location, attempt: int) -> None:
        self._run = run
        self._attempt = attempt
        self._offset = 0
        self._segment = 0

    def poll(self) -> list[Event]:
        """The events written since the last call, oldest first; often none.

        Raises:
            StorageError: The log is there and cannot be read.
        """
        return self._poll_file() if self._run.is_local else self._poll_segments()

    def _poll_file(self) -> list[Event]:
        path = Path(self._run.path) / "events" / f"attempt-{self._attempt:04}.jsonl"
        try:
            with path.open("rb") as file:
                file.seek(self._offset)
                fresh = file.read()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StorageError(f"cannot read {path}: {error}") from error
        whole = fresh[: fresh.rfind(b"\n") + 1]
        self._offset += len(whole)
        return decode_events(whole)

    def _poll_segments(self) -> list[Event]:
        found: list[Event] = []
        events = self._run / "events"
        while exists(segment := events / _segment_name(self._attempt, self._segment)):
            found += decode_events(read_bytes(segment))
            self._segment += 1
        return found


def next_attempt(run: Location) -> int:
    """One more than the highest attempt of `run` that has a log; 1 for a fresh run."""
    return 1 + max((attempt for attempt, _, _ in _logs(run / "events")), default=0)


def read_events(run: Location) -> list[Event]:
    """All events of `run`: attempts in order, and within each the order they were recorded in.

    A torn line, an event of a kind that this version does not know and fields of an event that it
    does not know do no harm: the first two are left out, the last are passed on.

    Raises:
        StorageError: A log is there and cannot be read.
    """
    logs = [place for _, _, place in _logs(run / "events")]
    with ThreadPoolExecutor(READERS) as pool:
        contents = pool.map(read_bytes, logs)
        return [event for content in contents for event in decode_events(content)]


def _logs(events: Location) -> list[tuple[int, int, Location]]:
    """(attempt, segment, place) of every log, in order; segment is -1 for a local file."""
    found: list[tuple[int, int, Location]] = []
    for entry in children(events):
        match = _LOG_NAME.fullmatch(entry.location.name)
        if match and not entry.is_directory:
            found.append((int(match[1]), int(match[2] or -1), entry.location))
    return sorted(found, key=lambda log: log[:2])


def _segment_name(attempt: int, number: int) -> str:
    return f"attempt-{attempt:04}.{number:06}.jsonl"


def _ends_torn(path: Path) -> bool:
    """Whether a killed process left half a line at the end of the file."""
    if not path.exists() or path.stat().st_size == 0:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"
