"""What is done with a place: look, list, read, publish, remove.

All verbs but those that only a disk knows may be repeated, and are where a fault may pass.
"""

from __future__ import annotations

import contextlib
import os
import re
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import pyarrow as pa
from pyarrow import fs as pafs

from tidemill.errors import StorageError
from tidemill.storage.faults import explained, patiently
from tidemill.storage.location import Location
from tidemill.storage.streams import make_durable, open_file, put, sync_path

PROBE = ".probe"
_HIDDEN = re.compile(r"\..+\.[0-9a-f]{8}")


@dataclass(frozen=True, slots=True)
class Entry:
    """One child of a directory: its place, its size in bytes (0 for a directory)."""

    location: Location
    size: int
    is_directory: bool
    modified_ns: int


def exists(location: Location) -> bool:
    """Whether a file or a directory is there."""
    with explained(location, "look at"):
        return patiently(lambda: _is_there(location))


def children(location: Location) -> list[Entry]:
    """What is directly below a directory, by name; empty if there is no such directory.

    Raises:
        StorageError: It cannot be listed, or there is not even such a bucket.
    """
    with explained(location, "list"):
        infos = patiently(lambda: _list(location))
    entries = [
        Entry(
            location / info.base_name,
            info.size or 0,
            info.type is pafs.FileType.Directory,
            info.mtime_ns or 0,
        )
        for info in infos
    ]
    return sorted(entries, key=lambda entry: entry.location.name)


def read_bytes(location: Location) -> bytes:
    """The whole content of a file."""
    with explained(location, "read"):
        return patiently(lambda: _read(location))


def sync(location: Location) -> None:
    """Make a local file or directory survive a crash of the machine; a put already does."""
    if location.is_local:
        with explained(location, "write"):
            sync_path(Path(location.path))


def publish(location: Location, content: bytes) -> None:
    """Write a file so that a reader sees all of it or none, also after a crash."""
    with explained(location, "write"):
        if location.is_local:
            _publish(Path(location.path), content)
        else:
            patiently(lambda: put(location, content))


def make_directory(location: Location) -> None:
    """Make a directory and its parents; an object store has no directories to make."""
    if location.is_local:
        with explained(location, "create"):
            make_durable(Path(location.path))


def remove(location: Location) -> None:
    """Remove a file or a whole directory; what is not there is removed already."""
    with explained(location, "remove"):
        patiently(lambda: _remove(location))


def sweep_hidden(directory: Location) -> list[str]:
    """Remove what a kill amid `publish` left directly below a directory, for its only writer.

    Returns:
        The names that were removed; a bucket has none.
    """
    if not directory.is_local:
        return []
    stale = [
        entry.location
        for entry in children(directory)
        if not entry.is_directory and _HIDDEN.fullmatch(entry.location.name)
    ]
    for location in stale:
        remove(location)
    return [location.name for location in stale]


def check_writable(location: Location) -> None:
    """Make and remove a file below `location`, leaving nothing, not even parents it had to make.

    Its name is always the same, so the next check removes what a kill amid this one has left, and
    several at once do not disturb each other.

    Raises:
        StorageError: It cannot be done; says why in one line.
    """
    made, place = [], location
    try:
        with explained(location, "write below"):
            while place.path != place.parent.path and place.parent.path and not _is_there(place):
                made.append(place)
                place = place.parent
            _probe(location / PROBE)
    finally:
        # pyarrow leaves an empty object in place of a directory whose last object it removed.
        for place in made:
            with contextlib.suppress(OSError, pa.ArrowException, StorageError):
                if place.is_local:
                    Path(place.path).rmdir()  # not where another start has come to write
                elif not children(place):
                    _remove(place)


def _probe(probe: Location) -> None:
    if not probe.is_local:
        put(probe, b"tidemill")
        _remove(probe)
        return
    path = Path(probe.path)
    for left in reversed(range(8)):
        try:
            make_durable(path.parent)
            with path.open("wb") as file:
                _fill(file, b"tidemill")
            break
        except (FileNotFoundError, FileExistsError):  # another check has removed what it had made
            if not left:
                raise
        finally:
            path.unlink(missing_ok=True)


def _look(location: Location) -> pafs.FileInfo:
    return cast("pafs.FileInfo", location.filesystem.get_file_info(location.path))


def _is_there(location: Location) -> bool:
    return _look(location).type is not pafs.FileType.NotFound


def _list(location: Location) -> list[pafs.FileInfo]:
    # `allow_not_found` would not tell a missing bucket from a missing directory.
    with contextlib.suppress(FileNotFoundError):
        selector = pafs.FileSelector(location.path)
        return cast("list[pafs.FileInfo]", location.filesystem.get_file_info(selector))
    return []


def _read(location: Location) -> bytes:
    with open_file(location) as file:
        return cast("bytes", file.read())


def _publish(target: Path, content: bytes) -> None:
    hidden = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    make_durable(target.parent)
    try:
        with hidden.open("wb") as file:
            _fill(file, content)
        hidden.replace(target)
    finally:
        hidden.unlink(missing_ok=True)
    sync_path(target.parent)


def _fill(file: IO[bytes], content: bytes) -> None:
    file.write(content)
    file.flush()
    os.fsync(file.fileno())


def _remove(location: Location) -> None:
    filesystem, info = location.filesystem, _look(location)
    with contextlib.suppress(FileNotFoundError):
        if info.type is not pafs.FileType.NotFound:
            (filesystem.delete_file if info.is_file else filesystem.delete_dir)(location.path)
