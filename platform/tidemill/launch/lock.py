"""The lock of a run: two drivers at once would take turns to undo each other's work.

On a disk the kernel keeps it, and forgets it with the process, however that ends. A bucket has no
locks, so there a driver writes a sign of life; whoever finds one watches whether it changes, which
needs no clock in common.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from tidemill.errors import SpecError, StorageError
from tidemill.storage import Location, exists, make_directory, publish, read_bytes, remove

BEAT_S = 10.0
"""Seconds between a driver's signs of life in a bucket."""
SILENCE_S = 35.0
"""Seconds without one after which its driver is gone."""
LOOK_S = 1.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Driver:
    """A process that drives a run.

    Attributes:
        host: Its machine.
        space: Where its process id means something: a container's is not its machine's.
        pid: Its process id, and
        born: when it began, in ticks since its machine did, because ids are used again.
    """

    host: str
    space: str
    pid: int
    born: int

    def __str__(self) -> str:
        """For people."""
        return f"process {self.pid} on {self.host}"

    @property
    def is_dead(self) -> bool:
        """Whether that can be told from here, and it is."""
        me = this_driver()
        return (self.host, self.space) == (me.host, me.space) and _born(self.pid) != self.born


def this_driver() -> Driver:
    """This process."""
    with contextlib.suppress(OSError):
        space = str(Path("/proc/self/ns/pid").readlink())
        return Driver(
            host=socket.gethostname(), space=space, pid=os.getpid(), born=_born(os.getpid())
        )
    return Driver(host=socket.gethostname(), space="", pid=os.getpid(), born=0)


@contextlib.contextmanager
def sole_driver(run: Location) -> Iterator[None]:
    """Be the only driver of a run.

    Raises:
        SpecError: Another one is at work.
        StorageError: The storage cannot be read or written.
    """
    make_directory(run)
    with _locked(run) if run.is_local else _signing(run) as other:
        if other is not None:
            raise SpecError(
                "name",
                f"{run} is being trained already, by {other}",
                "stop that one first (kill -TERM; it saves a checkpoint), or use another name=",
            )
        yield


def find_driver(run: Location) -> str | None:
    """Who drives a run now, if anybody does; takes a while to tell in a bucket.

    Raises:
        StorageError: The storage cannot be read.
    """
    if not run.is_local:
        return _find_signing(run)
    if not exists(_lock_of(run)):
        return None
    with _locked(run) as other:
        return other


# --- on a disk -----------------------------------------------------------------------------------


def _lock_of(run: Location) -> Location:
    return run / "driver.lock"


@contextlib.contextmanager
def _locked(run: Location) -> Iterator[str | None]:
    """Hold the lock, or tell who does."""
    path = Path(_lock_of(run).path)
    with contextlib.ExitStack() as stack:
        while True:
            try:
                file = stack.enter_context(path.open("a+"))
            except OSError as error:
                raise StorageError(f"cannot write {path}: {error}") from error
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.seek(0)
                yield file.read().strip() or "another process"
                return
            if _is_still_at(path, file):
                break
        file.truncate(0)
        file.write(f"{this_driver()}\n")
        file.flush()
        try:
            yield None
        finally:
            path.unlink(missing_ok=True)


def _is_still_at(path: Path, file: IO[str]) -> bool:
    """Whether the file was not removed by who held it before."""
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_ino == os.fstat(file.fileno()).st_ino
    return False


def _born(pid: int) -> int:
    """When a process of this machine began; -1 if there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return -1
    return int(stat.rpartition(")")[2].split()[19])


# --- in a bucket ---------------------------------------------------------------------------------


def _sign_of(run: Location) -> Location:
    return run / "driver.json"


@contextlib.contextmanager
def _signing(run: Location) -> Iterator[str | None]:
    """Give signs of life, or tell who does."""
    other = _find_signing(run)
    if other is not None:
        yield other
        return
    signs = _Signs(run)
    try:
        yield None
    finally:
        signs.close()


def _find_signing(run: Location) -> str | None:
    first = _read_sign(run)
    if first is None or first[0].is_dead:
        return None
    logger.warning("waiting to see whether %s still drives %s", first[0], run)
    until_s = time.monotonic() + SILENCE_S
    while time.monotonic() < until_s:
        time.sleep(LOOK_S)
        now = _read_sign(run)
        if now is None:
            return None
        if now != first:
            return str(now[0])
    return None


def _read_sign(run: Location) -> tuple[Driver, int] | None:
    """The newest sign of life: whose, and its number."""
    sign = _sign_of(run)
    if not exists(sign):
        return None
    held = json.loads(read_bytes(sign))
    return Driver(**held["driver"]), held["number"]


class _Signs:
    """Gives signs of life in a thread, until another driver does."""

    def __init__(self, run: Location) -> None:
        self._run = run
        self._me = this_driver()
        self._number = 0
        self._closing = threading.Event()
        self._give()
        self._thread = threading.Thread(target=self._keep_giving, name="driver-lock", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Give no more."""
        self._closing.set()
        self._thread.join()
        try:
            if self._is_mine():
                remove(_sign_of(self._run))
        except StorageError as error:
            logger.warning("the next driver will wait to see that this one is gone: %s", error)

    def _keep_giving(self) -> None:
        while not self._closing.wait(BEAT_S):
            try:
                if not self._is_mine():
                    logger.error("another driver has taken over %s; this one stops", self._run)
                    os.kill(os.getpid(), signal.SIGTERM)
                    return
                self._give()
            except StorageError as error:
                logger.warning("cannot tell other drivers of this one: %s", error)

    def _is_mine(self) -> bool:
        held = _read_sign(self._run)
        return held is None or held[0] == self._me

    def _give(self) -> None:
        self._number += 1
        held = {"driver": asdict(self._me), "number": self._number}
        publish(_sign_of(self._run), json.dumps(held).encode())
