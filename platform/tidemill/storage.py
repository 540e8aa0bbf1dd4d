"""URI to filesystem, and the handful of verbs the rest of Tidemill needs of one.

Nothing is ever visible half-written: `publish` writes beside its target and moves it into place on
a local disk, and relies on the atomic put of an object store elsewhere.
"""

from __future__ import annotations

import contextlib
import errno
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
PATIENCE_S = 60
"""Seconds that Google's client keeps trying; its own default is 15 minutes."""

_CAUSES = {
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EROFS: "the filesystem is read-only",
    errno.ENOSPC: "no space is left on the disk",
    errno.EDQUOT: "the disk quota is used up",
    errno.ENOENT: "there is no such file",
    errno.ENOTDIR: "a file is in the way of a directory",
    errno.EEXIST: "a file is in the way of a directory",
    errno.EISDIR: "a directory is in the way of a file",
}
_BUCKET_CAUSES = {
    ("NO_SUCH_BUCKET",): "there is no such bucket",
    ("ACCESS_DENIED", "PERMISSION_DENIED"): "access denied; check the bucket's policy",
    ("ACCESS_KEY_ID", "SIGNATURE_DOES_NOT", "UNAUTHENTICATED"): "the credentials are refused",
    ("NETWORK_CONNECTION", "UNAVAILABLE"): "no connection; check the network and the endpoint",
}


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
        place, mark, options = self._parts()
        uri = f"{place.rstrip('/')}/{name}{mark}{options}"
        return Location(uri, self.filesystem, posixpath.join(self.path, name))

    def __str__(self) -> str:
        """The URI without its options, for people."""
        return self._parts()[0]

    def __repr__(self) -> str:
        """The URI alone: a filesystem may hold credentials."""
        return f"Location({str(self)!r})"

    @property
    def is_local(self) -> bool:
        """Whether this is a local path, which has rename and no atomic put."""
        return isinstance(self.filesystem, pafs.LocalFileSystem)

    @property
    def name(self) -> str:
        """The last part of the path."""
        return posixpath.basename(self.path)

    @property
    def parent(self) -> Location:
        """The place that contains this one; the root contains itself."""
        place, mark, options = self._parts()
        return Location(
            posixpath.dirname(place) + mark + options, self.filesystem, posixpath.dirname(self.path)
        )

    def _parts(self) -> tuple[str, str, str]:
        """The URI before its options, and they with their mark; a local path has none."""
        return (self.uri, "", "") if self.is_local else self.uri.partition("?")


@dataclass(frozen=True, slots=True)
class Entry:
    """One child of a directory: its place, its size in bytes (0 for a directory)."""

    location: Location
    size: int
    is_directory: bool
    modified_ns: int


def locate(uri: str) -> Location:
    """Resolve a URI or a local path (relative ones against the working directory).

    Credentials come from the environment (`AWS_ACCESS_KEY_ID`, an instance's role,
    `GOOGLE_APPLICATION_CREDENTIALS`, ...), an S3-compatible service from `AWS_ENDPOINT_URL` or from
    the URI, e.g. `s3://bucket/runs?endpoint_override=127.0.0.1:9000&scheme=http`.

    Raises:
        StorageError: The scheme is unknown, the URI holds a secret, or there is no such service.
    """
    scheme, separator, rest = uri.partition("://")
    if not separator:
        path = str(Path(uri).expanduser().absolute())
        return Location(path, pafs.LocalFileSystem(), path)
    if scheme not in SCHEMES:
        raise StorageError(f"{uri}: unknown scheme {scheme}://; use a path, s3:// or gs://")
    authority, (_, _, options) = rest.partition("/")[0], uri.partition("?")
    if (":" in authority and "@" in authority) or "secret" in options:
        raise StorageError(
            f"{scheme}://...: a URI is shown and stored, so it must not hold credentials; set them "
            "in the environment"
        )
    if scheme == "gs" and "retry_limit_seconds" not in options:
        uri = f"{uri}{'&' if options else '?'}retry_limit_seconds={PATIENCE_S}"
    try:
        filesystem, path = pafs.FileSystem.from_uri(uri)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise StorageError(f"{uri.partition('?')[0]}: {_reason(error)}; check the URI") from error
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


