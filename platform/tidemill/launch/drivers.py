"""Where drivers run, and how they end; here as processes of this machine.

A process that loses its supervisor saves and stops, because nobody would look after it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tidemill.launch.lock import find_driver
from tidemill.launch.stop import SIGNALLED
from tidemill.storage import Location

SET_PARENT_DEATH_SIGNAL = 1
"""PR_SET_PDEATHSIG. Source: linux/prctl.h."""
LOOK_S = 0.2
TIDY_S = 10.0
"""Seconds that what a dead driver left may take to go."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How a driver ended.

    Attributes:
        code: Its exit code, negative for a signal; None if nobody knows.
        told: What to say of it: "was ended by SIGKILL".
    """

    code: int | None
    told: str


class Life(Protocol):
    """A driver at work."""

    @property
    def name(self) -> str:
        """What to call it."""
        ...

    def ended(self) -> Ending | None:
        """How it ended, if it does within a moment."""
        ...

    def send(self, number: int) -> None:
        """Pass a signal on to it."""
        ...


class Drivers(Protocol):
    """Starts drivers."""

    def busy(self) -> str | None:
        """Who drives the run already, if that is somebody who cannot be taken over."""
        ...

    def start(self) -> Life:
        """Start one, or take over one that is at work."""
        ...


class LocalDrivers:
    """Drivers as processes of this machine.

    Args:
        command: What starts one.
        run: Directory of the run.
    """

    def __init__(self, command: Sequence[str], run: Location) -> None:
        self._command = list(command)
        self._run = run
        self._libc = ctypes.CDLL(None) if sys.platform == "linux" else None

    def busy(self) -> str | None:
        """See `Drivers.busy`."""
        return find_driver(self._run)

    def start(self) -> Life:
        """See `Drivers.start`."""
        # A session of its own: a terminal's Ctrl-C reaches it once, through its supervisor, and
        # whatever it starts can be told from everything else.
        process = subprocess.Popen(  # noqa: S603 - this program's own door
            self._command,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=self._follow_parent(os.getpid()) if self._libc else None,  # noqa: PLW1509
        )
        return ProcessLife(process)

    def _follow_parent(self, parent: int) -> Callable[[], None]:
        """What a driver does before it begins: ask to be stopped when its supervisor dies."""

        def follow() -> None:
            self._libc.prctl(SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)  # pyright: ignore[reportOptionalMemberAccess]
            if os.getppid() != parent:
                os._exit(SIGNALLED + signal.SIGTERM)

        return follow


class ProcessLife:
    """A driver that is a process, the first of its session."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self.name = f"process {process.pid}"

    def ended(self) -> Ending | None:
        """See `Life.ended`."""
        try:
            code = self._process.wait(LOOK_S)
        except subprocess.TimeoutExpired:
            return None
        _end_session(self._process.pid)
        return Ending(code, describe(code))

    def send(self, number: int) -> None:
        """See `Life.send`."""
        self._process.send_signal(number)


def describe(code: int) -> str:
    """What an exit code says."""
    match code:
        case 0:
            return "finished"
        case _ if code < 0:
            return f"was ended by {signal.Signals(-code).name}"
        case _ if code - SIGNALLED in set(signal.Signals):
            return f"stopped for {signal.Signals(code - SIGNALLED).name}"
        case _:
            return f"failed with exit code {code}"


def _end_session(leader: int) -> None:
    """Kill what a driver has left: its Ray would compete with that of the next one."""
    until_s = time.monotonic() + TIDY_S
    while (left := _in_session(leader)) and time.monotonic() < until_s:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def _in_session(leader: int) -> list[int]:
    """Processes of a session that are still alive."""
    found: list[int] = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, session = stat.read_text().rpartition(")")[2].split()[:4]
            if int(session) == leader and state not in "ZX":
                found.append(int(stat.parent.name))
    return found
