"""Files that `data.paths` names: paths, directories and globs, on any filesystem pyarrow reads.

Patterns are matched here, segment by segment against one recursive listing, because object stores
have no globs and the standard library's know only the local disk.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import pyarrow as pa
from pyarrow import fs as pafs

from tidemill.errors import DataError
from tidemill.storage import Location, explained, locate, patiently

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PATTERN = frozenset("*?[")


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file of a corpus.

    Attributes:
        location: Where it is.
        size: Its size in bytes.
        modified_ns: When it was last written, in ns since 1970; 0 where the store does not tell.
    """

    location: Location
    size: int
    modified_ns: int


class Document(Protocol):
    """One document, read piece by piece so that none has to fit in memory."""

    @property
    def hash(self) -> bytes:
        """sha256 of its content."""
        ...

    @property
    def tokens(self) -> int:
        """Number of its tokens, at least 1."""
        ...

    def pieces(self) -> Iterator[NDArray[np.unsignedinteger]]:
        """Its tokens in order, some millions at a time."""
        ...


class Source(Protocol):
    """Documents to be packed."""

    @property
    def files(self) -> Sequence[SourceFile]:
        """The files that hold them, by location."""
        ...

    @property
    def vocab(self) -> int:
        """Number of distinct tokens."""
        ...

    @property
    def byte_level(self) -> bool:
        """Whether tokens are bytes."""
        ...

    def documents(self, file: SourceFile) -> Iterator[Document]:
        """The documents of one file in order; empty ones are left out.

        Raises:
            DataError: The file cannot be read as what it should be.
        """
        ...


def find_files(
    paths: Sequence[str], exclude: Sequence[str] = (), walked: str = "*"
) -> list[SourceFile]:
    """List the files that `paths` name, each once, by location.

    A directory is walked to any depth. In a glob `*` stays within a name and `**` crosses
    directories. Both pass over names that begin with a dot unless the glob spells the dot. In a URI
    `?` begins its options and is no pattern.

    Args:
        paths: Files, directories or globs; local, or URIs that `locate` knows.
        exclude: Globs to leave out. One without a slash is matched against every name below the
            root, one with a slash against the path from the root; a directory that matches goes
            with all that is in it. The root is the directory itself, the part of a glob before its
            first pattern, or a named file's parent.
        walked: Which names to take when walking a directory.

    Raises:
        DataError: A path does not exist, or it has no files or none that `exclude` lets in.
        StorageError: A filesystem cannot be reached.
    """
    found: dict[str, SourceFile] = {}
    for path in paths:
        found.update((file.location.uri, file) for file in _expand(path, exclude, walked))
    return [found[uri] for uri in sorted(found)]


@contextlib.contextmanager
def open_source(file: SourceFile) -> Iterator[Any]:
    """Open a source file for reading.

    Raises:
        DataError: It cannot be opened, or reading it fails.
    """
    try:
        with file.location.filesystem.open_input_file(file.location.path) as reader:
            yield reader
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"data.paths: cannot read {file.location}: {reason}; repair it or leave it out"
        ) from error


def _expand(path: str, exclude: Sequence[str], walked: str) -> list[SourceFile]:
    """The files that one entry of `data.paths` names."""
    base, glob = _split_at_pattern(path)
    location = locate(base)
    with explained(location, "look at"):
        info = patiently(
            lambda: cast("pafs.FileInfo", location.filesystem.get_file_info(location.path))
        )
    if not glob and info.type is pafs.FileType.NotFound:
        raise DataError(f"data.paths: {path} does not exist; correct it or create it")
    if not glob and info.type is not pafs.FileType.Directory:
        if _is_excluded((location.name,), exclude):
            raise DataError(f"data.paths: {path} is left out by data.exclude; remove it from one")
        return [_source_file(location, info)]
    wanted = glob or ("**", walked)
    hidden = any(name.startswith(".") for name in wanted)
    files = [
        file for below, file in _walk(location, exclude, hidden=hidden) if _matches(below, wanted)
    ]
    if not files:
        what = f"the glob {path} matches no file" if glob else f"{path} holds no {walked} files"
        raise DataError(
            f"data.paths: {what} that data.exclude does not leave out; correct either "
            "(in a glob ** crosses directories)"
        )
    return files


def _split_at_pattern(path: str) -> tuple[str, tuple[str, ...]]:
    """Cut a glob before its first pattern; a plain path, or one that exists as spelt, is whole."""
    is_uri = "://" in path
    place, mark, options = path.partition("?") if is_uri else (path, "", "")
    parts = place.split("/")
    first = next((n for n, part in enumerate(parts) if PATTERN & set(part)), len(parts))
    if first == len(parts) or (not is_uri and Path(path).expanduser().exists()):
        return path, ()
    root = "/".join(parts[:first]) or ("/" if place.startswith("/") else ".")
    return root + mark + options, tuple(parts[first:])


def _walk(
    root: Location, exclude: Sequence[str], above: tuple[str, ...] = (), *, hidden: bool
) -> Iterator[tuple[tuple[str, ...], SourceFile]]:
    """Files at any depth below a directory, each after its path below it, in parts.

    Directories that are excluded, or hidden unless those are asked for, are not even listed.
    """
    with explained(root, "list"):
        selector = pafs.FileSelector(root.path, allow_not_found=True)
        infos = patiently(
            lambda: cast("list[pafs.FileInfo]", root.filesystem.get_file_info(selector))
        )
    for info in sorted(infos, key=lambda info: info.base_name):
        below = (*above, info.base_name)
        location = root / info.base_name
        if _is_excluded(below, exclude) or (info.base_name.startswith(".") and not hidden):
            continue
        if info.type is pafs.FileType.File:
            yield below, _source_file(location, info)
        elif info.type is pafs.FileType.Directory and not _leads_back(location):
            yield from _walk(location, exclude, below, hidden=hidden)


def _leads_back(directory: Location) -> bool:
    """Whether a local directory is a link to one that holds it, which would never end."""
    if not directory.is_local:
        return False
    path = Path(directory.path)
    return path.is_symlink() and path.parent.resolve().is_relative_to(path.resolve())


def _source_file(location: Location, info: pafs.FileInfo) -> SourceFile:
    return SourceFile(location, info.size or 0, info.mtime_ns or 0)


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether a path matches a glob, both cut into names."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return _matches(parts, pattern[1:]) or (
            bool(parts) and not parts[0].startswith(".") and _matches(parts[1:], pattern)
        )
    return (
        bool(parts)
        and fnmatchcase(parts[0], pattern[0])
        and parts[0].startswith(".") <= pattern[0].startswith(".")
        and _matches(parts[1:], pattern[1:])
    )


def _is_excluded(parts: Sequence[str], exclude: Sequence[str]) -> bool:
    """Whether a path, or a directory on the way to it, matches one of `data.exclude`."""
    for glob in exclude:
        names = glob.strip("/").split("/")
        if len(names) == 1:
            if any(fnmatchcase(part, names[0]) for part in parts):
                return True
        elif any(_matches(parts[:depth], names) for depth in range(1, len(parts) + 1)):
            return True
    return False
