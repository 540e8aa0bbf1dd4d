"""The supervisor: keeps a run going whose driver, or whose controller, died.

It starts drivers, waits for their end, and decides by exit code and progress whether another one
is of use. It holds nothing that a driver needs, so it can be killed and started again itself.
"""

from __future__ import annotations

import logging
import random
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Self

from tidemill.checkpoint.manifest import committed, parse_name
from tidemill.errors import HopelessError, SpecError, StorageError, TidemillError
from tidemill.launch.drivers import Drivers, Ending, LocalDrivers
from tidemill.launch.stop import OUT_OF_BUDGET, SIGNALLED
from tidemill.report.codec import decode_events
from tidemill.report.sinks import find_logs
from tidemill.spec.progress import EventKind
from tidemill.spec.run import RunSpec
from tidemill.spec.supervise import SuperviseSpec
from tidemill.storage import Location, locate, read_bytes

DONE, REFUSED, HOPELESS = 0, TidemillError.exit_code, HopelessError.exit_code
STOPS = (signal.SIGINT, signal.SIGTERM)
STOPPED = frozenset({code for number in STOPS for code in (SIGNALLED + number, -number)})
FREE_S = 120.0
"""Seconds that a driver of somebody else's may take to stop."""
LOOK_S = 1.0

logger = logging.getLogger(__name__)


def supervise(
    spec: SuperviseSpec,
    run: RunSpec,
    door: Path,
    typed: Sequence[str],
    say: Callable[[str], None],
) -> int:
    """Keep a run going.

    Args:
        spec: How.
        run: The run, for its place.
        door: The train door.
        typed: What to type there.
        say: Shows one line to the person.

    Returns:
        The exit code to end with.

    Raises:
        SpecError: The run cannot be driven there, or somebody else drives it, and does not stop.
    """
    if spec.submit_to and "://" not in run.storage and run.storage[0] not in "/~":
        raise SpecError(
            "storage",
            f"{run.storage!r} is relative, and a job on a cluster works somewhere else",
            "use an absolute path or a URI that all nodes see, e.g. storage=s3://bucket/runs",
        )
    place = locate(run.storage) / run.name
    drivers: Drivers
    if spec.submit_to:
        from tidemill.launch.jobs import JobDrivers, connect, read_environment

        root = door.parents[1]
        drivers = JobDrivers(
            lambda: connect(spec.submit_to),
            [spec.python, str(door.relative_to(root)), *typed],
            read_environment(root),
            place,
            _show,
        )
    else:
        drivers = LocalDrivers([sys.executable, str(door), *typed], place)
    with Signals() as signals:
        return Supervisor(drivers, Progress(place), spec, say, signals=signals).run()


