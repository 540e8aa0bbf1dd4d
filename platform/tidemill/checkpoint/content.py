"""The bytes of a checkpoint: where a rank's pieces lie in its file, and how live ones are filled.

Reading streams through one buffer of `WINDOW` bytes and proves each block before it copies from it,
so a checkpoint is read once and needs next to no memory beyond the state itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from tidemill import storage
from tidemill.checkpoint.blocks import BLOCK, check_blocks, check_trailer
from tidemill.checkpoint.fragments import Copy, StoredPiece, StoredTensor, Wanted, plan_spans
from tidemill.checkpoint.manifest import StoredFile
from tidemill.errors import CheckpointError, CorruptCheckpoint, StorageError
from tidemill.spec.progress import Fragment, State
from tidemill.storage import Location

ALIGNMENT = 64
"""Every piece begins at a multiple of this many bytes, so that files can be memory-mapped."""
WINDOW = 64 * BLOCK
"""Most bytes on their way at once."""
GAP = 64 * 2**10
"""Unneeded bytes worth reading to save a request to an object store."""


class Source(Protocol):
    """Where the files of one checkpoint can be read: in storage, or in the memory of a node."""

    def sizes(self) -> dict[str, int]:
        """Bytes of each file that is there, by name.

        Raises:
            StorageError: They cannot be listed.
        """
        ...

    def open(self, name: str) -> AbstractContextManager[Any]:
        """A reader with `seek(offset)` and `readinto(buffer)`; raises StorageError, also in use."""
        ...


@dataclass(frozen=True, slots=True)
class StoredSource:
    """The files in a directory of storage.

    Attributes:
        place: The checkpoint.
    """

    place: Location

    def sizes(self) -> dict[str, int]:
        """See `Source.sizes`."""
        return {entry.location.name: entry.size for entry in storage.children(self.place)}

    def open(self, name: str) -> AbstractContextManager[Any]:
        """See `Source.open`."""
        return storage.open_input(self.place / name)


@dataclass(frozen=True, slots=True)
class Target:
    """A live piece, to be saved or filled.

    Attributes:
        wanted: Which range of which tensor it holds.
        memory: Its bytes, as uint8 of shape (size,), on its own device.
    """

    wanted: Wanted
    memory: torch.Tensor


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the pieces of one rank lie in its file.

    Attributes:
        tensors: What the file holds of each tensor.
        offsets: Byte of the file at which each piece begins, in the order of the targets.
        data: Bytes from the beginning of the file to the end of the last piece.
    """

    tensors: dict[str, StoredTensor]
    offsets: tuple[int, ...]
    data: int


def dtype_name(dtype: torch.dtype) -> str:
    """The name of an element type, e.g. `float32`."""
    return str(dtype).removeprefix("torch.")


def dtype_of(name: str) -> torch.dtype:
    """The element type called `name`.

    Raises:
        CheckpointError: This version of torch has none of that name.
    """
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise CheckpointError(f"{name} is no element type of torch {torch.__version__}")
    return dtype


def find_targets(state: State) -> list[Target]:
    """The live memory of all pieces of a state, by name of the tensor.

    Raises:
        CheckpointError: A piece does not belong to its tensor; names it.
    """
    targets: list[Target] = []
    for name, fragment in sorted(state.tensors.items()):
        itemsize = dtype_of(fragment.dtype).itemsize
        for start, memory in _memories(name, fragment):
            count = memory.numel() // itemsize
            targets.append(Target(Wanted(name, start, count, itemsize), memory))
    return targets


def lay_out(state: State, targets: Sequence[Target], file: str) -> Layout:
    """Put the pieces of a rank one after the other.

    Args:
        state: What to save.
        targets: What `find_targets` made of it.
        file: Name of the file.
    """
    offsets: list[int] = []
    pieces: dict[str, list[StoredPiece]] = {name: [] for name in sorted(state.tensors)}
    end = 0
    for target in targets:
        offset = end + -end % ALIGNMENT
        wanted = target.wanted
        pieces[wanted.name].append(StoredPiece(wanted.start, wanted.count, file, offset))
        offsets.append(offset)
        end = offset + target.memory.numel()
    tensors = {
        name: StoredTensor(tuple(fragment.shape), fragment.dtype, tuple(pieces[name]))
        for name, fragment in sorted(state.tensors.items())
    }
    return Layout(tensors, tuple(offsets), end)


