"""Proof of a whole checkpoint: every byte of every file is read and compared with its checksums."""

from __future__ import annotations

from collections.abc import Callable

from tidemill.checkpoint import content
from tidemill.checkpoint.inspect import Held, manifest_of
from tidemill.errors import CorruptCheckpoint, StorageError


def find_damage(held: Held, advance: Callable[[int], None]) -> list[str]:
    """Read all of a checkpoint.

    Args:
        held: One whose manifest can be read.
        advance: Called with the number of bytes that were proven, now and then.

    Returns:
        What is wrong with each damaged file: its name, and its first bytes that have changed.

    Raises:
        StorageError: A file cannot be read, which says nothing about what it holds.
    """
    source, flaws = content.StoredSource(held.place), list[str]()
    for name, file in sorted(manifest_of(held).files.items()):
        try:
            for size in content.check_content(source, {name: file}):
                advance(size)
        except CorruptCheckpoint as error:
            if isinstance(error.__cause__, StorageError):
                raise error.__cause__ from error
            flaws.append(str(error))
    return flaws
