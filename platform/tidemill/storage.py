"""URI to filesystem, and the handful of verbs the rest of Tidemill needs of one.

Nothing is ever visible half-written: `publish` writes beside its target and moves it into place on
a local disk, and relies on the atomic put of an object store elsewhere.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa
from pyarrow import fs as pafs

from tidemill.errors import StorageError

SCHEMES = ("file", "s3", "gs")


@dataclass(frozen=True, slots=True)
class Location:
    """A place in a filesystem. Build with `locate`, descend with `/`.

    Attributes:
        uri: What to pass to `locate` in another process to get the same place.
        filesystem: The pyarrow filesystem; holds credentials, so never pickle or print it.
        path: The path within it.
    """

    uri: str
    filesystem: pafs.FileSystem
    path: str

    def __truediv__(self, name: str) -> Location:
        """The place called `name` below this one; `name` may contain slashes."""
        return Location(
            self.uri.rstrip("/") + "/" + name, self.filesystem, posixpath.join(self.path, name)
        )

    def __str__(self) -> str:
        """The URI, for people."""
        return self.uri

    def __repr__(self) -> str:
        """The URI alone: a filesystem may hold credentials."""
        return f"Location({self.uri!r})"

    @property
    def is_local(self) -> bool:
        """Whether this is a local path, which has rename and no atomic put."""
        return isinstance(self.filesystem, pafs.LocalFileSystem)

    @property
    def name(self) -> str:
        """The last part of the path."""
        return posixpath.basename(self.path)


@dataclass(frozen=True, slots=True)
class Entry:
    """One child of a directory: its place, its size in bytes (0 for a directory)."""

    location: Location
    size: int
    is_directory: bool
    modified_ns: int


def locate(uri: str) -> Location:
    """Resolve a URI or a local path (relative ones against the working directory).

    Raises:
        StorageError: The scheme is unknown or its filesystem cannot be set up.
    """
    scheme, separator, _ = uri.partition("://")
    if not separator:
        path = str(Path(uri).expanduser().absolute())
        return Location(path, pafs.LocalFileSystem(), path)
    if scheme not in SCHEMES:
        raise StorageError(f"{uri}: unknown scheme {scheme}://; use a path, s3:// or gs://")
    try:
        filesystem, path = pafs.FileSystem.from_uri(uri)
    except (OSError, ValueError) as error:
        raise StorageError(f"{uri}: {_reason(error)}; check the URI and credentials") from error
    if isinstance(filesystem, pafs.LocalFileSystem):
        return Location(path, filesystem, path)
    return Location(uri.rstrip("/"), filesystem, path)


@contextlib.contextmanager
def explained(location: Location, verb: str) -> Iterator[None]:
    """Turn the operating system's or the bucket's error into one that names place and verb."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise StorageError(f"cannot {verb} {location}: {_reason(error)}") from error


def exists(location: Location) -> bool:
    """Whether a file or a directory is there."""
    with explained(location, "look at"):
        info = cast("pafs.FileInfo", location.filesystem.get_file_info(location.path))
        return info.type is not pafs.FileType.NotFound


def children(location: Location) -> list[Entry]:
    """What is directly below a directory, by name; empty if there is no such directory."""
    with explained(location, "list"):
        selector = pafs.FileSelector(location.path, allow_not_found=True)
        infos = cast("list[pafs.FileInfo]", location.filesystem.get_file_info(selector))
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
    with explained(location, "read"), location.filesystem.open_input_file(location.path) as file:
        return cast("bytes", file.read())


def open_input(location: Location) -> Any:
    """A random-access reader (`read_at`, `size`), to be used as a context manager."""
    with explained(location, "read"):
        return location.filesystem.open_input_file(location.path)


def open_output(location: Location) -> IO[bytes]:
    """A sequential writer, to be used as a context manager; parents are made."""
    with explained(location, "write"):
        _make_parent(location)
        return cast("IO[bytes]", location.filesystem.open_output_stream(location.path))


def publish(location: Location, content: bytes) -> None:
    """Write a file so that a reader sees all of it or none, also after a crash."""
    if not location.is_local:
        with explained(location, "write"), open_output(location) as file:
            file.write(content)
        return
    target = Path(location.path)
    hidden = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    with explained(location, "write"):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with hidden.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            hidden.replace(target)
        finally:
            hidden.unlink(missing_ok=True)


def make_directory(location: Location) -> None:
    """Make a directory and its parents; an object store has no directories to make."""
    if location.is_local:
        with explained(location, "create"):
            location.filesystem.create_dir(location.path, recursive=True)


def remove(location: Location) -> None:
    """Remove a file or a whole directory; what is not there is removed already."""
    with explained(location, "remove"):
        info = cast("pafs.FileInfo", location.filesystem.get_file_info(location.path))
        if info.type is pafs.FileType.Directory:
            location.filesystem.delete_dir(location.path)
        elif info.type is pafs.FileType.File:
            location.filesystem.delete_file(location.path)


def check_writable(location: Location) -> None:
    """Raise `StorageError` unless files can be made below `location`; leaves nothing behind."""
    probe = location / f".probe-{uuid.uuid4().hex[:8]}"
    existed = exists(location)
    publish(probe, b"")
    remove(probe)
    if not existed and location.is_local:
        with contextlib.suppress(OSError):
            Path(location.path).rmdir()


def _make_parent(location: Location) -> None:
    if location.is_local:
        Path(location.path).parent.mkdir(parents=True, exist_ok=True)


def _reason(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