class Signals:
    """Takes signals for the driver, and cuts a pause short.

    Attributes:
        stopping: The first signal to stop; 0 before.
    """

    def __init__(self) -> None:
        self.stopping = 0
        self._waiting: list[int] = []
        self._came = threading.Event()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        """Take over; only the main thread may."""
        for number in (*STOPS, signal.SIGUSR1):
            self._before[number] = signal.signal(number, self._take)
        return self

    def __exit__(self, *_: object) -> None:
        """Give them back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _take(self, number: int, _: FrameType | None) -> None:
        if number in STOPS:
            self.stopping = self.stopping or number
            self._came.set()
        self._waiting.append(number)

    def take(self) -> list[int]:
        """Those that came since the last call."""
        taken, self._waiting = self._waiting, []
        return taken

    def pause(self, seconds: float) -> None:
        """Wait, but not once a stop was asked for."""
        self._came.wait(seconds)


class Progress:
    """How far a run is, by its checkpoints and its event log.

    Args:
        run: Its directory.
    """

    def __init__(self, run: Location) -> None:
        self._run = run
        self._attempt = 0
        self._furthest = 0

    def __call__(self) -> int:
        """Steps that the run has ever taken, as far as they are in storage."""
        try:
            self._look()
        except StorageError as error:
            logger.warning("cannot see how far the run is: %s", error)
        return self._furthest

    def _look(self) -> None:
        for place in committed(self._run)[:1]:
            if (key := parse_name(place.name)) is not None:
                self._furthest = max(self._furthest, key[0])
        logs = find_logs(self._run / "events")
        newest = logs[-1][0] if logs else 0
        for attempt, _, place in logs:
            if attempt < (self._attempt or newest):
                continue
            steps = [
                event.fields["step"] + 1
                for event in decode_events(read_bytes(place))
                if event.kind in {EventKind.step, EventKind.used}
            ]
            self._furthest = max([self._furthest, *steps])
        self._attempt = newest


class Supervisor:
    """Keeps one run going.

    Args:
        drivers: Starts its drivers.
        progress: Tells how far it is.
        spec: How long to keep at it.
        say: Shows one line to the person.
        signals: What the person asks for meanwhile.
        chance: A number from 0 to 1, another one each time.
    """

    def __init__(
        self,
        drivers: Drivers,
        progress: Callable[[], int],
        spec: SuperviseSpec,
        say: Callable[[str], None],
        *,
        signals: Signals,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._drivers = drivers
        self._progress = progress
        self._spec = spec
        self._say = say
        self._signals = signals
        self._chance = chance

    def run(self) -> int:
        """Start drivers until one ends for good.

        Returns:
            The exit code to end with: that of the last driver.

        Raises:
            SpecError: Somebody else drives the run, and does not stop.
        """
        self._wait_until_free()
        began = furthest = self._progress()
        number = in_vain = 0
        while not self._signals.stopping:
            number += 1
            ending = self._live(number)
            reached = self._progress()
            told = f"driver {number} {ending.told} at step {reached}"
            if self._is_final(ending, trained=reached > began):
                self._say(told)
                return _exit_code(ending)
            in_vain = 0 if reached > furthest else in_vain + 1
            furthest = max(furthest, reached)
            if in_vain >= self._spec.tries:
                self._say(f"{told}, the last of {in_vain} in a row that came no further")
                return _exit_code(ending)
            pause_s = self._pause_s(in_vain)
            self._say(f"{told}; the next one starts in {pause_s:.1f} s")
            self._signals.pause(pause_s)
        self._say(f"stopped for {signal.Signals(self._signals.stopping).name} between two drivers")
        return SIGNALLED + self._signals.stopping

    def _live(self, number: int) -> Ending:
        life = self._drivers.start()
        self._say(f"driver {number} is {life.name}")
        while (ending := life.ended()) is None:
            for sent in self._signals.take():
                life.send(sent)
        return ending

    def _is_final(self, ending: Ending, *, trained: bool) -> bool:
        """Whether another driver would do no better, or is not wanted.

        What is refused at first is refused again; but storage may fail for a while later on.
        """
        final = {DONE, HOPELESS, OUT_OF_BUDGET, *STOPPED, *([] if trained else [REFUSED])}
        return ending.code in final or bool(self._signals.stopping)

    def _pause_s(self, in_vain: int) -> float:
        """Doubles with each try in vain; drawn, so that several runs do not come back as one."""
        longest_s = min(self._spec.most_pause_s, self._spec.first_pause_s * 2.0**in_vain)
        return longest_s * (1.0 + self._chance()) / 2

    def _wait_until_free(self) -> None:
        """Let a driver end that a supervisor before this one has left behind."""
        waited_s = 0.0
        while (other := self._drivers.busy()) is not None and not self._signals.stopping:
            if not waited_s:
                self._say(f"{other} drives this run; waiting for it to stop")
            if waited_s >= FREE_S:
                raise SpecError(
                    "name",
                    f"this run is still being trained, by {other}",
                    "stop that one first (kill -TERM; it saves a checkpoint), or use another name=",
                )
            self._signals.pause(LOOK_S)
            waited_s += LOOK_S


def _show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _exit_code(ending: Ending) -> int:
    """As a shell would tell it."""
    if ending.code is None:
        return 1
    return ending.code if ending.code >= 0 else SIGNALLED - ending.code