@contextlib.contextmanager
def open_input(location: Location) -> Iterator[Any]:
    """A random-access reader (`seek`, `read`, `readinto`, `read_at`, `size`) for a `with` block."""
    with explained(location, "read"), location.filesystem.open_input_file(location.path) as file:
        yield file


@contextlib.contextmanager
def open_output(location: Location) -> Iterator[IO[bytes]]:
    """A sequential writer for a `with` block; parents are made.

    On a local disk the file grows in place and needs `sync` to survive a crash of the machine; on
    an object store it appears whole when the block ends.
    """
    with explained(location, "write"):
        if location.is_local:
            _make_durable(Path(location.path).parent)
        with location.filesystem.open_output_stream(location.path) as file:
            yield cast("IO[bytes]", file)


def sync(location: Location) -> None:
    """Make a local file or directory survive a crash of the machine; a put already does."""
    if location.is_local:
        with explained(location, "write"):
            _sync(Path(location.path))


def publish(location: Location, content: bytes) -> None:
    """Write a file so that a reader sees all of it or none, also after a crash."""
    with explained(location, "write"):
        _publish(location, content)


def make_directory(location: Location) -> None:
    """Make a directory and its parents; an object store has no directories to make."""
    if location.is_local:
        with explained(location, "create"):
            _make_durable(Path(location.path))


def remove(location: Location) -> None:
    """Remove a file or a whole directory; what is not there is removed already."""
    with explained(location, "remove"):
        _remove(location)


def check_writable(location: Location) -> None:
    """Make and remove a file below `location`, leaving nothing, not even parents it had to make.

    Raises:
        StorageError: It cannot be done; says why in one line.
    """
    made, place = [], location
    while place.path != place.parent.path and place.parent.path and not exists(place):
        made.append(place)
        place = place.parent
    probe = location / f".probe-{uuid.uuid4().hex[:8]}"
    try:
        with explained(location, "write below"):
            _publish(probe, b"tidemill")
            _remove(probe)
    finally:
        # pyarrow leaves an empty object in place of a directory whose last object it removed.
        for place in made:
            with contextlib.suppress(OSError, pa.ArrowException, StorageError):
                if not children(place):
                    _remove(place)


def _publish(location: Location, content: bytes) -> None:
    if not location.is_local:
        with location.filesystem.open_output_stream(location.path) as file:
            file.write(content)
        return
    target = Path(location.path)
    hidden = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    _make_durable(target.parent)
    try:
        with hidden.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        hidden.replace(target)
    finally:
        hidden.unlink(missing_ok=True)
    _sync(target.parent)


def _remove(location: Location) -> None:
    filesystem, path = location.filesystem, location.path
    info = cast("pafs.FileInfo", filesystem.get_file_info(path))
    with contextlib.suppress(FileNotFoundError):
        if info.type is not pafs.FileType.NotFound:
            (filesystem.delete_file if info.is_file else filesystem.delete_dir)(path)


def _make_durable(directory: Path) -> None:
    """Make a directory and its parents, each entry on the disk itself."""
    missing = [place for place in (directory, *directory.parents) if not place.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    for place in missing:
        _sync(place.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reason(error: BaseException) -> str:
    """One line for people; a known cause in plain words, anything else in its own."""
    number = getattr(error, "errno", None)
    if number in _CAUSES:
        return _CAUSES[number]
    text = " ".join(str(error).split()) or type(error).__name__
    known = (cause for marks, cause in _BUCKET_CAUSES.items() if any(m in text for m in marks))
    return next(known, text)
