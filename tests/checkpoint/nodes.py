"""Memory of nodes, in this process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

from tidemill.checkpoint.content import Source
from tidemill.errors import StorageError


@dataclass
class Node:
    """Near memory in this process, which may fail in every way."""

    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    sealed: dict[str, bytes] = field(default_factory=dict)
    full: bool = False
    deaf: bool = False
    lost: bool = False

    def keep(self, version: str, name: str, content: memoryview) -> int:
        if self.full:
            raise StorageError("checkpoint.near_gib: the budget is used up")
        self.files.setdefault(version, {})[name] = bytes(content)
        return 2

    def seal(self, version: str, manifest: bytes) -> None:
        self.sealed[version] = manifest

    def find(self) -> dict[str, bytes]:
        if self.deaf:
            raise StorageError("no node answers")
        return dict(self.sealed)

    def open(self, version: str) -> Source:
        return _Held(self, version)


@dataclass
class _Held:
    node: Node
    version: str

    def sizes(self) -> dict[str, int]:
        return {name: len(content) for name, content in self.node.files[self.version].items()}

    def open(self, name: str) -> AbstractContextManager[Any]:
        return self._open(name)

    @contextmanager
    def _open(self, name: str) -> Iterator[BytesIO]:
        if self.node.lost:
            raise StorageError("the node went while it was read")
        yield BytesIO(self.node.files[self.version][name])
