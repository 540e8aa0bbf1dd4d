"""Take a model out of a checkpoint on one process: as tensors, or as safetensors for other tools.

What is exported is the fp32 masters, proven by their checksums; no process group, strategy or
model code is needed, and names stay as the model gave them. Weights stream from file to file, so
memory does not grow with the model; and `config.json` comes last, so an export that has one is
whole.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

from tidemill import storage
from tidemill.checkpoint import content
from tidemill.checkpoint.fragments import StoredTensor, Wanted, plan_copies
from tidemill.checkpoint.manifest import MANIFEST, Manifest, StoredFile, read_manifest
from tidemill.checkpoint.portable import (
    CONFIG,
    INDEX,
    WEIGHTS,
    Kind,
    Shard,
    belongs_to_export,
    encode_header,
    encode_index,
    plan_shards,
    require_kind,
)
from tidemill.checkpoint.ranges import read_ranges
from tidemill.checkpoint.sealed import Reader
from tidemill.errors import CheckpointError, StorageError
from tidemill.spec.progress import Fragment, Piece, State
from tidemill.storage import Location

PARAMETERS = "param."
BUFFERS = "buffer."
UNFINISHED = ".unfinished"
"""Directory in which a local export is written, until all of it is there."""
BATCH = 2**28
"""Bytes of weights read at once; enough that blocks of a checkpoint are seldom read twice."""
GIB = 2**30


def read_tensors(checkpoint: Location, prefix: str) -> dict[str, torch.Tensor]:
    """Read whole tensors, on the CPU.

    Args:
        checkpoint: Directory of a committed checkpoint.
        prefix: Which tensors, e.g. `param.` or `exp_avg.`; it is cut off their names.

    Returns:
        Tensors by the rest of their names, in the shape and dtype they were saved in.

    Raises:
        CorruptCheckpoint: The manifest, or a file that holds one of the tensors, is not whole.
        StorageError: A file cannot be read.
    """
    return _read(checkpoint, read_manifest(checkpoint), prefix)


@dataclass(frozen=True, slots=True)
class _Model:
    """What is to be exported: each tensor as it is to be written, and where it comes from."""

    kinds: dict[str, Kind]
    stored: dict[str, StoredTensor]
    source: content.Source
    files: dict[str, StoredFile]


def export_safetensors(
    checkpoint: Location,
    to: Location,
    *,
    vocab: int,
    dtype: str = "float32",
    shard_gib: float = 5.0,
    overwrite: bool = False,
) -> Location:
    """Write `model.safetensors`, or numbered shards of it and their index, and `config.json`.

    Args:
        checkpoint: Directory of a committed checkpoint.
        to: Directory to write into; made if need be.
        vocab: Number of distinct tokens, for `config.json`.
        dtype: Element type of floating-point parameters, e.g. `bfloat16`; buffers keep theirs.
        shard_gib: Most weights per file, unless a single tensor has more; 0 sets no limit.
        overwrite: Replace what an earlier export wrote. On a local disk that stays until all of
            the new one is written, on an object store it is removed first.

    Returns:
        Where the weights are: the file, or the index.

    Raises:
        CheckpointError: The checkpoint is not whole, or `dtype` is not a floating-point type.
        StorageError: `to` has an export already, or cannot be written.
    """
    target = content.dtype_of(dtype)
    if not target.is_floating_point:
        raise CheckpointError(f"{dtype} cannot hold weights; use float32, bfloat16 or float16")
    earlier = [
        entry.location for entry in storage.children(to) if belongs_to_export(entry.location.name)
    ]
    if earlier and not overwrite:
        raise StorageError(f"{earlier[0]} exists; choose another directory, or overwrite it")
    manifest = read_manifest(checkpoint)
    config = _config(checkpoint, manifest, vocab, dtype)
    model = _open(checkpoint, manifest, dtype)
    shards = plan_shards(model.kinds, int(shard_gib * GIB))
    (_write_local if to.is_local else _write_objects)(model, shards, to, earlier)
    if len(shards) > 1:
        storage.publish(to / INDEX, encode_index(shards, model.kinds))
    storage.publish(to / CONFIG, (json.dumps(config, indent=2) + "\n").encode())
    return to / (INDEX if len(shards) > 1 else WEIGHTS)


def _read(checkpoint: Location, manifest: Manifest, prefix: str) -> dict[str, torch.Tensor]:
    stored = {name: held for name, held in manifest.tensors.items() if name.startswith(prefix)}
    source, files = _files_of(checkpoint, manifest, stored.values())
    tensors = {
        name: torch.empty(held.shape, dtype=content.dtype_of(held.dtype))
        for name, held in stored.items()
    }
    state = State(
        {
            name: Fragment(held.shape, held.dtype, (Piece(0, tensors[name].view(-1)),))
            for name, held in stored.items()
        }
    )
    targets = content.find_targets(state)
    plan = plan_copies([target.wanted for target in targets], stored)
    content.fill(targets, plan, source, files, verify=True)
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def _files_of(
    checkpoint: Location, manifest: Manifest, stored: Iterable[StoredTensor]
) -> tuple[content.Source, dict[str, StoredFile]]:
    """Where some tensors of a checkpoint are read, and the files that hold them, sizes checked."""
    used = {piece.file for held in stored for piece in held.pieces}
    files = {name: file for name, file in manifest.files.items() if name in used}
    source = content.StoredSource(checkpoint)
    content.check_sizes(source, files)
    return source, files


def _open(checkpoint: Location, manifest: Manifest, dtype: str) -> _Model:
    """The weights of a checkpoint, floating-point parameters to be written as `dtype`."""
    stored: dict[str, StoredTensor] = {}
    kinds: dict[str, Kind] = {}
    for name, held in manifest.tensors.items():
        prefix = next((prefix for prefix in (PARAMETERS, BUFFERS) if name.startswith(prefix)), "")
        if prefix:
            is_cast = prefix == PARAMETERS and content.dtype_of(held.dtype).is_floating_point
            kind = Kind(held.shape, dtype if is_cast else held.dtype)
            require_kind(name, kind.dtype)
            stored[name.removeprefix(prefix)] = held
            kinds[name.removeprefix(prefix)] = kind
    source, files = _files_of(checkpoint, manifest, stored.values())
    return _Model(kinds, stored, source, files)


def _config(checkpoint: Location, manifest: Manifest, vocab: int, dtype: str) -> dict[str, Any]:
    read = Reader(f"{checkpoint}/{MANIFEST}")
    batch = read.take(manifest.identity, "batch", dict, "identity")
    return {
        "model": read.take(manifest.identity, "model", dict, "identity"),
        "vocab": vocab,
        "sequence": read.take(batch, "sequence", int, "identity.batch"),
        "step": manifest.cursor.step,
        "dtype": dtype,
        "run": manifest.run,
        "digest": manifest.digest,
    }


def _write_local(
    model: _Model, shards: Sequence[Shard], to: Location, earlier: Sequence[Location]
) -> None:
    """Write all files out of sight, then put them in the place of an earlier export."""
    hidden = to / UNFINISHED
    storage.remove(hidden)
    try:
        for shard in shards:
            with storage.open_output(hidden / shard.name) as file:
                _write(model, shard, file)
            storage.sync(hidden / shard.name)
        _withdraw(earlier)
        storage.sync(to)
        for shard in shards:
            with storage.explained(to, "write"):
                Path((hidden / shard.name).path).replace((to / shard.name).path)
    finally:
        storage.remove(hidden)
    storage.sync(to)


def _write_objects(
    model: _Model, shards: Sequence[Shard], to: Location, earlier: Sequence[Location]
) -> None:
    """Write where nothing can be moved: an earlier export goes first, a failed one goes again."""
    _withdraw(earlier)
    begun: list[Location] = []
    try:
        for shard in shards:
            begun.append(to / shard.name)
            with storage.open_output(to / shard.name) as file:
                _write(model, shard, file)
    except BaseException:
        # Shards that are complete are no use without the others.
        with contextlib.suppress(StorageError):
            _withdraw(begun)
        raise


def _withdraw(export: Sequence[Location]) -> None:
    """Remove an export, what makes it look whole first."""
    ranks = {CONFIG: 0, INDEX: 1}
    for place in sorted(export, key=lambda place: ranks.get(place.name, 2)):
        storage.remove(place)


def _write(model: _Model, shard: Shard, file: IO[bytes]) -> None:
    """Stream one file, cast on the way."""
    file.write(encode_header(shard, model.kinds))
    wanted = [
        Wanted(name, 0, held.numel, content.dtype_of(held.dtype).itemsize)
        for name in shard.tensors
        for held in [model.stored[name]]
    ]
    for _, want, elements in read_ranges(
        wanted, model.stored, model.source, model.files, most=BATCH, verify=True
    ):
        dtype = content.dtype_of(model.kinds[want.name].dtype)
        for part in elements.split(content.WINDOW // dtype.itemsize):
            file.write(part.to(dtype).view(torch.uint8).numpy().data)
