"""Checksums of blocks: a reader proves just the bytes it reads, as it reads them.

A file ends with the sha256 of each of its blocks, and the manifest holds the sha256 of that end. So
the chain is as strong as one checksum of all, and the manifest stays small however large the file.
"""

from __future__ import annotations

import hashlib

from tidemill.errors import CorruptCheckpoint

BLOCK = 256 * 2**10
"""Bytes per block, the last one of a file may be shorter; a part of the format, so another value is
another schema. A reader of another layout needs parts of many tensors, and reads whole blocks: with
4 MiB it read, and took, half as much again."""
DIGEST = hashlib.sha256().digest_size


def trailer_size(data: int) -> int:
    """Bytes of the digests of `data` bytes."""
    return -(-data // BLOCK) * DIGEST


def digests_of(data: memoryview) -> bytes:
    """The digest of each block, one after the other."""
    return b"".join(
        hashlib.sha256(data[start : start + BLOCK]).digest() for start in range(0, len(data), BLOCK)
    )


def check_trailer(trailer: bytes, sha256: str, name: str) -> None:
    """Compare the digests at the end of a file with the checksum in the manifest.

    Raises:
        CorruptCheckpoint: They have changed; names the file.
    """
    if hashlib.sha256(trailer).hexdigest() != sha256:
        raise CorruptCheckpoint(f"{name} has changed: its block checksums are not what was written")


def check_blocks(content: memoryview, offset: int, trailer: bytes, name: str) -> None:
    """Compare whole blocks with their digests.

    Args:
        content: The blocks; only the file's last one may be shorter than `BLOCK`.
        offset: Byte of the file at which they begin, a multiple of `BLOCK`.
        trailer: All digests of the file.
        name: The file.

    Raises:
        CorruptCheckpoint: A block has changed; names the file and the bytes.
    """
    for start in range(0, len(content), BLOCK):
        at = (offset + start) // BLOCK * DIGEST
        block = content[start : start + BLOCK]
        if hashlib.sha256(block).digest() != trailer[at : at + DIGEST]:
            first = offset + start
            raise CorruptCheckpoint(
                f"{name} has changed: bytes {first} to {first + len(block) - 1} do not match their "
                "checksum"
            )
