"""Checksums of blocks: any changed bit is found where it is, and nothing else is."""

from __future__ import annotations

import hashlib
import random

import pytest

from tidemill.checkpoint import blocks
from tidemill.checkpoint.blocks import check_blocks, check_trailer, digests_of, trailer_size
from tidemill.errors import CorruptCheckpoint


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 64)


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 128, 1000])
def test_each_block_has_its_digest(size: int) -> None:
    data = random.Random(size).randbytes(size)
    trailer = digests_of(memoryview(data))
    assert len(trailer) == trailer_size(size)
    for number in range(-(-size // 64)):
        block = data[64 * number :][:64]
        assert trailer[32 * number :][:32] == hashlib.sha256(block).digest()
    check_blocks(memoryview(data), 0, trailer, "file")


def test_blocks_are_compared_where_they_lie() -> None:
    data = random.Random(1).randbytes(300)
    trailer = digests_of(memoryview(data))
    check_blocks(memoryview(data)[128:256], 128, trailer, "file")
    check_blocks(memoryview(data)[256:], 256, trailer, "file")
    with pytest.raises(CorruptCheckpoint, match=r"^file has changed: bytes 64 to 127 do not"):
        check_blocks(memoryview(data)[128:192], 64, trailer, "file")


def test_any_flipped_bit_of_blocks_or_trailer_is_found() -> None:
    draw = random.Random(2)
    data = draw.randbytes(300)
    trailer = digests_of(memoryview(data))
    checksum = hashlib.sha256(trailer).hexdigest()
    check_trailer(trailer, checksum, "file")
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        first = bit // 8 // 64 * 64
        with pytest.raises(CorruptCheckpoint, match=f"bytes {first} to"):
            check_blocks(memoryview(flipped), 0, trailer, "file")
    for bit in range(8 * len(trailer)):
        flipped = bytearray(trailer)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptCheckpoint, match=r"^file has changed: its block checksums"):
            check_trailer(bytes(flipped), checksum, "file")
