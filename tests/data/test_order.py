"""The order is one-to-one for every size, well mixed, and the same scalar or vectorised."""

from __future__ import annotations

import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.data.order import derive_key, epoch_key, grid, mix, permute, place
from tidemill.data.places import permute_all

keys = st.integers(0, 2**64 - 1)


@given(size=st.integers(1, 700), key=keys)
def test_every_size_is_permuted_one_to_one(size: int, key: int) -> None:
    assert sorted(permute(index, size, key) for index in range(size)) == list(range(size))


def test_small_sizes_one_by_one() -> None:
    for size in range(1, 130):
        assert {permute(index, size, 7) for index in range(size)} == set(range(size))


@given(size=st.integers(1, 2**62), key=keys, data=st.data())
def test_huge_sizes_stay_inside_and_two_indices_do_not_meet(
    size: int, key: int, data: st.DataObject
) -> None:
    one = data.draw(st.integers(0, size - 1))
    other = data.draw(st.integers(0, size - 1))
    images = {permute(one, size, key), permute(other, size, key)}
    assert all(0 <= image < size for image in images)
    assert len(images) == len({one, other})


@given(size=st.one_of(st.integers(1, 50), st.integers(1, 2**62)), key=keys, data=st.data())
def test_arrays_agree_with_the_reference(size: int, key: int, data: st.DataObject) -> None:
    indices = data.draw(st.lists(st.integers(0, size - 1), max_size=20))
    images = permute_all(np.array(indices, np.int64), size, key)
    assert images.tolist() == [permute(index, size, key) for index in indices]


@given(size=st.integers(1, 2**62))
def test_the_grid_is_less_than_a_row_too_large(size: int) -> None:
    rows, columns = grid(size)
    assert size <= rows * columns < size + columns


@pytest.mark.parametrize("size", [1_000, 65_536, 99_991])
def test_neighbours_scatter(size: int) -> None:
    images = permute_all(np.arange(size), size, epoch_key(1, 0))
    gaps = np.abs(np.diff(images)) / size
    # |x - y| of two independent uniform numbers has mean 1/3.
    assert gaps.mean() == pytest.approx(1 / 3, abs=0.03)
    assert np.corrcoef(np.arange(size), images)[0, 1] == pytest.approx(0, abs=0.12)
    # The first half of an epoch visits all parts of the corpus as an honest draw without
    # replacement does: chi-squared per part is 1/2, 0 for a lattice, and large for clumps.
    expected = size / 128
    visits = np.bincount(images[: size // 2] * 64 // size, minlength=64)
    assert 0.2 < ((visits - expected) ** 2 / expected).mean() < 0.9


def test_a_flip_of_a_key_bit_moves_nearly_everything() -> None:
    size = 10_000
    before = permute_all(np.arange(size), size, 0)
    for bit in (0, 17, 63):
        assert (permute_all(np.arange(size), size, 1 << bit) == before).mean() < 0.01


def test_small_sizes_reach_many_orders() -> None:
    orders = {
        tuple(permute(index, 4, epoch_key(0, epoch)) for index in range(4)) for epoch in range(500)
    }
    assert len(orders) == 24


def test_epochs_and_seeds_differ() -> None:
    size = 1_000
    first = [place(index, size, 5) for index in range(3 * size)]
    assert [epoch for epoch, _ in first] == [0] * size + [1] * size + [2] * size
    epochs = [[position for _, position in first[e * size : (e + 1) * size]] for e in range(3)]
    assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
    same = [sum(a == b for a, b in zip(epochs[0], epochs[n], strict=True)) for n in (1, 2)]
    other_seed = [place(index, size, 6)[1] for index in range(size)]
    same.append(sum(a == b for a, b in zip(epochs[0], other_seed, strict=True)))
    assert statistics.mean(same) < 10  # 1 is expected of unrelated permutations


def test_the_order_is_fixed_for_good() -> None:
    """A later version must not reorder a run that this one began."""
    assert [place(index, 10, 0)[1] for index in range(10)] == [4, 5, 0, 7, 3, 6, 1, 9, 8, 2]
    assert permute(123_456_789, 10**12, 42) == 160_053_101_609


def test_what_is_out_of_range_is_refused() -> None:
    for index, size in ((-1, 5), (5, 5), (0, 0)):
        with pytest.raises(ValueError, match="is not in"):
            permute(index, size, 0)
    with pytest.raises(ValueError, match="no sample -1"):
        place(-1, 5, 0)
    with pytest.raises(ValueError, match="no sample 0"):
        place(0, 0, 0)


def test_mix_is_the_published_finaliser() -> None:
    # First output of SplitMix64 seeded with 1234567 (Vigna, splitmix64.c; Rosetta Code).
    assert mix((1234567 + 0x9E3779B97F4A7C15) % 2**64) == 6457827717110365317


def test_keys_of_different_purposes_differ() -> None:
    assert len({derive_key(purpose) for purpose in ("a", "b", "order 0 1", "order 01 ")}) == 4
    assert epoch_key(1, 11) != epoch_key(11, 1)
