"""Near: the newest snapshot in the memory of nodes, so that losing one node loses no upload.

Which memory, and how it is reached, is not this room's business; nothing here communicates with
other ranks, so that one that cannot keep its share fails alone and is heard of by the others.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from tidemill.checkpoint.content import Source  # torch, which who only holds bytes can spare


class Near(Protocol):
    """One rank's way to the memory of its own node and of another one.

    A version is named as the checkpoint it could become (`checkpoint_name`), and counts once it is
    sealed with the bytes of that checkpoint's manifest.
    """

    def keep(self, version: str, name: str, content: memoryview) -> int:
        """Hold a file of a version that is not sealed yet.

        Args:
            version: The version.
            name: Name of the file.
            content: Its bytes; free to change when this returns.

        Returns:
            Number of nodes that hold it now, at least 1.

        Raises:
            StorageError: None can, e.g. because it is more than the budget.
        """
        ...

    def seal(self, version: str, manifest: bytes) -> None:
        """Say that every file of `version` is held; older versions may go.

        Raises:
            StorageError: No node heard it.
        """
        ...

    def find(self) -> dict[str, bytes]:
        """The manifests of sealed versions of which every file is held somewhere, by version.

        Raises:
            StorageError: The nodes cannot be asked.
        """
        ...

    def open(self, version: str) -> Source:
        """Read a version that `find` told of, each file from the nearest node that holds it.

        Raises:
            StorageError: Nothing of it is held any more.
        """
        ...


class ChunkReader(io.RawIOBase):
    """A file that is held in chunks, read through the one chunk that was fetched last.

    Args:
        size: Bytes of the file.
        chunk: Bytes of each chunk but the last.
        fetch: Gives the chunk of a number; what it raises is raised by `readinto`.
    """

    def __init__(self, size: int, chunk: int, fetch: Callable[[int], bytes]) -> None:
        super().__init__()
        self._size = size
        self._chunk = chunk
        self._fetch = fetch
        self._at = 0
        self._number = -1
        self._held = memoryview(b"")

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a byte, see `io.IOBase.seek`."""
        begin = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, begin + offset)
        return self._at

    def readinto(self, buffer: Any, /) -> int:
        """Read up to the end of a chunk at most; 0 is the end of the file."""
        target = memoryview(buffer).cast("B")
        if self._at >= self._size or not target:
            return 0
        number, offset = divmod(self._at, self._chunk)
        if number != self._number:
            self._held = memoryview(b"")  # before the next one comes: one chunk at a time
            self._held, self._number = memoryview(self._fetch(number)), number
        found = self._held[offset : offset + len(target)]
        target[: len(found)] = found
        self._at += len(found)
        return len(found)
