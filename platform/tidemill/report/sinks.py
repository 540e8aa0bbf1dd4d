"""Where the lines of an event log go: the end of a local file, or numbered objects in a bucket.

Neither ever rewrites what is there. Whoever reads a log needs nothing but the names given here.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from tidemill.storage import Location, children, publish

LOCAL_FLUSH_S = 0.2
SEGMENT_S = 10.0

_LOG_NAME = re.compile(r"attempt-(\d{4,})(?:\.(\d{6,}))?\.jsonl")


class LocalFile:
    """Appends whole lines to one file, which several processes may share."""

    pause_s = LOCAL_FLUSH_S

    def __init__(self, events: Location, attempt: int) -> None:
        self._path = file_of(events, attempt)
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


class Segments:
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
            segment = segment_of(self._events, self._attempt, self._number)
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
        found = find_logs(self._events)
        return 1 + max((s for a, s, _ in found if a == self._attempt), default=-1)


def find_logs(events: Location) -> list[tuple[int, int, Location]]:
    """(attempt, segment, place) of every log, in order; segment is -1 for a local file."""
    found: list[tuple[int, int, Location]] = []
    for entry in children(events):
        match = _LOG_NAME.fullmatch(entry.location.name)
        if match and not entry.is_directory:
            found.append((int(match[1]), int(match[2] or -1), entry.location))
    return sorted(found, key=lambda log: log[:2])


def file_of(events: Location, attempt: int) -> Path:
    """The log of an attempt on a local disk."""
    return Path(events.path) / f"attempt-{attempt:04}.jsonl"


def segment_of(events: Location, attempt: int, number: int) -> Location:
    """A segment of the log of an attempt in a bucket."""
    return events / f"attempt-{attempt:04}.{number:06}.jsonl"


def _ends_torn(path: Path) -> bool:
    """Whether a killed process left half a line at the end of the file."""
    if not path.exists() or path.stat().st_size == 0:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"
