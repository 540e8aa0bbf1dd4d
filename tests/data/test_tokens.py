"""Parquet rows become documents; a wrong column, type or token is named by file and row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tidemill.data import tokens
from tidemill.data.sources import SourceFile
from tidemill.data.tokens import TokensSource, open_tokens
from tidemill.errors import DataError
from tidemill.spec.training import TokensSpec

TYPES = [
    pa.list_(pa.uint8()),
    pa.list_(pa.int16()),
    pa.list_(pa.int64()),
    pa.list_(pa.uint64()),
    pa.large_list(pa.uint16()),
]


def write(
    path: Path, rows: list[Any], kind: pa.DataType | None = None, name: str = "tokens"
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    column = pa.array(rows, kind or pa.list_(pa.int32()))
    pq.write_table(pa.table({"id": pa.array(range(len(rows))), name: column}), path)


def read(path: Path, *, vocab: int = 100, column: str = "tokens") -> list[list[int]]:
    source = open_tokens(TokensSpec(paths=[str(path)], vocab=vocab, column=column))
    return [row for file in source.files for row in rows_of(source, file)]


def rows_of(source: TokensSource, file: SourceFile) -> list[list[int]]:
    found: list[list[int]] = []
    for document in source.documents(file):
        found.append(np.concatenate(list(document.pieces())).tolist())
        assert document.tokens == len(found[-1])
    return found


@pytest.mark.parametrize("kind", TYPES, ids=str)
def test_lists_of_any_integers(tmp_path: Path, kind: pa.DataType) -> None:
    write(tmp_path / "a.parquet", [[1, 2, 3], [99]], kind)
    assert read(tmp_path / "a.parquet") == [[1, 2, 3], [99]]


def test_lists_of_fixed_size(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", [[1, 2], [3, 4]], pa.list_(pa.int32(), 2))
    assert read(tmp_path / "a.parquet") == [[1, 2], [3, 4]]


def test_empty_rows_hold_no_document(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", [[], [5, 6], [], [7], []])
    assert read(tmp_path / "a.parquet") == [[5, 6], [7]]


def test_rows_are_read_some_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "ROWS_AT_ONCE", 3)
    rows = [[n, n + 1] for n in range(10)]
    write(tmp_path / "a.parquet", rows)
    assert read(tmp_path / "a.parquet") == rows


def test_a_file_is_not_held_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    noise = np.random.default_rng(0).integers(0, 2**31, 4_000_000, dtype=np.int32)
    ends = pa.array(np.arange(0, len(noise) + 1, 100, dtype=np.int32))
    lists = pa.ListArray.from_arrays(ends, pa.array(noise))
    pq.write_table(pa.table({"tokens": lists}), path, row_group_size=10**6)
    assert path.stat().st_size > 15 * 10**6
    source = open_tokens(TokensSpec(paths=[str(path)], vocab=2**31))
    before = pa.total_allocated_bytes()
    held = [pa.total_allocated_bytes() - before for _ in source.documents(source.files[0])]
    assert len(held) == 40_000
    assert max(held) < 8 * 10**6


def test_a_directory_means_its_parquet_files(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", [[1]])
    write(tmp_path / "in/b.parquet", [[2]])
    (tmp_path / "_SUCCESS").touch()
    assert read(tmp_path) == [[1], [2]]
    assert read(tmp_path / "*.parquet") == [[1]]


def test_another_column(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", [[1]], name="input_ids")
    assert read(tmp_path / "a.parquet", column="input_ids") == [[1]]


def test_the_hash_is_of_the_tokens_not_of_their_type(tmp_path: Path) -> None:
    hashes = set()
    for n, kind in enumerate(TYPES):
        write(tmp_path / f"{n}.parquet", [[1, 2, 3]], kind)
        source = open_tokens(TokensSpec(paths=[str(tmp_path / f"{n}.parquet")], vocab=10))
        hashes.update(document.hash for document in source.documents(source.files[0]))
    assert len(hashes) == 1


def test_a_missing_column_is_named_with_those_there_are(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", [[1]], name="text")
    with pytest.raises(
        DataError, match=r"data\.column: .*a\.parquet has no column 'tokens' but id, text"
    ):
        read(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    ("rows", "kind"),
    [
        ([1, 2], pa.int32()),
        (["a"], pa.string()),
        ([[0.5]], pa.list_(pa.float32())),
        ([["a"]], pa.list_(pa.string())),
    ],
)
def test_a_wrong_type_is_named(tmp_path: Path, rows: list[Any], kind: pa.DataType) -> None:
    write(tmp_path / "a.parquet", rows, kind)
    with pytest.raises(DataError, match=r"data\.column: 'tokens' of .*a\.parquet holds ") as caught:
        read(tmp_path / "a.parquet")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("bad", [100, 2**31 - 1, -1])
@pytest.mark.parametrize("rows_at_once", [1, 2, 100])
def test_a_token_out_of_range_is_named_by_file_and_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: int, rows_at_once: int
) -> None:
    monkeypatch.setattr(tokens, "ROWS_AT_ONCE", rows_at_once)
    write(tmp_path / "a.parquet", [[0, 99], [], [1], [2, bad, 3], [4]])
    expected = (
        rf"data\.vocab: row 3 \(from 0\) of .*a\.parquet holds the token {bad}, outside \[0, 100\)"
    )
    with pytest.raises(DataError, match=expected):
        read(tmp_path / "a.parquet")


def test_a_token_beyond_64_bits_of_sign_is_out_of_range(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", [[2**64 - 1]], pa.list_(pa.uint64()))
    with pytest.raises(DataError, match="holds the token 18446744073709551615"):
        read(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([[1], [2], None], r"row 2 \(from 0\) of .* is null"),
        ([[1], [], [2, None]], r"row 2 \(from 0\) of .* holds the token null"),
    ],
)
def test_nulls_are_named(tmp_path: Path, rows: list[Any], expected: str) -> None:
    write(tmp_path / "a.parquet", rows)
    with pytest.raises(DataError, match=expected):
        read(tmp_path / "a.parquet")


def test_what_is_not_parquet_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_text("tide")
    with pytest.raises(DataError, match=r"data\.paths: cannot read .*a\.parquet") as caught:
        read(tmp_path / "a.parquet")
    assert "\n" not in str(caught.value)


def test_a_directory_without_parquet_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    with pytest.raises(DataError, match=r"holds no \*\.parquet files"):
        read(tmp_path)
