"""Batches: everything once and in order, never more at a time than was said."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.checkpoint.states import make_store, make_tensors, same_pieces, split, whole
from tidemill.checkpoint import content
from tidemill.checkpoint.fragments import Wanted
from tidemill.checkpoint.manifest import committed, read_manifest
from tidemill.checkpoint.ranges import cut_batches, read_ranges
from tidemill.errors import CorruptCheckpoint
from tidemill.spec.progress import Cursor, Fragment, Piece, State, World
from tidemill.storage import locate


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 9), st.sampled_from([1, 2, 8]))),
    st.integers(8, 50),
)
def test_batches_hold_everything_in_order_and_are_full(
    asked: list[tuple[int, int, int]], most: int
) -> None:
    wanted = [Wanted(f"t{at}", start, count, size) for at, (count, start, size) in enumerate(asked)]
    batches = list(cut_batches(wanted, most))
    seen = [
        (index, want.start + at) for batch in batches for index, want in batch
        for at in range(want.count)
    ]  # fmt: skip
    assert seen == [
        (index, want.start + at) for index, want in enumerate(wanted) for at in range(want.count)
    ]
    sizes = [sum(want.count * want.itemsize for _, want in batch) for batch in batches]
    assert all(most - 8 < size <= most for size in sizes[:-1])
    assert all(0 < size <= most for size in sizes[-1:])
    assert all(want == replace_range(wanted[i], want) for batch in batches for i, want in batch)


def replace_range(whole_one: Wanted, part: Wanted) -> Wanted:
    return Wanted(whole_one.name, part.start, part.count, whole_one.itemsize)


@pytest.mark.parametrize("most", [8, 1000, 2**20])
def test_tensors_are_put_together_from_their_ranges(most: int, tmp_path: Path) -> None:
    tensors = make_tensors(1)
    store = make_store(World(), str(tmp_path))
    store.save(split(tensors, 0, 1, "cuts"), Cursor(), {})
    store.finish()
    store.close()
    (place,) = committed(locate(str(tmp_path)))
    manifest = read_manifest(place)
    wanted = [target.wanted for target in content.find_targets(whole(tensors))]
    pieces: dict[str, list[Piece]] = {name: [] for name in tensors}
    for index, want, elements in read_ranges(
        wanted,
        manifest.tensors,
        content.StoredSource(place),
        manifest.files,
        most=most,
        verify=True,
    ):
        assert wanted[index].name == want.name
        assert elements.numel() * elements.element_size() <= most
        pieces[want.name].append(Piece(want.start, elements))
    assert sum(len(held) for held in pieces.values()) > len(wanted) or most > 8
    found = State({n: Fragment(tuple(t.shape), "", tuple(pieces[n])) for n, t in tensors.items()})
    assert same_pieces(found, tensors)
    counts = {name: sum(piece.data.numel() for piece in held) for name, held in pieces.items()}
    assert counts == {name: tensor.numel() for name, tensor in tensors.items()}


def test_damage_is_noticed(tmp_path: Path) -> None:
    tensors = {"param.w": torch.ones(64)}
    store = make_store(World(), str(tmp_path))
    store.save(whole(tensors), Cursor(), {})
    store.finish()
    store.close()
    (place,) = committed(locate(str(tmp_path)))
    file = Path((place / "rank-00000.bin").path)
    raw = bytearray(file.read_bytes())
    raw[9] ^= 1
    file.write_bytes(raw)
    manifest = read_manifest(place)
    ranges = read_ranges(
        [Wanted("param.w", 0, 64, 4)],
        manifest.tensors,
        content.StoredSource(place),
        manifest.files,
        most=2**20,
        verify=True,
    )
    with pytest.raises(CorruptCheckpoint, match="has changed"):
        list(ranges)
