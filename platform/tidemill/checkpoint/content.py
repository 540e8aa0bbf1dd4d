"""The bytes of a checkpoint: write one rank's file, prove a file, fill live tensors from files.

Everything streams through buffers of `CHUNK` bytes, so a checkpoint needs next to no memory beyond
the state itself, wherever that is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tidemill import storage
from tidemill.checkpoint.fragments import Copy, StoredPiece, StoredTensor, Wanted, plan_spans
from tidemill.checkpoint.manifest import StoredFile
from tidemill.errors import CheckpointError, CorruptCheckpoint, StorageError
from tidemill.spec.progress import Fragment, State
from tidemill.storage import Location

ALIGNMENT = 64
"""Every piece begins at a multiple of this many bytes, so that files can be memory-mapped."""
CHUNK = 16 * 2**20
"""Most bytes on their way at once."""
GAP = 64 * 2**10
"""Unneeded bytes worth reading to save a request to an object store."""


@dataclass(frozen=True, slots=True)
class Target:
    """A live piece to fill.

    Attributes:
        wanted: Which range of which tensor it holds.
        memory: Its bytes, as uint8 of shape (size,), on its own device.
    """

    wanted: Wanted
    memory: torch.Tensor


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


def write_fragments(state: State, location: Location) -> tuple[dict[str, StoredTensor], StoredFile]:
    """Write this rank's pieces into one file, one after the other.

    Args:
        state: What to write; on any device.
        location: The file; it is on the disk itself when this returns.

    Returns:
        What the file holds of each tensor, and the file's size and checksum.

    Raises:
        CheckpointError: A piece does not belong to its tensor; names it.
        StorageError: The file cannot be written.
    """
    index: dict[str, StoredTensor] = {}
    sha = hashlib.sha256()
    offset = 0
    with storage.open_output(location) as file:
        for name, fragment in sorted(state.tensors.items()):
            pieces: list[StoredPiece] = []
            for start, memory in _memories(name, fragment):
                padding = bytes(-offset % ALIGNMENT)
                file.write(padding)
                sha.update(padding)
                offset += len(padding)
                count = memory.numel() // dtype_of(fragment.dtype).itemsize
                pieces.append(StoredPiece(start, count, location.name, offset))
                for part in memory.split(CHUNK):
                    content = part.cpu().numpy().data
                    file.write(content)
                    sha.update(content)
                offset += memory.numel()
            index[name] = StoredTensor(tuple(fragment.shape), fragment.dtype, tuple(pieces))
    storage.sync(location)
    return index, StoredFile(offset, sha.hexdigest())


def find_targets(state: State) -> list[Target]:
    """The live memory of all pieces of a state.

    Raises:
        CheckpointError: A piece does not belong to its tensor; names it.
    """
    targets: list[Target] = []
    for name, fragment in state.tensors.items():
        itemsize = dtype_of(fragment.dtype).itemsize
        for start, memory in _memories(name, fragment):
            count = memory.numel() // itemsize
            targets.append(Target(Wanted(name, start, count, itemsize), memory))
    return targets


def fill(targets: Sequence[Target], plan: Mapping[str, Iterable[Copy]], where: Location) -> None:
    """Read what `plan_copies` found for the targets, in place.

    Raises:
        CorruptCheckpoint: A file is shorter than it was.
        StorageError: A file cannot be read.
    """
    buffer = torch.empty(CHUNK, dtype=torch.uint8)
    for name, copies in plan.items():
        with storage.open_input(where / name) as file:
            for span in plan_spans(copies, CHUNK, GAP):
                file.seek(span.offset)
                if _read_into(file, buffer[: span.size]) < span.size:
                    raise CorruptCheckpoint(f"{name} ends before byte {span.offset + span.size}")
                for copy in span.copies:
                    begin = copy.offset - span.offset
                    target = targets[copy.target].memory[copy.at : copy.at + copy.size]
                    target.copy_(buffer[begin : begin + copy.size])


def check_sizes(where: Location, files: Mapping[str, StoredFile]) -> None:
    """Compare the sizes of files with what is listed.

    Raises:
        CorruptCheckpoint: A file is missing or of another size; names it.
    """
    try:
        sizes = {entry.location.name: entry.size for entry in storage.children(where)}
    except StorageError as error:
        raise CorruptCheckpoint(str(error)) from error
    for name, file in sorted(files.items()):
        if name not in sizes:
            raise CorruptCheckpoint(f"{name} is missing")
        if sizes[name] != file.size:
            raise CorruptCheckpoint(f"{name} has {sizes[name]} bytes instead of {file.size}")


def check_content(where: Location, files: Mapping[str, StoredFile]) -> None:
    """Compare the sha256 of files with what they were.

    Raises:
        CorruptCheckpoint: A file cannot be read or has changed; names it.
    """
    buffer = torch.empty(CHUNK, dtype=torch.uint8)
    for name, file in sorted(files.items()):
        sha = hashlib.sha256()
        try:
            with storage.open_input(where / name) as source:
                while size := _read_into(source, buffer):
                    sha.update(buffer[:size].numpy().data)
        except StorageError as error:
            raise CorruptCheckpoint(str(error)) from error
        if sha.hexdigest() != file.sha256:
            raise CorruptCheckpoint(f"{name} has changed: its sha256 is not what was written")


def deal_files(files: Mapping[str, StoredFile], ranks: int) -> list[dict[str, StoredFile]]:
    """Share files between ranks so that each gets about as many bytes; the same on every rank."""
    hands: list[dict[str, StoredFile]] = [{} for _ in range(ranks)]
    loads = [0] * ranks
    for name, file in sorted(files.items(), key=lambda item: (-item[1].size, item[0])):
        rank = loads.index(min(loads))
        hands[rank][name] = file
        loads[rank] += file.size
    return hands


def _read_into(file: Any, buffer: torch.Tensor) -> int:
    memory = buffer.numpy().data
    size = 0
    while size < len(memory) and (got := file.readinto(memory[size:])):
        size += got
    return size


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
