"""Packed tokens at rest: uncompressed Arrow IPC shards of one flat column, written and read back.

Every shard and every record batch but the last holds the same number of tokens, so the batch that
holds token t follows by division, no index is needed, and on a local disk a batch is a view of the
page cache that all ranks of a node share.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tidemill.errors import DataError
from tidemill.storage import Location, explained, locate, open_output, patiently

COLUMN = "tokens"
BATCH_TOKENS = 2**17  # at 2 bytes each, a range read whose transfer is shorter than its latency
SHARD_TOKENS = 2**25
# Views of a local file cost some hundred bytes each; copies from an object store cost their size.
LOCAL_BATCHES = 2**15
REMOTE_BATCHES = 2**9
READERS = 16

Tokens = NDArray[np.unsignedinteger]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One file of packed tokens.

    Attributes:
        name: Its path below the corpus's directory.
        tokens: Number of its tokens.
        size: Its size in bytes.
    """

    name: str
    tokens: int
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How tokens are cut into files and record batches.

    Attributes:
        shard_tokens: Tokens per shard, a multiple of `batch_tokens`.
        batch_tokens: Tokens per record batch.
    """

    shard_tokens: int = SHARD_TOKENS
    batch_tokens: int = BATCH_TOKENS


def token_type(vocab: int) -> np.dtype[np.unsignedinteger]:
    """The smallest little-endian unsigned type that holds every token below `vocab`."""
    for name in ("<u1", "<u2", "<u4"):
        kind: np.dtype[np.unsignedinteger] = np.dtype(name)
        if vocab - 1 <= np.iinfo(kind).max:
            return kind
    raise DataError(f"data.vocab: {vocab} is beyond 32-bit tokens; use 4294967296 or less")


class ShardWriter:
    """Cut one stream of tokens into shards; a context manager, and holds one batch at a time.

    Args:
        directory: Where the shards go.
        prefix: Start of their names, below the directory.
        vocab: Number of distinct tokens; chooses the type.
        layout: How to cut.

    Attributes:
        shards: The finished shards; complete once the context is left without an error.
        tokens: Tokens written so far.
    """

    def __init__(self, directory: Location, prefix: str, vocab: int, layout: Layout) -> None:
        self.shards: list[Shard] = []
        self.tokens = 0
        self._directory = directory
        self._prefix = prefix
        self._layout = layout
        self._type = token_type(vocab)
        self._schema = pa.schema(
            [pa.field(COLUMN, pa.from_numpy_dtype(self._type), nullable=False)]
        )
        self._batch: Tokens = np.empty(layout.batch_tokens, self._type)
        self._filled = 0
        self._digest = hashlib.sha256()
        self._open = contextlib.ExitStack()
        self._sink: Any = None
        self._writer: Any = None
        self._in_shard = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self._flush()
            self._finish()
        else:
            self._open.__exit__(kind, error, trace)  # so that half a shard is not completed

    def write(self, tokens: Tokens) -> None:
        """Append tokens of any length."""
        taken = 0
        while taken < len(tokens):
            size = min(len(tokens) - taken, len(self._batch) - self._filled)
            self._batch[self._filled : self._filled + size] = tokens[taken : taken + size]
            self._filled += size
            taken += size
            if self._filled == len(self._batch):
                self._flush()
        self.tokens += len(tokens)

    def digest(self) -> str:
        """sha256 of all tokens, little-endian in their type; complete after the context."""
        return self._digest.hexdigest()

    def _flush(self) -> None:
        if not self._filled:
            return
        writer = self._writer or self._begin()
        batch = self._batch[: self._filled]
        self._digest.update(batch.tobytes())
        with explained(self._target(), "write"):
            writer.write_batch(pa.record_batch([pa.array(batch)], schema=self._schema))
        self._in_shard += self._filled
        self._filled = 0
        if self._in_shard >= self._layout.shard_tokens:
            self._finish()

    def _begin(self) -> Any:
        self._sink = self._open.enter_context(open_output(self._target()))
        self._writer = pa.ipc.new_file(self._sink, self._schema)
        return self._writer

    def _finish(self) -> None:
        if self._writer is None:
            return
        with explained(self._target(), "write"):
            self._writer.close()
            size = self._sink.tell()
            self._open.close()
        self.shards.append(Shard(name=self._name(), tokens=self._in_shard, size=size))
        self._writer = None
        self._in_shard = 0

    def _name(self) -> str:
        return f"{self._prefix}-{len(self.shards):05d}.arrow"

    def _target(self) -> Location:
        return self._directory / self._name()


class PackedTokens:
    """Random access to one split's tokens. Picklable; opens files when they are first needed.

    Args:
        uri: The corpus's directory.
        shards: Its shards in order.
        layout: How they were cut.
    """

    def __init__(self, uri: str, shards: Sequence[Shard], layout: Layout) -> None:
        self.tokens = sum(shard.tokens for shard in shards)
        self._uri = uri
        self._shards = tuple(shards)
        self._layout = layout
        self._directory = locate(uri)
        self._readers: dict[int, tuple[Any, threading.Lock]] = {}
        self._cached: collections.OrderedDict[int, Tokens] = collections.OrderedDict()
        self._capacity = LOCAL_BATCHES if self._directory.is_local else REMOTE_BATCHES
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return PackedTokens, (self._uri, self._shards, self._layout)

    def gather(self, starts: Sequence[int], width: int) -> NDArray[np.int64]:
        """Read a window of `width` tokens from each start.

        Args:
            starts: First token of each window, in [0, tokens).
            width: Tokens per window.

        Returns:
            int64 of shape (len(starts), width); -1 beyond the last token.

        Raises:
            DataError: A shard cannot be read.
        """
        size = self._layout.batch_tokens
        ends = [min(start + width, self.tokens) for start in starts]
        needed = {
            number
            for start, end in zip(starts, ends, strict=True)
            for number in range(start // size, -(-end // size))
        }
        batches = self._batches(needed)
        windows = np.full((len(starts), width), -1, np.int64)
        for window, start, end in zip(windows, starts, ends, strict=True):
            at = start
            while at < end:
                number, offset = divmod(at, size)
                until = min(end, (number + 1) * size)
                window[at - start : until - start] = batches[number][offset : offset + until - at]
                at = until
        return windows

    def _batches(self, numbers: set[int]) -> dict[int, Tokens]:
        """Record batches by number; what is not at hand is read, remotely by several threads."""
        with self._lock:
            found = {number: self._cached[number] for number in numbers & self._cached.keys()}
            for number in found:
                self._cached.move_to_end(number)
        missing = sorted(numbers - found.keys())
        if not missing:
            return found
        if self._directory.is_local or len(missing) == 1:
            read = [self._read(number) for number in missing]
        else:
            with self._lock:
                self._pool = self._pool or ThreadPoolExecutor(READERS, "tidemill-data")
            read = list(self._pool.map(self._read, missing))
        found.update(zip(missing, read, strict=True))
        with self._lock:
            self._cached.update(zip(missing, read, strict=True))
            while len(self._cached) > self._capacity:
                self._cached.popitem(last=False)
        return found

    def _read(self, number: int) -> Tokens:
        per_shard = self._layout.shard_tokens // self._layout.batch_tokens
        shard, batch = divmod(number, per_shard)
        name = self._directory / self._shards[shard].name
        try:
            reader, lock = self._reader(shard)
            with lock:
                return patiently(lambda: reader.get_batch(batch)).column(0).to_numpy()
        except (OSError, pa.ArrowException) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise DataError(
                f"the packed corpus is damaged: cannot read {name}: {reason}; remove "
                f"{self._directory} and start again to have it rebuilt"
            ) from error

    def _reader(self, shard: int) -> tuple[Any, threading.Lock]:
        with self._lock:
            if shard not in self._readers:
                place = self._directory / self._shards[shard].name
                reader = (
                    pa.ipc.open_file(pa.memory_map(place.path))
                    if place.is_local
                    else patiently(
                        lambda: pa.ipc.open_file(place.filesystem.open_input_file(place.path))
                    )
                )
                self._readers[shard] = (reader, threading.Lock())
            return self._readers[shard]
