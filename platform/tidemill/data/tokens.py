"""Parquet shards of tokens made by anyone: one row per document, a list of integers each.

Rows are decoded a few at a time and checked against the vocabulary while the corpus is surveyed, so
that a bad token is named by file and row before anything is written.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tidemill.data.sources import SourceFile, find_files, open_source
from tidemill.errors import DataError
from tidemill.spec.training import TokensSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

ROWS_AT_ONCE = 256
BUFFER_BYTES = 2**20  # else pyarrow reads all of a file ahead


@dataclass(frozen=True, slots=True)
class TokensDocument:
    """One row.

    Attributes:
        values: Its tokens, uint32.
        hash: sha256 of its tokens as little-endian 32-bit numbers.
    """

    values: NDArray[np.uint32]
    hash: bytes

    @property
    def tokens(self) -> int:
        """Number of its tokens."""
        return len(self.values)

    def pieces(self) -> Iterator[NDArray[np.unsignedinteger]]:
        """Its tokens, in one piece."""
        yield self.values


@dataclass(frozen=True, slots=True)
class TokensSource:
    """The documents of a `TokensSpec`; build with `open_tokens`."""

    files: Sequence[SourceFile]
    vocab: int
    column: str
    byte_level: bool = False

    def documents(self, file: SourceFile) -> Iterator[TokensDocument]:
        """The rows of a file that hold any tokens.

        Raises:
            DataError: The file is not Parquet, lacks the column, or a row is not a list of tokens.
        """
        row = 0
        with open_source(file) as reader:
            parquet = pq.ParquetFile(reader, buffer_size=BUFFER_BYTES, pre_buffer=False)
            self._check_type(file, parquet.schema_arrow)
            for batch in parquet.iter_batches(ROWS_AT_ONCE, columns=[self.column]):
                yield from self._rows(file, batch.column(0), row)
                row += batch.num_rows

    def _check_type(self, file: SourceFile, schema: pa.Schema) -> None:
        """Raise `DataError` unless the column is there once and holds lists of integers."""
        if self.column not in schema.names:
            raise DataError(
                f"data.column: {file.location} has no column {self.column!r} but "
                f"{', '.join(schema.names) or 'none at all'}; set data.column"
            )
        kind = schema.field(self.column).type
        if not _is_list(kind) or not pa.types.is_integer(kind.value_type):
            raise DataError(
                f"data.column: {self.column!r} of {file.location} holds {kind}, not a list of "
                "integers per row; set data.column or write one"
            )

    def _rows(self, file: SourceFile, lists: Any, first_row: int) -> Iterator[TokensDocument]:
        """The documents of one batch of rows, every token checked."""
        if lists.null_count:
            row = first_row + pc.index(lists.is_null(), value=True).as_py()
            raise DataError(
                f"data.paths: row {row} (from 0) of {file.location} is null; give it a list"
            )
        flat = lists.flatten()
        ends = np.cumsum(
            cast("Any", pc).list_value_length(lists).to_numpy(zero_copy_only=False), dtype=np.int64
        )
        if flat.null_count:
            at = pc.index(flat.is_null(), value=True).as_py()
            raise self._bad_token(file, first_row + _row_of(at, ends), "null")
        values = flat.to_numpy()
        if len(values) and (values.min() < 0 or values.max() >= self.vocab):
            at = int(np.flatnonzero((values < 0) | (values >= self.vocab))[0])
            raise self._bad_token(file, first_row + _row_of(at, ends), str(values[at]))
        values = values.astype("<u4")
        content = memoryview(values.tobytes())
        for start, end in itertools.pairwise([0, *ends.tolist()]):
            if end > start:
                digest = hashlib.sha256(content[4 * start : 4 * end]).digest()
                yield TokensDocument(values[start:end], digest)

    def _bad_token(self, file: SourceFile, row: int, token: str) -> DataError:
        return DataError(
            f"data.vocab: row {row} (from 0) of {file.location} holds the token {token}, outside "
            f"[0, {self.vocab}); raise data.vocab or repair the file"
        )


def open_tokens(spec: TokensSpec) -> TokensSource:
    """Find the files of a `TokensSpec`.

    Raises:
        DataError: A path is missing, or a glob or directory has no Parquet files.
        StorageError: A filesystem cannot be reached.
    """
    return TokensSource(find_files(spec.paths, walked="*.parquet"), spec.vocab, spec.column)


def _is_list(kind: pa.DataType) -> bool:
    return (
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


def _row_of(value: int, ends: NDArray[np.int64]) -> int:
    return int(np.searchsorted(ends, value, side="right"))
