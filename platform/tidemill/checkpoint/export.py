"""Take a model out of a checkpoint on one process: as tensors, or as safetensors for other tools.

What is exported is the fp32 masters, proven by their checksums; no process group, strategy or
model code is needed, and names stay as the model gave them.
"""

from __future__ import annotations

import json
import tempfile
import uuid
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from tidemill import storage
from tidemill.checkpoint import content
from tidemill.checkpoint.fragments import plan_copies
from tidemill.checkpoint.manifest import MANIFEST, Manifest, read_manifest
from tidemill.checkpoint.sealed import Reader
from tidemill.errors import CheckpointError, StorageError
from tidemill.spec.progress import Fragment, Piece, State
from tidemill.storage import Location

PARAMETERS = "param."
BUFFERS = "buffer."
WEIGHTS = "model.safetensors"
CONFIG = "config.json"


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


def export_safetensors(
    checkpoint: Location,
    to: Location,
    *,
    vocab: int,
    dtype: str = "float32",
    overwrite: bool = False,
) -> Location:
    """Write `model.safetensors` and `config.json`.

    Args:
        checkpoint: Directory of a committed checkpoint.
        to: Directory to write into; made if need be.
        vocab: Number of distinct tokens, for `config.json`.
        dtype: Element type of floating-point parameters, e.g. `bfloat16`; buffers keep theirs.
        overwrite: Replace what an earlier export wrote.

    Returns:
        Where the weights are.

    Raises:
        CheckpointError: The checkpoint is not whole, or `dtype` is not a floating-point type.
        StorageError: `to` has an export already, or cannot be written.
    """
    target = content.dtype_of(dtype)
    if not target.is_floating_point:
        raise CheckpointError(f"{dtype} cannot hold weights; use float32, bfloat16 or float16")
    for name in (WEIGHTS, CONFIG):
        if not overwrite and storage.exists(to / name):
            raise StorageError(f"{to / name} exists; choose another directory, or overwrite it")
    manifest = read_manifest(checkpoint)
    config = _config(checkpoint, manifest, vocab, dtype)
    tensors = _read(checkpoint, manifest, BUFFERS)
    for name, tensor in _read(checkpoint, manifest, PARAMETERS).items():
        tensors[name] = tensor.to(target) if tensor.is_floating_point() else tensor
    storage.remove(to / CONFIG)
    _write(tensors, to / WEIGHTS)
    storage.publish(to / CONFIG, (json.dumps(config, indent=2) + "\n").encode())
    return to / WEIGHTS


def _read(checkpoint: Location, manifest: Manifest, prefix: str) -> dict[str, torch.Tensor]:
    stored = {name: held for name, held in manifest.tensors.items() if name.startswith(prefix)}
    used = {piece.file for held in stored.values() for piece in held.pieces}
    files = {name: file for name, file in manifest.files.items() if name in used}
    source = content.StoredSource(checkpoint)
    content.check_sizes(source, files)
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


def _write(tensors: dict[str, torch.Tensor], to: Location) -> None:
    """Write a safetensors file so that a reader sees all of it or none."""
    if to.is_local:
        storage.make_directory(to.parent)
        hidden = to.parent / f".{to.name}.{uuid.uuid4().hex[:8]}"
        try:
            _save(tensors, hidden)
            storage.sync(hidden)
            with storage.explained(to, "write"):
                Path(hidden.path).replace(to.path)
            storage.sync(to.parent)
        finally:
            storage.remove(hidden)
        return
    with tempfile.TemporaryDirectory(prefix="tidemill-export-") as scratch:
        local = storage.locate(scratch) / to.name
        _save(tensors, local)
        with storage.open_input(local) as source, storage.open_output(to) as file:
            while part := source.read(content.WINDOW):
                file.write(part)


def _save(tensors: dict[str, torch.Tensor], to: Location) -> None:
    try:
        safetensors.torch.save_file(tensors, to.path, metadata={"format": "pt"})
    except safetensors.SafetensorError as error:
        raise StorageError(f"cannot write {to}: {' '.join(str(error).split())}") from error
