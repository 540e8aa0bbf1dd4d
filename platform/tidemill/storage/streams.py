"""Streams to and from a place: read again what failed, and never complete what broke.

pyarrow has no way to let go of a stream that is being written: to close it, to leave its `with`
block after an error, and to drop the last reference all complete the object with what has come so
far. So what is uploaded goes through `_Upload`, which hands pyarrow whole parts only, and forgets
an upload that broke without ever closing it. The store keeps the parts of such an upload, as it
does those of a machine that died: have the bucket's lifecycle rules abort incomplete uploads.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

from pyarrow import fs as pafs

from tidemill.errors import StorageError
from tidemill.storage.faults import explained, patiently
from tidemill.storage.location import Location

PART = 10 * 2**20
"""Bytes of one part of an upload, which pyarrow fixes; smaller objects are put in one request."""
MOST_PARTS = 10_000
"""Of one object, says S3; so none is larger than 97 GiB."""
PARTS_UNDERWAY = 16
"""Parts that may wait to be sent, each a copy in memory; pyarrow itself knows no bound."""


@contextlib.contextmanager
def open_input(location: Location) -> Iterator[Any]:
    """A random-access reader (`seek`, `tell`, `read`, `readinto`, `size`) for a `with` block.

    On a bucket, a read that failed is repeated from where it began.
    """
    with explained(location, "read"), patiently(lambda: open_file(location)) as file:
        yield file if location.is_local else _Reader(file)


def open_file(location: Location) -> Any:
    """The bare reader of a file; an error where the file or its bucket is not there."""
    try:
        return location.filesystem.open_input_file(location.path)
    except FileNotFoundError:
        if not location.is_local:  # a list tells a bucket that is gone from an object that is not
            location.filesystem.get_file_info(pafs.FileSelector(location.path))
        raise


@contextlib.contextmanager
def open_output(location: Location) -> Iterator[IO[bytes]]:
    """A sequential writer for a `with` block; parents are made.

    If the block raises, nothing of that name is left. On a local disk the file grows in place and
    needs `sync` to survive a crash of the machine; on a bucket it appears whole when the block
    ends, sent in parts of `PART` bytes where it is larger than one.
    """
    output = _local_output if location.is_local else _upload
    with explained(location, "write"), output(location) as file:
        yield file


@contextlib.contextmanager
def _local_output(location: Location) -> Iterator[IO[bytes]]:
    path = Path(location.path)
    make_durable(path.parent)
    file = location.filesystem.open_output_stream(location.path)
    try:
        with file:
            yield cast("IO[bytes]", file)
    except BaseException:
        if path.is_file():  # a device is not ours to remove
            path.unlink()
        raise


@contextlib.contextmanager
def _upload(location: Location) -> Iterator[IO[bytes]]:
    upload = _Upload(location)
    try:
        yield cast("IO[bytes]", upload)
        upload.complete()
    except BaseException:
        upload.forget()
        raise


def put(location: Location, content: bytes) -> None:
    """Write an object of a bucket at once; may be repeated."""
    with _upload(location) as file:
        file.write(content)


class _Upload(io.RawIOBase):
    """Writes an object of a bucket; there is none before `complete`."""

    def __init__(self, location: Location) -> None:
        self._location = location
        self._file: Any = None
        self._tail = bytearray()
        self._parts = 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._parts * PART + len(self._tail)

    def write(self, content: Any, /) -> int:
        view = memoryview(content).cast("B")
        size = len(view)
        if self._tail:
            rest = PART - len(self._tail)
            self._tail += view[:rest]
            view = view[rest:]
            if len(self._tail) < PART:
                return size
            self._send(self._tail)
            self._tail = bytearray()
        whole = len(view) // PART * PART
        for start in range(0, whole, PART):
            self._send(view[start : start + PART])
        self._tail += view[whole:]
        return size

    def complete(self) -> None:
        file = self._open()
        if self._tail:
            file.write(self._tail)
        file.close()

    def forget(self) -> None:
        """Let go of the upload without completing it: it must never be closed nor collected."""
        if self._file is not None and not self._file.closed:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._file))

    def _open(self) -> Any:
        if self._file is None:
            self._file = self._location.filesystem.open_output_stream(self._location.path)
        return self._file

    def _send(self, part: Any) -> None:
        if self._parts == MOST_PARTS:
            raise StorageError(
                f"cannot write {self._location}: an object of a bucket holds at most "
                f"{MOST_PARTS * PART / 2**30:.0f} GiB; spread it over more ranks or files"
            )
        self._open().write(part)
        self._parts += 1
        if self._parts % PARTS_UNDERWAY == 0:
            self._file.flush()


class _Reader:
    """Reads an object of a bucket; a read that failed has not moved the position."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def size(self) -> int:
        return self._file.size()

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def read(self, size: int | None = None) -> bytes:
        return patiently(lambda: self._file.read(size))

    def readinto(self, buffer: Any) -> int:
        return patiently(lambda: self._file.readinto(buffer))

    def read_at(self, size: int, offset: int) -> bytes:
        return patiently(lambda: self._file.read_at(size, offset))


def make_durable(directory: Path) -> None:
    """Make a local directory and its parents, each entry on the disk itself."""
    missing = [place for place in (directory, *directory.parents) if not place.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    for place in missing:
        sync_path(place.parent)


def sync_path(path: Path) -> None:
    """Make what a local path names survive a crash of the machine."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
