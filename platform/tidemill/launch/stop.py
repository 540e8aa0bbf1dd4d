"""Asking a run for a checkpoint, or to stop with one: marker files that rank 0 looks for.

Markers need no process, port or permission beyond what a run has anyway, and work from any machine
that sees the storage. They name the launch, so they cannot mean a later one; and `control/` belongs
to the launch that is going on, so each one clears away what is left of those before it.
"""

from __future__ import annotations

import logging
import re
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Self

from tidemill.errors import StorageError
from tidemill.storage import Location, children, publish, remove

LOCAL_POLL_S = 0.2
REMOTE_POLL_S = 2.0
SIGNALLED = 128
OUT_OF_BUDGET = 4
"""Exit code of a run that stopped because money or time ran short."""

_GOING_ON = re.compile(r"launch-a(\d{4,})")

logger = logging.getLogger(__name__)


def stop_marker(run: Location, launch: int) -> Location:
    """The file whose presence stops the launch whose first attempt is `launch`."""
    return _marker(run, "stop", launch)


def save_marker(run: Location, launch: int) -> Location:
    """The file whose presence makes that launch save a checkpoint; it removes the file."""
    return _marker(run, "save", launch)


def request_stop(run: Location, launch: int) -> None:
    """Ask the launch to commit a checkpoint and stop.

    Raises:
        StorageError: The storage cannot be written.
    """
    publish(stop_marker(run, launch), b"")


def request_save(run: Location, launch: int) -> None:
    """Ask the launch to save a checkpoint after the step it is in, and go on.

    Raises:
        StorageError: The storage cannot be written.
    """
    publish(save_marker(run, launch), b"")


def find_launch(run: Location) -> int | None:
    """Number of the launch that is going on, for those who did not start it.

    Returns:
        Number of its first attempt; None if no driver is at work. A driver that was killed without
        a word counts as at work until the next one starts.

    Raises:
        StorageError: The storage cannot be read.
    """
    matches = (_GOING_ON.fullmatch(entry.location.name) for entry in children(run / "control"))
    return max((int(match[1]) for match in matches if match), default=None)


def _marker(run: Location, kind: str, launch: int) -> Location:
    return run / "control" / f"{kind}-a{launch:04d}"


def _clear(run: Location) -> None:
    """Remove every marker."""
    if run.is_local:
        remove(run / "control")
        return
    for entry in children(run / "control"):
        remove(entry.location)


class StopWatch:
    """Looks for markers in a thread, so that asking costs training nothing."""

    def __init__(self, run: Location, launch: int) -> None:
        """Begin to look."""
        self._control = run / "control"
        self._stop, self._save = stop_marker(run, launch), save_marker(run, launch)
        self._pause_s = LOCAL_POLL_S if run.is_local else REMOTE_POLL_S
        self._stop_seen = threading.Event()
        self._save_seen = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="stop-watch", daemon=True)
        self._thread.start()

    def requested(self) -> bool:
        """Whether somebody asked for a stop."""
        return self._stop_seen.is_set()

    def save_requested(self) -> bool:
        """Whether somebody asked for a checkpoint since the last call that said so."""
        seen = self._save_seen.is_set()
        if seen:
            self._save_seen.clear()
        return seen

    def close(self) -> None:
        """Look no more."""
        self._closing.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._closing.wait(self._pause_s):
            try:
                self._look()
            except StorageError as error:
                logger.warning("cannot look for requests: %s", error)

    def _look(self) -> None:
        asked = {entry.location.name for entry in children(self._control)}
        if self._stop.name in asked:
            self._stop_seen.set()
        if self._save.name in asked:
            # Only once it is gone: one that stays would ask again and again.
            remove(self._save)
            self._save_seen.set()


class Interrupts:
    """Turns signals into requests, and says in storage that a launch is going on.

    SIGUSR1 asks for a checkpoint. The first SIGINT or SIGTERM asks for one and a stop, the second
    ends the run at once.
    """

    def __init__(self, run: Location, launch: int, say: Callable[[str], None]) -> None:
        """Prepare to speak for the launch whose first attempt is `launch`."""
        self._run, self._launch, self._say = run, launch, say
        self._previous: dict[int, Any] = {}
        self.received: list[int] = []

    @property
    def exit_code(self) -> int:
        """128 + the first signal to stop, or 0."""
        return SIGNALLED + self.received[0] if self.received else 0

    def raise_if_repeated(self) -> None:
        """End at once if the person insists."""
        if len(self.received) > 1:
            raise KeyboardInterrupt

    def __enter__(self) -> Self:
        """Take over the signals; only the main thread may.

        A launch that was killed before its first event has left its number to this one, and perhaps
        requests, which are not meant for this one.
        """
        _clear(self._run)
        publish(_marker(self._run, "launch", self._launch), b"")
        if threading.current_thread() is threading.main_thread():
            handlers = {
                signal.SIGINT: self._stop,
                signal.SIGTERM: self._stop,
                signal.SIGUSR1: self._save,
            }
            for number, handler in handlers.items():
                self._previous[number] = signal.signal(number, handler)
        return self

    def __exit__(self, *_: object) -> None:
        """Give the signals back and withdraw what was asked."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        try:
            _clear(self._run)
        except StorageError as error:
            logger.warning("the next launch will clear away requests of this one: %s", error)

    def _stop(self, number: int, _: FrameType | None) -> None:
        self.received.append(number)
        if len(self.received) == 1:
            self._ask(
                request_stop, "stopping: saving a checkpoint first (once more to end at once)"
            )

    def _save(self, _number: int, _: FrameType | None) -> None:
        if not self.received:  # else it saves anyway, and does not go on
            self._ask(request_save, "saving a checkpoint; the run goes on")

    def _ask(self, request: Callable[[Location, int], None], line: str) -> None:
        self._say(line)
        try:
            request(self._run, self._launch)
        except StorageError as error:
            self._say(f"the workers cannot be asked: {error}")