def fill(
    targets: Sequence[Target],
    plan: Mapping[str, Iterable[Copy]],
    source: Source,
    files: Mapping[str, StoredFile],
    *,
    verify: bool,
) -> None:
    """Read what `plan_copies` found for the targets, in place, each byte once.

    Args:
        targets: What to fill; after an error, some of it is filled with what may be wrong.
        plan: Copies by file.
        source: Has the files.
        files: What the manifest says of them.
        verify: Compare every block with its checksum.

    Raises:
        CorruptCheckpoint: A file is missing, unreadable, shorter than it was, or has changed.
    """
    buffer = torch.empty(WINDOW, dtype=torch.uint8)
    for name, copies in plan.items():
        with _reading(source, name, files[name], verify=verify) as read:
            block = BLOCK if verify else 1
            for span in plan_spans(copies, WINDOW, block, GAP):
                size = min(span.size, files[name].data - span.offset)
                read(span.offset, buffer[:size])
                for copy in span.copies:
                    begin = copy.offset - span.offset
                    target = targets[copy.target].memory[copy.at : copy.at + copy.size]
                    target.copy_(buffer[begin : begin + copy.size])


def check_content(source: Source, files: Mapping[str, StoredFile]) -> Iterator[int]:
    """Compare every byte of files with its checksum.

    Yields:
        Bytes checked, now and then.

    Raises:
        CorruptCheckpoint: A file is missing, unreadable, shorter than it was, or has changed.
    """
    buffer = torch.empty(WINDOW, dtype=torch.uint8)
    for name, file in sorted(files.items()):
        with _reading(source, name, file, verify=True) as read:
            for offset in range(0, file.data, WINDOW):
                size = min(WINDOW, file.data - offset)
                read(offset, buffer[:size])
                yield size


def check_sizes(source: Source, files: Mapping[str, StoredFile]) -> None:
    """Compare the sizes of files with what is listed.

    Raises:
        CorruptCheckpoint: A file is missing or of another size; names it.
    """
    try:
        sizes = source.sizes()
    except StorageError as error:
        raise CorruptCheckpoint(str(error)) from error
    for name, file in sorted(files.items()):
        if name not in sizes:
            raise CorruptCheckpoint(f"{name} is missing")
        if sizes[name] != file.size:
            raise CorruptCheckpoint(f"{name} has {sizes[name]} bytes instead of {file.size}")


@contextlib.contextmanager
def _reading(
    source: Source, name: str, file: StoredFile, *, verify: bool
) -> Iterator[Callable[[int, torch.Tensor], None]]:
    """A function that reads a range of one file into memory, whole blocks only if it verifies."""
    try:
        with source.open(name) as reader:

            def read(offset: int, buffer: torch.Tensor) -> None:
                memory = buffer.numpy().data
                reader.seek(offset)
                size = 0
                while size < len(memory) and (got := reader.readinto(memory[size:])):
                    size += got
                if size < len(memory):
                    raise CorruptCheckpoint(f"{name} ends before byte {offset + len(memory)}")

            if not verify:
                yield read
                return
            tail = torch.empty(file.size - file.data, dtype=torch.uint8)
            read(file.data, tail)
            trailer = tail.numpy().tobytes()
            check_trailer(trailer, file.sha256, name)

            def read_proven(offset: int, buffer: torch.Tensor) -> None:
                read(offset, buffer)
                check_blocks(buffer.numpy().data, offset, trailer, name)

            yield read_proven
    except StorageError as error:
        raise CorruptCheckpoint(str(error)) from error


def _memories(name: str, fragment: Fragment) -> list[tuple[int, torch.Tensor]]:
    """(start, bytes of the live memory) of each piece that is not empty."""
    dtype = dtype_of(fragment.dtype)
    memories: list[tuple[int, torch.Tensor]] = []
    for piece in fragment.pieces:
        data = piece.data.detach()
        if data.dtype != dtype:
            raise CheckpointError(f"{name}: a piece is {data.dtype} in a tensor of {dtype}")
        if not data.is_contiguous():
            raise CheckpointError(f"{name}: a piece is not contiguous in memory")
        if piece.start < 0 or piece.start + data.numel() > fragment.numel:
            raise CheckpointError(
                f"{name}: elements {piece.start} to {piece.start + data.numel() - 1} are outside "
                f"a tensor of {fragment.numel}"
            )
        if data.numel():
            memories.append((piece.start, data.view(-1).view(torch.uint8)))
    return memories
