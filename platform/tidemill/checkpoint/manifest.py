"""The manifest: what a checkpoint is, what it holds, and the proof that nothing of it changed.

It is written last, so a directory without one is no checkpoint; and it is sealed with the sha256 of
its own bytes, so a reader trusts either all of it or nothing. Reading it needs no torch.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tidemill import storage
from tidemill.checkpoint.blocks import trailer_size
from tidemill.checkpoint.fragments import StoredPiece, StoredTensor
from tidemill.checkpoint.sealed import Reader, require_json, seal, unseal
from tidemill.errors import CorruptCheckpoint, StorageError
from tidemill.spec.progress import Cursor
from tidemill.storage import Location

SCHEMA = 2
RNG = "keyed"
"""Every random number of a run follows from its seed and the number of the sample."""
MANIFEST = "manifest.json"
CHECKPOINTS = "checkpoints"

_NAME = re.compile(r"step-(\d{10,})-a(\d{4,})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What every checkpoint of one attempt says about the run; see `Manifest`."""

    run: str
    digest: str
    identity: dict[str, Any]
    corpus_digest: str
    strategy: str
    precision: str


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file beside the manifest: tensors, then the digest of each block of them.

    Attributes:
        size: Bytes of the file.
        data: Bytes of it that hold tensors.
        sha256: Checksum (hex) of the rest, see `blocks`.
    """

    size: int
    data: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Everything about one checkpoint but the bytes of its tensors.

    Attributes:
        schema: Version of this format.
        run: Name of the run.
        digest: `RunSpec.digest()` of the run, and
        identity: the plain form it is the digest of.
        corpus_digest: Digest of the content of the corpus.
        cursor: Where the run goes on.
        world: Number of ranks that saved it.
        strategy: Name of the strategy that saved it.
        precision: Number format of forward and backward.
        attempt: The attempt that saved it.
        saved_at_s: Seconds since the epoch.
        rng: How random numbers are made; `RNG` in this version.
        origin: What the run started from: empty, {"run", "step"} of another run's checkpoint, or
            {"weights"}, where they were.
        metrics: Figures for people, `loss` and `val_loss`; null where one was not finite.
        scalars: JSON values of the state: loss scale, optimizer step, ...
        tensors: What is stored, by logical name.
        files: The files that hold it, by name.
    """

    schema: int = SCHEMA
    run: str
    digest: str
    identity: dict[str, Any]
    corpus_digest: str
    cursor: Cursor
    world: int
    strategy: str
    precision: str
    attempt: int
    saved_at_s: float
    rng: str = RNG
    origin: dict[str, Any]
    metrics: dict[str, float | None]
    scalars: dict[str, Any]
    tensors: dict[str, StoredTensor]
    files: dict[str, StoredFile]

    @property
    def name(self) -> str:
        """Name of its directory."""
        return checkpoint_name(self.cursor.step, self.attempt)

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(file.size for file in self.files.values())


def checkpoint_name(step: int, attempt: int) -> str:
    """Name of the directory of the checkpoint that `attempt` saves after `step` steps."""
    return f"step-{step:010d}-a{attempt:04d}"


def parse_name(name: str) -> tuple[int, int] | None:
    """(step, attempt) of a checkpoint's directory, or None if `name` is not one's name."""
    match = _NAME.fullmatch(name)
    return (int(match[1]), int(match[2])) if match else None


def directories(run: Location) -> list[Location]:
    """All directories of checkpoints, committed or not, by step and attempt, newest first.

    Raises:
        StorageError: The run's directory cannot be listed.
    """
    found = [
        (key, entry.location)
        for entry in storage.children(run / CHECKPOINTS)
        if entry.is_directory and (key := parse_name(entry.location.name)) is not None
    ]
    return [place for _, place in sorted(found, key=lambda item: item[0], reverse=True)]


def committed(run: Location) -> list[Location]:
    """The directories that have a manifest, by step and attempt, newest first; reads none of them.

    Raises:
        StorageError: The run's directory cannot be listed.
    """
    return [place for place in directories(run) if storage.exists(place / MANIFEST)]


def read_manifest(directory: Location) -> Manifest:
    """Read and check the manifest of one checkpoint.

    Raises:
        CorruptCheckpoint: It is missing, unreadable, changed since it was written, or of a version
            this one does not know; says which.
    """
    try:
        content = storage.read_bytes(directory / MANIFEST)
    except StorageError as error:
        raise CorruptCheckpoint(f"{directory}: {error}") from error
    return decode(content, str(directory))


