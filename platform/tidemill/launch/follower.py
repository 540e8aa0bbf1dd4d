"""Following a launch through its event log, from whichever machine started it."""

from __future__ import annotations

import functools
import logging
import threading

from tidemill.errors import StorageError, TidemillError
from tidemill.launch.preflight import Preflight
from tidemill.report.events import EventLog, EventTail, next_attempt
from tidemill.report.live import LiveView
from tidemill.spec.progress import Event, EventKind
from tidemill.storage import Location

NOTE_S = 0.2

logger = logging.getLogger(__name__)


class Follower:
    """Reads the logs of a launch's attempts as they grow, and remembers where the run is.

    Attributes:
        step: Steps that the newest checkpoint has taken.
        last_step: Number of the last step recorded by this launch; None before the first.
        finished: Whether the run is done.
        step_s: Seconds of the longest step.
        save_s: Seconds of the longest save.
    """

    def __init__(self, ready: Preflight) -> None:
        """Follow from the first attempt of the launch."""
        self._run = ready.run
        self._attempt = ready.launch
        self._tail = EventTail(ready.run, ready.launch)
        self._read: list[Event] = []
        self.step = ready.step
        self.last_step: int | None = None
        self.finished = False
        self.step_s = self.save_s = 0.0

    def feed(self, view: LiveView | None) -> None:
        """Pass new events on to `view`, but for the last failure: the driver tells of that itself.

        Storage that cannot be read just now costs the view a moment, never the run.
        """
        try:
            events = self._poll()
        except StorageError as error:
            logger.debug("events wait for storage: %s", error)
            events = []
        for event in events:
            self._remember(event)
        if view is not None:
            view.feed([event for event in events if not _is_the_end(event)])

    def _poll(self) -> list[Event]:
        """New events; what was read before storage failed is kept for the next call."""
        self._read += self._tail.poll()
        # An attempt that failed on its way up may have left no log.
        next_one = self._attempt + 1
        for attempt in range(next_one, max(next_one + 1, next_attempt(self._run))):
            following = EventTail(self._run, attempt)
            if later := following.poll():
                self._read += [*self._tail.poll(), *later]
                self._attempt, self._tail = attempt, following
        events, self._read = self._read, []
        return events

    def note_failure(self, error: TidemillError) -> None:
        """Write the failure that ended the launch into the log of its newest attempt."""
        _note_failure(self._run, self._attempt, error, goes_on=False)

    def _remember(self, event: Event) -> None:
        match event.kind:
            case EventKind.checkpoint_saved:
                self.step = event.fields["step"]
                self.save_s = max(self.save_s, event.fields.get("seconds", 0.0))
            case EventKind.restored if event.fields.get("source", "storage") == "storage":
                self.step = event.fields["step"]
            case EventKind.step:
                self.last_step = event.fields["step"]
                self.step_s = max(self.step_s, event.fields.get("seconds", 0.0))
            case EventKind.finished:
                self.finished = True
            case _:
                pass


def _is_the_end(event: Event) -> bool:
    return event.kind is EventKind.failed and not event.fields.get("goes_on", False)


def note_retried(run: Location, attempt: int, error: TidemillError) -> None:
    """Write a failure after which the run goes on into the log of the attempt that it ended.

    Storage that is slow or fails must not hold up the restart: it is waited for but a moment.
    """
    write = functools.partial(_note_failure, run, attempt, error, goes_on=True)
    thread = threading.Thread(target=write, name="note-failure", daemon=True)
    thread.start()
    thread.join(NOTE_S)


def _note_failure(run: Location, attempt: int, error: TidemillError, *, goes_on: bool) -> None:
    rank = getattr(error, "rank", None)
    log = EventLog(run, attempt)
    log.record(
        EventKind.failed,
        rank=rank,
        error=str(error).removeprefix(f"rank {rank} failed: "),
        traceback=getattr(error, "details", ""),
        goes_on=goes_on,
    )
    log.close()
