"""The order of samples: a keyed permutation per epoch, computed for one index at a time.

A shuffled list would have to be stored, sent and fast-forwarded; a small-domain cipher gives
sample i of a run from (seed, i) alone, in constant time, so a resumed run of any world size goes on
where the last one stopped. Standard library only: `places` repeats it over numpy arrays.
"""

from __future__ import annotations

import functools
import hashlib
import math

MASK = 2**64 - 1
ROUNDS = 8
GOLDEN = 0x9E3779B97F4A7C15
MIX_1 = 0xBF58476D1CE4E5B9
MIX_2 = 0x94D049BB133111EB


def place(index: int, size: int, seed: int) -> tuple[int, int]:
    """Tell which epoch sample `index` of a run falls in, and which of the corpus's samples it is.

    Args:
        index: Number of the sample within the run, from 0 and without end.
        size: Samples per epoch, at least 1.
        seed: The run's seed.

    Returns:
        The epoch, and a position in [0, size) that occurs exactly once in it.

    Raises:
        ValueError: `index` is negative or `size` is below 1.
    """
    if index < 0 or size < 1:
        raise ValueError(f"no sample {index} in epochs of {size}")
    epoch, offset = divmod(index, size)
    return epoch, permute(offset, size, epoch_key(seed, epoch))


def mark(epoch: int, position: int) -> int:
    """A 64-bit word that stands for one use of a sample.

    Sums of marks modulo 2**64 tell apart which samples were used, and how often: two different
    lists have the same sum by accident only, once in 2**64.

    Args:
        epoch: As `place` tells it.
        position: Likewise.
    """
    return mix((mix(epoch + 1) + position) & MASK)


def permute(index: int, size: int, key: int) -> int:
    """Map `index` to its place in the permutation of `range(size)` that `key` selects.

    A Feistel network over a grid of rows × columns cells, just large enough for `size`; an image
    beyond `size` is mapped again until it falls inside (cycle walking), which keeps the map
    one-to-one. The grid exceeds `size` by less than a row, so a second walk is rare.

    Args:
        index: In [0, size).
        size: Number of elements, at least 1 and at most 2**62.
        key: Any 64-bit number; see `epoch_key`.

    Raises:
        ValueError: `index` is outside [0, size).

    Source:
        Black and Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002, methods 2 and 3.
    """
    if not 0 <= index < size:
        raise ValueError(f"index {index} is not in [0, {size})")
    rows, columns = grid(size)
    keys = round_keys(key)
    while True:
        row, column = divmod(index, columns)
        for even, odd in keys:
            row = (row + mix(column ^ even) % rows) % rows
            column = (column + mix(row ^ odd) % columns) % columns
        index = row * columns + column
        if index < size:
            return index


def grid(size: int) -> tuple[int, int]:
    """The smallest nearly square grid (rows, columns) of at least `size` cells."""
    columns = math.isqrt(size - 1) + 1
    return -(-size // columns), columns


@functools.lru_cache(maxsize=64)
def epoch_key(seed: int, epoch: int) -> int:
    """The 64-bit key of an epoch's permutation."""
    return derive_key(f"order {seed} {epoch}")


def derive_key(purpose: str) -> int:
    """A 64-bit key for a purpose, unrelated to that of any other."""
    return int.from_bytes(hashlib.sha256(purpose.encode()).digest()[:8], "little")


@functools.lru_cache(maxsize=64)
def round_keys(key: int) -> tuple[tuple[int, int], ...]:
    """The keys of `ROUNDS` Feistel rounds, in pairs."""
    keys = [mix((key + GOLDEN * (n + 1)) & MASK) for n in range(ROUNDS)]
    return tuple(zip(keys[::2], keys[1::2], strict=True))


def mix(word: int) -> int:
    """Scramble a 64-bit word so that each bit depends on all.

    Source:
        The finaliser of SplitMix64: Steele, Lea and Flood, "Fast Splittable Pseudorandom Number
        Generators", OOPSLA 2014.
    """
    word = ((word ^ (word >> 30)) * MIX_1) & MASK
    word = ((word ^ (word >> 27)) * MIX_2) & MASK
    return word ^ (word >> 31)
