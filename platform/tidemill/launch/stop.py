"""Asking a run to save and stop: a marker file in its directory, seen by rank 0.

The marker needs no process, port or permission beyond what a run has anyway, and works from any
machine that sees the storage. It names the launch, so it cannot stop a later one.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Self

from tidemill.errors import StorageError
from tidemill.storage import Location, exists, publish, remove

LOCAL_POLL_S = 0.2
REMOTE_POLL_S = 2.0
SIGNALLED = 128

logger = logging.getLogger(__name__)


def stop_marker(run: Location, launch: int) -> Location:
    """The file whose presence stops the launch whose first attempt is `launch`."""
    return run / "control" / f"stop-a{launch:04d}"


def request_stop(run: Location, launch: int) -> None:
    """Ask the launch to commit a checkpoint and stop."""
    publish(stop_marker(run, launch), b"")


def withdraw_stop(run: Location, launch: int) -> None:
    """Remove what `request_stop` left."""
    remove(run / "control" if run.is_local else stop_marker(run, launch))


class StopWatch:
    """Looks for the marker in a thread, so that asking costs training nothing."""

    def __init__(self, run: Location, launch: int) -> None:
        """Begin to look."""
        self._marker = stop_marker(run, launch)
        self._pause_s = LOCAL_POLL_S if run.is_local else REMOTE_POLL_S
        self._seen = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="stop-watch", daemon=True)
        self._thread.start()

    def requested(self) -> bool:
        """Whether the marker has been seen."""
        return self._seen.is_set()

    def close(self) -> None:
        """Look no more."""
        self._closing.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._closing.wait(self._pause_s):
            try:
                if exists(self._marker):
                    self._seen.set()
                    return
            except StorageError as error:
                logger.warning("cannot look for a stop request: %s", error)


class Interrupts:
    """Turns the first SIGINT or SIGTERM into a request to save and stop, the second into an end."""

    def __init__(self, run: Location, launch: int, say: Callable[[str], None]) -> None:
        """Prepare to stop the launch whose first attempt is `launch`."""
        self._run, self._launch, self._say = run, launch, say
        self._previous: dict[int, Any] = {}
        self.received: list[int] = []

    @property
    def exit_code(self) -> int:
        """128 + the first signal, or 0."""
        return SIGNALLED + self.received[0] if self.received else 0

    def raise_if_repeated(self) -> None:
        """End at once if the person insists."""
        if len(self.received) > 1:
            raise KeyboardInterrupt

    def __enter__(self) -> Self:
        """Take over both signals; only the main thread may.

        A launch that was killed before its first event has left its number to this one, and perhaps
        a request, which is not meant for this one.
        """
        withdraw_stop(self._run, self._launch)
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        """Give the signals back and withdraw the request."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self.received:
            withdraw_stop(self._run, self._launch)

    def _handle(self, number: int, _: FrameType | None) -> None:
        self.received.append(number)
        if len(self.received) == 1:
            self._say("stopping: saving a checkpoint first (once more to end at once)")
            try:
                request_stop(self._run, self._launch)
            except StorageError as error:
                self._say(f"the workers cannot be asked: {error}")
