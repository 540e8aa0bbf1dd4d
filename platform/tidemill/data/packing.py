"""Packing: survey all files, choose what is held out, write both sides as shards.

The survey reads everything before anything is written. It finds every malformed file, and the
hashes that fix the order and the held-out side; packing then reads the files again, in that order,
and refuses one that has changed meanwhile.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from tidemill.data.shards import Layout, Shard, ShardWriter
from tidemill.data.sources import Source, SourceFile
from tidemill.errors import DataError
from tidemill.storage import Location

SURVEYORS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One side of a packed corpus.

    Attributes:
        shards: Its files, in order.
        tokens: Number of its tokens.
        documents: Number of its documents, one cut in two counting on both sides.
        digest: sha256 of its tokens.
    """

    shards: list[Shard]
    tokens: int
    documents: int
    digest: str


@dataclass(frozen=True, slots=True)
class FileSurvey:
    """What one file holds.

    Attributes:
        file: Where it is.
        digest: sha256 over the hashes of its documents.
        tokens: Number of its tokens.
        lowest: Smallest hash of a document in it.
        highest: Largest hash of a document in it.
    """

    file: SourceFile
    digest: bytes
    tokens: int
    lowest: bytes
    highest: bytes


def survey(source: Source) -> list[FileSurvey]:
    """Read and check every file, several at once; the files that hold any tokens, by digest.

    Raises:
        DataError: A file is malformed or unreadable (the first such file by location), or no file
            holds anything.
    """
    pool = ThreadPoolExecutor(SURVEYORS, "tidemill-survey")
    try:
        found = list(pool.map(lambda file: _survey_file(source, file), source.files))
    finally:
        pool.shutdown(cancel_futures=True)
    held = [item for item in found if item is not None]
    if not held:
        raise DataError(
            f"data.paths: all {len(found)} files are empty; name files that hold documents"
        )
    return sorted(held, key=lambda item: item.digest)


def _survey_file(source: Source, file: SourceFile) -> FileSurvey | None:
    digest = hashlib.sha256()
    tokens = 0
    lowest = highest = b""
    for document in source.documents(file):
        content = document.hash
        digest.update(content)
        tokens += document.tokens
        lowest = min(lowest or content, content)
        highest = max(highest, content)
    return FileSurvey(file, digest.digest(), tokens, lowest, highest) if tokens else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Division:
    """Which tokens are held out.

    Attributes:
        below: Documents whose hash is smaller are held out.
        cut: If not None, held out is instead everything from this token on.
    """

    below: bytes = b""
    cut: int | None = None

    def to_train_on(self, document: bytes, position: int, size: int) -> int:
        """How many of the first tokens of a piece are to train on; the others are held out.

        Args:
            document: Hash of the piece's document.
            position: Where the piece begins, counted over the whole corpus.
            size: Tokens of the piece.
        """
        if self.cut is not None:
            return min(max(0, self.cut - position), size)
        return 0 if document < self.below else size


def divide(surveyed: Sequence[FileSurvey], held_out: float) -> Division:
    """Choose what to hold out.

    A document is held out if its hash, read as a fraction, is below `held_out`; so it stays on its
    side when others come and go, and copies of it never straddle both. If that leaves a side empty,
    the document with the smallest hash is held out, or the one with the largest is not. Where all
    documents are the same, or there is one, the tail of the tokens is held out.

    Args:
        surveyed: All files, in the order of packing.
        held_out: Share to hold out; 0 holds nothing out.
    """
    if held_out == 0:
        return Division()
    lowest = min(item.lowest for item in surveyed)
    highest = max(item.highest for item in surveyed)
    if lowest == highest:
        tokens = sum(item.tokens for item in surveyed)
        return Division(cut=max(0, tokens - max(2, int(tokens * held_out))))
    share = int(held_out * 2**64).to_bytes(8, "big")
    return Division(below=min(max(share, lowest + b"\0"), highest))


def pack(
    source: Source,
    surveyed: Sequence[FileSurvey],
    division: Division,
    directory: Location,
    *,
    prefix: str,
    layout: Layout,
) -> tuple[Side, Side]:
    """Write the shards of both sides, holding a few million tokens at a time.

    Args:
        source: Where documents come from.
        surveyed: The files in order.
        division: What is held out.
        directory: Where the shards go.
        prefix: Goes before their names.
        layout: How they are cut.

    Returns:
        The side to train on, and the side held out.

    Raises:
        DataError: A file has changed since it was surveyed.
        StorageError: A shard cannot be written.
    """
    train = ShardWriter(directory, f"{prefix}train", source.vocab, layout)
    val = ShardWriter(directory, f"{prefix}val", source.vocab, layout)
    documents = [0, 0]
    with train, val:
        for item in surveyed:
            digest = hashlib.sha256()
            position = train.tokens + val.tokens
            for document in source.documents(item.file):
                digest.update(document.hash)
                before = (train.tokens, val.tokens)
                for piece in document.pieces():
                    split = division.to_train_on(
                        document.hash, train.tokens + val.tokens, len(piece)
                    )
                    train.write(piece[:split])
                    val.write(piece[split:])
                documents[0] += train.tokens > before[0]
                documents[1] += val.tokens > before[1]
            packed = train.tokens + val.tokens - position
            if (digest.digest(), packed) != (item.digest, item.tokens):
                raise DataError(
                    f"data.paths: {item.file.location} changed while it was being packed; "
                    "start again once it is complete"
                )
    first, second = (
        Side(shards=side.shards, tokens=side.tokens, documents=count, digest=side.digest())
        for side, count in zip((train, val), documents, strict=True)
    )
    return first, second
