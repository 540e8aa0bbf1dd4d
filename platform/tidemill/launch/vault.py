"""Vault: the part of a node's host memory that holds the newest snapshot of a run.

One detached actor per run and node, so that what it holds outlives the worker that made it, and a
new driver on a living cluster finds it. It holds files in its own heap, as lists of chunks: Ray's
object store would be shared with all others and spill to disk when full, an object dies with its
owner, and nothing was gained. 256 MiB in chunks of 32, 2 cores, three nodes on one machine, medians
of three: a worker hands them to its own vault and another node's in 0.69 s, where vaults that put
them into the object store take 1.05 s; read back on the node in 0.31 s against 0.28, elsewhere in
0.83 s against 0.91. The heap grew by 256 MiB exactly and gave all of it back. Importing this module
costs a vault nothing: no torch, no pyarrow.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

import ray


@dataclass(slots=True)
class File:
    """A file that is held, or on its way.

    Attributes:
        size: Bytes it has when it is whole.
        held: Bytes that are here.
        chunks: They.
    """

    size: int
    held: int = 0
    chunks: list[bytes] = field(default_factory=list)


@dataclass(slots=True)
class Version:
    """What is held of one snapshot.

    Attributes:
        manifest: What it was sealed with; empty before.
        files: Those that are whole, by name.
        coming: Those that are not; one takes the place of its elder when it is whole.
    """

    manifest: bytes = b""
    files: dict[str, File] = field(default_factory=dict)
    coming: dict[str, File] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes there is room for."""
        return sum(file.size for file in (*self.files.values(), *self.coming.values()))


@dataclass(frozen=True, slots=True)
class Held:
    """What a vault says of one version.

    Attributes:
        sealed: Whether it heard that all files are held.
        files: Bytes of each file that is whole here, by name.
    """

    sealed: bool
    files: dict[str, int]


class Vault:
    """Holds versions of a run. One call at a time, so nothing here needs a lock.

    A sealed version stays until a later one is sealed, so the budget must allow for two.

    Args:
        idle_s: Seconds without a call after which its process ends; 0 for one that is no actor.
    """

    def __init__(self, idle_s: float = 0.0) -> None:
        self._idle_s = idle_s
        self._versions: dict[str, Version] = {}
        self._attempt = 0
        self._touched_s = time.monotonic()
        if idle_s:
            threading.Thread(target=self._end_when_idle, name="idle", daemon=True).start()

    def admit(self, attempt: int, version: str, name: str, size: int, budget: int) -> str:
        """Make room for a file of a version that is not sealed yet.

        Args:
            attempt: The attempt that saves it; those before the newest are refused, they are over.
            version: The version; when it is new, what no seal was heard of before it is dropped.
            name: The file.
            size: Bytes it will have.
            budget: Bytes that may be held here.

        Returns:
            Why not; empty if there is room.
        """
        self._touch()
        if attempt < self._attempt:
            return f"attempt {attempt} is over, attempt {self._attempt} goes on with the run"
        self._attempt = attempt
        if version not in self._versions:
            self._versions = {key: held for key, held in self._versions.items() if held.manifest}
        ours = self._versions.setdefault(version, Version())
        ours.coming.pop(name, None)
        here = ours.size + size
        needed = size + sum(held.size for held in self._versions.values())
        if needed > budget:
            return (
                f"checkpoint.near_gib: allows {_gib(budget)} on a node, and {_gib(needed)} "
                f"are needed there for {_gib(here)} of a new snapshot beside the one before it; "
                "allow for more, or set it to 0"
            )
        ours.coming[name] = File(size)
        self.hold(version, name, b"")  # all there is to an empty one
        return ""

    def hold(self, version: str, name: str, chunk: bytes) -> None:
        """Add the next chunk of a file that was admitted.

        Raises:
            KeyError: The version was dropped meanwhile.
        """
        self._touch()
        ours = self._versions[version]
        file = ours.coming[name]
        if chunk:
            file.chunks.append(chunk)
            file.held += len(chunk)
        if file.held == file.size:
            ours.files[name] = ours.coming.pop(name)

    def seal(self, version: str, manifest: bytes) -> None:
        """Hear that all files of a version are held, and drop what came before it.

        Raises:
            KeyError: Nothing of it is here.
        """
        self._touch()
        self._versions[version].manifest = manifest
        order = list(self._versions)
        for older in order[: order.index(version)]:
            del self._versions[older]

    def contents(self) -> dict[str, Held]:
        """What is held, by version, in the order in which it came."""
        self._touch()
        return {
            version: Held(
                sealed=bool(held.manifest),
                files={name: file.size for name, file in held.files.items()},
            )
            for version, held in self._versions.items()
        }

    def manifest(self, version: str) -> bytes:
        """What a version was sealed with.

        Raises:
            KeyError: Nothing of it is here.
        """
        self._touch()
        return self._versions[version].manifest

    def read(self, version: str, name: str, number: int) -> bytes:
        """One chunk of a file.

        Raises:
            LookupError: It is not here.
        """
        self._touch()
        return self._versions[version].files[name].chunks[number]

    def _touch(self) -> None:
        self._touched_s = time.monotonic()

    def _end_when_idle(self) -> None:
        while (left_s := self._touched_s + self._idle_s - time.monotonic()) > 0:
            time.sleep(left_s)
        ray.kill(ray.get_runtime_context().current_actor)


def _gib(size: int) -> str:
    return f"{size / 2**30:.3g} GiB"
