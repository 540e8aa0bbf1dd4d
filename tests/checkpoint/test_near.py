from __future__ import annotations

import io

import pytest

from tidemill.checkpoint.near import ChunkReader
from tidemill.errors import StorageError

CONTENT = bytes(range(100))


class Shelf:
    """Chunks of 32 bytes; remembers which ones were fetched."""

    def __init__(self) -> None:
        self.fetched: list[int] = []

    def fetch(self, number: int) -> bytes:
        self.fetched.append(number)
        return CONTENT[32 * number : 32 * number + 32]


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


@pytest.fixture
def reader(shelf: Shelf) -> ChunkReader:
    return ChunkReader(len(CONTENT), 32, shelf.fetch)


def test_all_of_it_is_read_each_chunk_once(reader: ChunkReader, shelf: Shelf) -> None:
    assert io.BufferedReader(reader).read() == CONTENT
    assert shelf.fetched == [0, 1, 2, 3]


def test_a_range_costs_its_chunks(reader: ChunkReader, shelf: Shelf) -> None:
    buffer = bytearray(40)
    assert reader.seek(30) == 30
    size = 0
    while size < len(buffer) and (got := reader.readinto(memoryview(buffer)[size:])):
        size += got
    assert bytes(buffer) == CONTENT[30:70]
    assert shelf.fetched == [0, 1, 2]
    reader.seek(64)
    assert reader.readinto(bytearray(4)) == 4
    assert shelf.fetched == [0, 1, 2]


def test_seeking_is_as_of_any_file(reader: ChunkReader, shelf: Shelf) -> None:
    assert reader.seekable()
    assert reader.readable()
    assert reader.seek(-4, io.SEEK_END) == 96
    assert reader.read(10) == CONTENT[96:]
    assert reader.tell() == 100
    assert reader.read(1) == b""
    assert reader.seek(-50, io.SEEK_CUR) == 50
    assert reader.seek(200) == 200
    assert reader.read(1) == b""
    assert shelf.fetched == [3]


def test_wide_elements_are_filled_by_bytes(reader: ChunkReader) -> None:
    buffer = memoryview(bytearray(32)).cast("q")
    assert reader.readinto(buffer) == 32
    assert buffer.tobytes() == CONTENT[:32]


def test_what_fetching_raises_is_heard_and_may_be_tried_again() -> None:
    attempts: list[int] = []

    def fetch(number: int) -> bytes:
        attempts.append(number)
        if len(attempts) == 1:
            raise StorageError("nobody holds it")
        return CONTENT[:32]

    reader = ChunkReader(32, 32, fetch)
    with pytest.raises(StorageError, match="nobody holds it"):
        reader.readinto(bytearray(8))
    assert reader.read() == CONTENT[:32]
    assert attempts == [0, 0]
