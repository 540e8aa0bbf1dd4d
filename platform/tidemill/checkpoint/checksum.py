"""Checksum of a state that does not depend on how it is cut over ranks.

The bits of each element, as an integer, times an odd factor of the element's own, added up modulo
2**64. So the sums of ranks that tile a state add up to that of the whole; whatever changes in one
element changes it for certain, and elements that changed places do but for one chance in 2**32 or
less.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from tidemill.checkpoint.content import dtype_of, find_targets
from tidemill.checkpoint.fragments import StoredTensor
from tidemill.spec.progress import State

MODULUS = 2**64
CHUNK = 2**22
"""Elements at a time: they take 24 bytes each meanwhile."""
FACTOR = -7046029254386353131
"""2**64 over the golden ratio, as a signed number: neighbours get factors far apart."""
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def add_up(sums: list[int]) -> int:
    """Checksum of what several ranks hold, each element once."""
    return sum(sums) % MODULUS


def checksum(state: State) -> int:
    """Checksum of a state's live pieces, on the device that they are on."""
    return add_up(
        [
            _sum(target.wanted.name, target.wanted.start, target.memory, target.wanted.itemsize)
            for target in find_targets(state)
        ]
    )


def checksum_stored(
    tensors: Mapping[str, StoredTensor], read: Callable[[str, int, int], Tensor | None]
) -> int:
    """Checksum of stored pieces.

    Args:
        tensors: Where they are.
        read: Gives the bytes of (file, offset, size); None for what somebody else adds.
    """
    sums: list[int] = []
    for name, tensor in tensors.items():
        itemsize = dtype_of(tensor.dtype).itemsize
        for piece in tensor.pieces:
            content = read(piece.file, piece.offset, piece.count * itemsize)
            if content is not None:
                sums.append(_sum(name, piece.start, content, itemsize))
    return add_up(sums)


def _sum(name: str, start: int, content: Tensor, itemsize: int) -> int:
    """Sum over a contiguous range of a tensor, given as uint8."""
    elements = content.view(INTEGERS[itemsize])
    begin = start + (zlib.crc32(name.encode()) << 31)
    total = 0
    for at in range(0, elements.numel(), CHUNK):
        bits = elements[at : at + CHUNK]
        first = begin + at
        factors = torch.arange(first, first + bits.numel(), device=bits.device)
        factors.mul_(FACTOR).bitwise_or_(1)
        total += int(factors.mul_(bits).sum())
    return total