def encode(manifest: Manifest) -> bytes:
    """The bytes of `manifest.json`.

    Raises:
        CheckpointError: A scalar or a metric is no JSON value.
    """
    for key, value in (manifest.scalars | manifest.metrics).items():
        require_json(key, value)
    return seal(
        {
            "schema": manifest.schema,
            "run": manifest.run,
            "digest": manifest.digest,
            "identity": manifest.identity,
            "corpus_digest": manifest.corpus_digest,
            "cursor": {"step": manifest.cursor.step, "samples": manifest.cursor.samples},
            "world": manifest.world,
            "strategy": manifest.strategy,
            "precision": manifest.precision,
            "attempt": manifest.attempt,
            "saved_at_s": manifest.saved_at_s,
            "rng": manifest.rng,
            "origin": manifest.origin,
            "metrics": manifest.metrics,
            "scalars": manifest.scalars,
            "tensors": encode_tensors(manifest.tensors),
            "files": {
                name: {"size": file.size, "data": file.data, "sha256": file.sha256}
                for name, file in manifest.files.items()
            },
        }
    )


def encode_tensors(tensors: Mapping[str, StoredTensor]) -> dict[str, Any]:
    """The plain form of an index of tensors."""
    return {
        name: {
            "shape": list(tensor.shape),
            "dtype": tensor.dtype,
            "pieces": [
                [piece.start, piece.count, piece.file, piece.offset] for piece in tensor.pieces
            ],
        }
        for name, tensor in tensors.items()
    }


def decode(content: bytes, where: str) -> Manifest:
    """Rebuild a manifest from the bytes of `manifest.json`.

    Args:
        content: The bytes.
        where: The checkpoint, named in errors.

    Raises:
        CorruptCheckpoint: The bytes are not what `encode` made, or a later version made them.
    """
    read = Reader(f"{where}/{MANIFEST}")
    held = read.cast(unseal(content, read.where), dict, "manifest")
    schema = read.take(held, "schema", int)
    if schema != SCHEMA:
        raise CorruptCheckpoint(
            f"{read.where}: schema {schema} is unknown to this version of Tidemill, which reads "
            f"schema {SCHEMA}; use the version that wrote it"
        )
    cursor = read.take(held, "cursor", dict)
    return Manifest(
        schema=schema,
        run=read.take(held, "run", str),
        digest=read.take(held, "digest", str),
        identity=read.take(held, "identity", dict),
        corpus_digest=read.take(held, "corpus_digest", str),
        cursor=Cursor(
            step=read.take(cursor, "step", int, "cursor"),
            samples=read.take(cursor, "samples", int, "cursor"),
        ),
        world=read.take(held, "world", int),
        strategy=read.take(held, "strategy", str),
        precision=read.take(held, "precision", str),
        attempt=read.take(held, "attempt", int),
        saved_at_s=float(read.take(held, "saved_at_s", (int, float))),
        rng=read.take(held, "rng", str),
        origin=read.take(held, "origin", dict),
        metrics=read.take(held, "metrics", dict),
        scalars=read.take(held, "scalars", dict),
        tensors=read.each(held, "tensors", functools.partial(_tensor, read)),
        files=read.each(held, "files", functools.partial(_file, read)),
    )


def _tensor(read: Reader, path: str, plain: dict[str, Any]) -> StoredTensor:
    shape = read.take(plain, "shape", list, path)
    pieces = read.take(plain, "pieces", list, path)
    return StoredTensor(
        shape=tuple(read.cast(size, int, f"{path}.shape") for size in shape),
        dtype=read.take(plain, "dtype", str, path),
        pieces=tuple(_piece(read, f"{path}.pieces", piece) for piece in pieces),
    )


def _piece(read: Reader, path: str, plain: Any) -> StoredPiece:
    match plain:
        case [int(start), int(count), str(file), int(offset)] if min(start, offset, count - 1) >= 0:
            return StoredPiece(start, count, file, offset)
        case _:
            raise CorruptCheckpoint(f"{read.where}: {path}: not [start, count, file, offset]")


def _file(read: Reader, path: str, plain: dict[str, Any]) -> StoredFile:
    size, data = read.take(plain, "size", int, path), read.take(plain, "data", int, path)
    if size != data + trailer_size(data):
        raise CorruptCheckpoint(f"{read.where}: {path}: {size} bytes cannot hold {data} of tensors")
    return StoredFile(size, data, read.take(plain, "sha256", str, path))
