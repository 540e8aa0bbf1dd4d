"""The strategy-free format: what is stored of a tensor, and which bytes of it a reader needs.

A tensor is stored as contiguous row-major ranges, so any split over any number of ranks can be read
by any other: matching the two is interval arithmetic on integers and needs no torch.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter

from tidemill.errors import CorruptCheckpoint


@dataclass(frozen=True, slots=True)
class StoredPiece:
    """A contiguous row-major range of a tensor, and where its bytes are.

    Attributes:
        start: First element, counted in the flattened tensor.
        count: Elements.
        file: Name of the file, beside the manifest.
        offset: Byte of the file at which the first element begins.
    """

    start: int
    count: int
    file: str
    offset: int


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A whole tensor.

    Attributes:
        shape: Its shape; () for a single number.
        dtype: Name of its element type, e.g. `float32`.
        pieces: By `start`; together they hold each element exactly once.
    """

    shape: tuple[int, ...]
    dtype: str
    pieces: tuple[StoredPiece, ...]

    @property
    def numel(self) -> int:
        """Elements of the whole tensor."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Wanted:
    """A range of a tensor that a reader wants.

    Attributes:
        name: The tensor.
        start: First element, counted in the flattened tensor.
        count: Elements.
        itemsize: Bytes per element.
    """

    name: str
    start: int
    count: int
    itemsize: int


@dataclass(frozen=True, slots=True)
class Copy:
    """Bytes of a file that go to one of the wanted ranges.

    Attributes:
        target: Index of the wanted range.
        at: First byte within the wanted range.
        offset: First byte within the file.
        size: Bytes.
    """

    target: int
    at: int
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes of a file to read at once, and the copies they serve.

    Attributes:
        offset: First byte within the file.
        size: Bytes.
        copies: What to copy out of them; each lies within the span.
    """

    offset: int
    size: int
    copies: tuple[Copy, ...]


def find_flaw(pieces: Iterable[StoredPiece], numel: int) -> str:
    """Say where `pieces` leave a gap or overlap, or go past the end of a tensor of `numel`.

    Returns:
        One phrase, or an empty string if the pieces hold each element exactly once.
    """
    reached = 0
    for piece in sorted(pieces, key=attrgetter("start")):
        if piece.start < reached:
            until = min(reached, piece.start + piece.count)
            return f"elements {piece.start} to {until - 1} are held more than once"
        if piece.start > reached:
            return f"elements {reached} to {piece.start - 1} are held by no rank"
        reached = piece.start + piece.count
    if reached < numel:
        return f"elements {reached} to {numel - 1} are held by no rank"
    return f"its pieces reach {reached} of {numel} elements" if reached > numel else ""


def plan_copies(
    wanted: Sequence[Wanted], stored: Mapping[str, StoredTensor]
) -> dict[str, list[Copy]]:
    """Find the bytes of each file that fill the wanted ranges.

    Args:
        wanted: Ranges of tensors that are all in `stored`; they may overlap.
        stored: What a checkpoint holds, pieces by start.

    Returns:
        Copies by file; together they fill each wanted range exactly once.

    Raises:
        CorruptCheckpoint: A wanted range is not held completely.
    """
    plan: dict[str, list[Copy]] = {}
    for target, want in enumerate(wanted):
        pieces = stored[want.name].pieces
        reached, end = want.start, want.start + want.count
        first = bisect.bisect_right(pieces, want.start, key=attrgetter("start")) - 1
        for piece in itertools.islice(pieces, max(first, 0), None):
            until = min(end, piece.start + piece.count)
            if piece.start > reached or reached >= end:
                break
            if until > reached:
                plan.setdefault(piece.file, []).append(
                    Copy(
                        target=target,
                        at=(reached - want.start) * want.itemsize,
                        offset=piece.offset + (reached - piece.start) * want.itemsize,
                        size=(until - reached) * want.itemsize,
                    )
                )
                reached = until
        if reached < end:
            raise CorruptCheckpoint(f"{want.name}: no piece holds element {reached}")
    return plan


def plan_spans(copies: Iterable[Copy], window: int, block: int, gap: int) -> Iterator[Span]:
    """Join the copies of one file into few reads of whole blocks.

    Args:
        copies: Copies out of one file, in any order; those that cross a window are cut.
        window: Most bytes per span, a multiple of `block`; no span crosses a multiple of it.
        block: Spans begin and end at multiples of this many bytes; the file may end before.
        gap: Most unneeded bytes worth reading to save a request.

    Yields:
        Spans by offset; no two overlap.
    """
    held: list[Copy] = []
    start = end = 0
    for copy in sorted(_cut(copies, window), key=attrgetter("offset")):
        first = copy.offset // block * block
        last = -(-(copy.offset + copy.size) // block) * block
        if held and (first // window != start // window or first > end + gap):
            yield Span(start, end - start, tuple(held))
            held = []
        if not held:
            start = end = first
        held.append(copy)
        end = max(end, last)
    if held:
        yield Span(start, end - start, tuple(held))


def _cut(copies: Iterable[Copy], window: int) -> Iterator[Copy]:
    for copy in copies:
        done = 0
        while done < copy.size:
            offset = copy.offset + done
            size = min(copy.size - done, window - offset % window)
            yield Copy(copy.target, copy.at + done, offset, size)
            done += size
