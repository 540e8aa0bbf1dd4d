"""The event log of a run: written without making training wait, read back whatever became of it.

One line of JSON is one event, and nothing is ever rewritten: a log is only appended to (numbered
segments on object stores, which cannot append), so a kill costs the unwritten tail and no more.
"""

from __future__ import annotations

import atexit
import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tidemill.errors import StorageError
from tidemill.report.codec import decode_events, encode_fields, encode_line, iterate_events
from tidemill.report.ledger import in_order, joined_steps
from tidemill.report.sinks import LocalFile, Segments, file_of, find_logs, segment_of
from tidemill.report.tail import Told, read_told
from tidemill.spec.progress import Event, EventKind
from tidemill.storage import Location, exists, read_bytes

__all__ = ["EventLog", "EventTail", "joined_steps", "next_attempt", "read_events", "stream_events"]

FLUSH_WAIT_S = 5.0
CLOSE_TRIES = 3
CLOSE_RETRY_S = 0.2
CLOSE_WAIT_S = 30.0
MOST_HELD_EVENTS = 100_000
READERS = 16

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
        self._tried = threading.Condition(self._lock)
        self._queued: list[str] = []
        self._held = 0
        self._lost = 0
        self._begun = self._ended = 0
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._monotonic_to_epoch_s = time.time() - time.monotonic()
        sink = LocalFile if run.is_local else Segments
        self._sink: LocalFile | Segments = sink(self._events, attempt)
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
        self._queue(kind, None, self._attempt, encode_fields(fields))

    def tell_late(self, event: Event) -> None:
        """Note what happened before, in an attempt whose own log may lack it."""
        late = encode_fields(event.fields | {"late": self._attempt})
        self._queue(event.kind, event.at_s, event.attempt, late)

    def told(self) -> Told:
        """How far the logs of all attempts tell the history of the run."""
        return read_told(self._events)

    def flush(self) -> None:
        """See `Recorder.flush`; waits at most `FLUSH_WAIT_S`."""
        with self._tried:
            if not self._held or self._closing.is_set():
                return
            following = self._begun + 1
            self._wake.set()
            self._tried.wait_for(lambda: self._ended >= following, FLUSH_WAIT_S)

    def close(self) -> None:
        """Write what is queued and stop; waits at most `CLOSE_WAIT_S`, and may be repeated."""
        atexit.unregister(self.close)
        with self._lock:
            self._closing.set()
        self._wake.set()
        self._thread.join(CLOSE_WAIT_S)
        with self._lock:
            unwritten, self._held = self._held, 0
        if unwritten:
            self._report_loss(unwritten, "storage did not take them")

    def _queue(self, kind: EventKind, at_s: float | None, attempt: int, encoded: str) -> None:
        with self._lock:
            lost = self._closing.is_set() or self._held >= MOST_HELD_EVENTS
            if not lost:
                now_s = self._monotonic_to_epoch_s + time.monotonic()
                moment_s = now_s if at_s is None else at_s
                self._queued.append(encode_line(kind, moment_s, attempt, encoded))
                self._held += 1
        if lost:
            self._report_loss(1, "the log is closed or storage has not taken any for too long")

    def _keep_writing(self) -> None:
        while True:
            self._wake.wait(self._sink.pause_s)
            self._wake.clear()
            if self._closing.is_set():
                break
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
            self._begun += 1
        try:
            written = self._sink.write(lines)
        except (StorageError, OSError) as error:
            logger.debug("events of %s wait for storage: %s", self._events, error)
            written = None
        with self._tried:
            self._held -= written or 0
            self._ended += 1
            self._tried.notify_all()
        return written is not None

    def _report_loss(self, count: int, why: str) -> None:
        with self._lock:
            first, self._lost = self._lost == 0, self._lost + count
        if first:
            logger.error("lost %d or more events of %s: %s", count, self._events, why)


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
        path = file_of(self._run / "events", self._attempt)
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
        while exists(segment := segment_of(self._run / "events", self._attempt, self._segment)):
            found += decode_events(read_bytes(segment))
            self._segment += 1
        return found


def next_attempt(run: Location) -> int:
    """One more than the highest attempt of `run` that has a log; 1 for a fresh run."""
    return 1 + max((attempt for attempt, _, _ in find_logs(run / "events")), default=0)


def read_events(run: Location) -> list[Event]:
    """All events of `run`: attempts in order, and within each the order they were recorded in.

    A torn line, an event of a kind that this version does not know and fields of an event that it
    does not know do no harm: the first two are left out, the last are passed on. An event that was
    told late, in the log of a later attempt, stands with its own, once.

    Raises:
        StorageError: A log is there and cannot be read.
    """
    return in_order(stream_events(run))


def stream_events(run: Location) -> Iterator[Event]:
    """All events of `run` as they are in its logs, one log after the other; see `read_events`."""
    logs = [place for _, _, place in find_logs(run / "events")]
    with ThreadPoolExecutor(READERS) as pool:
        for content in pool.map(read_bytes, logs):
            yield from iterate_events(content)
