"""Range arithmetic: any partition is read from any other, byte for byte, within bounds."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.checkpoint.fragments import (
    Copy,
    StoredPiece,
    StoredTensor,
    Wanted,
    find_flaw,
    plan_copies,
    plan_spans,
)
from tidemill.errors import CorruptCheckpoint

cuts = st.lists(st.integers(0, 200), max_size=12)


def _bounds(cuts: list[int], numel: int) -> list[tuple[int, int]]:
    """Ranges of a partition of `numel` elements; none is empty."""
    inner = sorted({cut for cut in cuts if 0 < cut < numel})
    return list(zip([0, *inner], [*inner, numel], strict=True)) if numel else []


@given(
    numel=st.integers(0, 200),
    itemsize=st.sampled_from([1, 2, 4, 8]),
    saved=cuts,
    loaded=cuts,
    files=st.integers(1, 4),
    block=st.integers(1, 16),
    blocks=st.integers(1, 4),
    gap=st.integers(0, 32),
    seed=st.integers(),
)
def test_any_partition_is_read_from_any_other(
    *,
    numel: int,
    itemsize: int,
    saved: list[int],
    loaded: list[int],
    files: int,
    block: int,
    blocks: int,
    gap: int,
    seed: int,
) -> None:
    draw = random.Random(seed)
    content = draw.randbytes(numel * itemsize)
    written: dict[str, bytearray] = {f"f{index}": bytearray() for index in range(files)}
    pieces = []
    for start, end in _bounds(saved, numel):
        file = draw.choice(sorted(written))
        written[file] += draw.randbytes(draw.randint(0, 70))
        pieces.append(StoredPiece(start, end - start, file, len(written[file])))
        written[file] += content[start * itemsize : end * itemsize]
    stored = {"w": StoredTensor((numel,), "any", tuple(pieces))}
    wanted = [Wanted("w", a, b - a, itemsize) for a, b in _bounds(loaded, numel)]
    wanted.append(Wanted("w", 0, numel, itemsize))

    targets = [bytearray(want.count * itemsize) for want in wanted]
    filled = [0] * len(wanted)
    for file, copies in plan_copies(wanted, stored).items():
        reached = 0
        window = block * blocks
        for span in plan_spans(copies, window, block, gap):
            assert 0 < span.size <= window
            assert span.offset >= reached, "spans go forward and do not overlap"
            assert (span.offset % block, span.size % block) == (0, 0), "whole blocks"
            read = written[file][span.offset : span.offset + span.size]
            for copy in span.copies:
                begin = copy.offset - span.offset
                assert begin >= 0
                assert begin + copy.size <= span.size
                targets[copy.target][copy.at : copy.at + copy.size] = read[begin:][: copy.size]
                filled[copy.target] += copy.size
            reached = span.offset + span.size
    assert [bytes(t) for t in targets] == [
        content[w.start * itemsize : (w.start + w.count) * itemsize] for w in wanted
    ]
    assert filled == [len(t) for t in targets], "no byte is copied twice"


@given(numel=st.integers(1, 100), cuts=cuts, seed=st.integers())
def test_a_partition_has_no_flaw_and_losing_or_doubling_a_piece_is_one(
    numel: int, cuts: list[int], seed: int
) -> None:
    pieces = [StoredPiece(a, b - a, "f", 0) for a, b in _bounds(cuts, numel)]
    random.Random(seed).shuffle(pieces)
    assert find_flaw(pieces, numel) == ""
    lost = pieces[0]
    assert find_flaw(pieces[1:], numel) == (
        f"elements {lost.start} to {lost.start + lost.count - 1} are held by no rank"
    )
    assert "more than once" in find_flaw([*pieces, lost], numel)


def test_a_flaw_is_named_by_its_elements() -> None:
    first, second = StoredPiece(0, 6, "f", 0), StoredPiece(4, 6, "f", 0)
    assert find_flaw([second, first], 10) == "elements 4 to 5 are held more than once"
    assert find_flaw([first], 5) == "its pieces reach 6 of 5 elements"
    assert find_flaw([], 3) == "elements 0 to 2 are held by no rank"
    assert find_flaw([], 0) == ""


@pytest.mark.parametrize("pieces", [[], [(0, 3)], [(5, 5)], [(0, 3), (4, 6)]])
def test_wanting_what_is_not_stored_is_an_error(pieces: list[tuple[int, int]]) -> None:
    stored = StoredTensor((10,), "any", tuple(StoredPiece(a, n, "f", 0) for a, n in pieces))
    with pytest.raises(CorruptCheckpoint, match=r"w: no piece holds element"):
        plan_copies([Wanted("w", 0, 10, 4)], {"w": stored})


def test_near_copies_share_a_read_and_far_ones_do_not() -> None:
    copies = [Copy(0, 0, 100, 10), Copy(1, 0, 0, 10), Copy(2, 0, 14, 6)]
    spans = [(span.offset, span.size) for span in plan_spans(copies, window=1000, block=1, gap=4)]
    assert spans == [(0, 20), (100, 10)]
