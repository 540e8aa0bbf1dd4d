"""Two checkpoints side by side, tensor by tensor: what differs, how much, and where it is equal.

Both are read range by range and proven as they are read, whatever worlds and strategies saved them,
so memory does not grow with the model. Equal means bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import inf, isfinite

import torch
from torch import Tensor

from tidemill.checkpoint import content
from tidemill.checkpoint.content import StoredSource
from tidemill.checkpoint.fragments import StoredTensor, Wanted
from tidemill.checkpoint.inspect import Held, manifest_of
from tidemill.checkpoint.manifest import Manifest
from tidemill.checkpoint.ranges import read_ranges
from tidemill.errors import CheckpointError, CorruptCheckpoint

BATCH = 2**26
"""Bytes read at once of either side."""
PART = 2**20
"""Elements compared at once."""

_QUICK = {torch.float64, torch.float32, torch.bfloat16, torch.float16}
"""Element types in which the largest can be found without making others of them."""
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(slots=True, kw_only=True)
class Difference:
    """How two tensors of one name, shape and type differ.

    Attributes:
        name: Of the tensor.
        elements: It has.
        differing: Elements whose bits differ.
        largest: The largest absolute difference; infinite where just one side is not finite.
        magnitude: The largest finite absolute value on either side.
    """

    name: str
    elements: int
    differing: int = 0
    largest: float = 0.0
    magnitude: float = 0.0

    @property
    def relative(self) -> float:
        """The largest difference, as a share of the largest value on either side."""
        return self.largest / self.magnitude if self.magnitude else self.largest


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What came out.

    Attributes:
        only_left: Tensors that the first checkpoint alone has.
        only_right: Tensors that the second alone has.
        unlike: (name, kind in the first, kind in the second) of tensors that cannot be compared.
        compared: All others, by name.
    """

    only_left: list[str]
    only_right: list[str]
    unlike: list[tuple[str, str, str]]
    compared: list[Difference]

    @property
    def differing(self) -> list[Difference]:
        """Those of the compared that differ, the worst first."""
        differing = [held for held in self.compared if held.differing]
        return sorted(differing, key=lambda held: (-held.relative, -held.largest, held.name))

    @property
    def bit_equal(self) -> bool:
        """Whether both hold the same tensors, bit for bit."""
        return not (self.only_left or self.only_right or self.unlike or self.differing)


def compared_bytes(left: Held, right: Held) -> int:
    """Bytes of either side that `compare` will compare."""
    common = _common(manifest_of(left), manifest_of(right))
    return sum(want.count * want.itemsize for want in common)


def compare(left: Held, right: Held, advance: Callable[[int], None]) -> Comparison:
    """Compare the tensors of two checkpoints.

    Args:
        left: The first.
        right: The second.
        advance: Called with the number of bytes of either side that were compared, now and then.

    Raises:
        CheckpointError: One of them is not whole, or cannot be read; says which.
    """
    kinds, others = manifest_of(left).tensors, manifest_of(right).tensors
    wanted = _common(manifest_of(left), manifest_of(right))
    found = [Difference(name=want.name, elements=want.count) for want in wanted]
    streams = [_read_proven(held, wanted) for held in (left, right)]
    for (index, want, mine), (_, _, theirs) in zip(*streams, strict=True):
        _note(found[index], mine, theirs)
        advance(want.count * want.itemsize)
    return Comparison(
        only_left=sorted(kinds.keys() - others.keys()),
        only_right=sorted(others.keys() - kinds.keys()),
        unlike=[
            (name, _describe(kinds[name]), _describe(others[name]))
            for name in sorted(kinds.keys() & others.keys())
            if _describe(kinds[name]) != _describe(others[name])
        ],
        compared=found,
    )


def _common(left: Manifest, right: Manifest) -> list[Wanted]:
    """All of each tensor that both sides hold in the same shape and type."""
    return [
        Wanted(name, 0, held.numel, content.dtype_of(held.dtype).itemsize)
        for name, held in sorted(left.tensors.items())
        if name in right.tensors and _describe(held) == _describe(right.tensors[name])
    ]


def _describe(held: StoredTensor) -> str:
    return f"{held.dtype} {list(held.shape)}"


def _read_proven(held: Held, wanted: Sequence[Wanted]) -> Iterator[tuple[int, Wanted, Tensor]]:
    source, seen = StoredSource(held.place), manifest_of(held)
    try:
        content.check_sizes(source, seen.files)
        yield from read_ranges(wanted, seen.tensors, source, seen.files, most=BATCH, verify=True)
    except CorruptCheckpoint as error:
        raise CheckpointError(
            f"step: {held.place.name} is not whole ({error}); compare with another"
        ) from error


def _note(found: Difference, mine: Tensor, theirs: Tensor) -> None:
    """Add what a range of a tensor shows."""
    bits = _BITS[mine.dtype.itemsize]
    for one, other in zip(mine.split(PART), theirs.split(PART), strict=True):
        found.magnitude = max(found.magnitude, _magnitude(one))
        same = one.view(bits) == other.view(bits)
        if same.all():
            continue
        found.magnitude = max(found.magnitude, _magnitude(other))
        found.differing += int((~same).sum())
        left, right = one.double(), other.double()
        gaps = (left - right).abs_()
        # Infinities of one sign, and whatever is no number on both sides, are no distance apart.
        gaps[(left == right) | (left.isnan() & right.isnan())] = 0.0
        found.largest = max(found.largest, float(gaps.nan_to_num_(nan=inf, posinf=inf).max()))


def _magnitude(part: Tensor) -> float:
    """The largest finite absolute value."""
    plain = part if part.dtype in _QUICK else part.double()
    low, high = plain.aminmax()
    size = max(-float(low), float(high))
    return (
        size
        if isfinite(size)
        else float(plain.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).abs_().max())
    )
