"""Near: the newest snapshot in the memory of nodes, so that losing one node loses no upload.

Which memory, and how it is reached, is not this room's business; nothing here communicates with
other ranks, so that one that cannot keep its share fails alone and is heard of by the others.
"""

from __future__ import annotations

from typing import Protocol

from tidemill.checkpoint.content import Source


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
            StorageError: Not all of it is held any more.
        """
        ...
