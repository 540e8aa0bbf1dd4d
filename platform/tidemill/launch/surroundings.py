"""What surrounds a rank's work: its log, its ear for requests, and its last words."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator

from tidemill.errors import TidemillError, TrainingError
from tidemill.launch.failure import one_line
from tidemill.launch.stop import StopWatch
from tidemill.report.events import EventLog
from tidemill.spec.progress import World
from tidemill.storage import Location


@contextlib.contextmanager
def last_words(world: World) -> Iterator[None]:
    """Send a failure to the driver with all of its traceback; Ray would cut it short."""
    try:
        yield
    except TidemillError:
        raise
    except Exception as error:  # noqa: BLE001 - a rank's last word, whatever it is
        summary = f"rank {world.rank} failed: {one_line(error)}"
        raise TrainingError(summary, traceback.format_exc(), world.rank) from None


@contextlib.contextmanager
def event_log(run: Location, world: World) -> Iterator[EventLog | None]:
    """Rank 0's event log; of a failure the controller knows more, and writes it there."""
    if world.rank != 0:
        yield None
        return
    log = EventLog(run, world.attempt)
    try:
        yield log
    finally:
        log.close()


@contextlib.contextmanager
def stop_watch(run: Location, launch: int, world: World) -> Iterator[StopWatch | None]:
    """Rank 0's watch for a stop request; the others hear of it when ranks agree on a step."""
    if world.rank != 0:
        yield None
        return
    watch = StopWatch(run, launch)
    try:
        yield watch
    finally:
        watch.close()
