"""The order of many samples at once: what `order` says of one, over numpy arrays.

A step's *digest* is the sum of the marks of the samples it used. Ranks add up their own, so it
says which samples were really taken, whoever took them and in whatever sequence.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tidemill.data import order

Integers = NDArray[np.int64]
Words = NDArray[np.uint64]


def find_places(keys: Integers, size: int, seed: int) -> Integers:
    """`order.place` of many samples, without their epochs.

    Args:
        keys: Numbers of samples within the run, ascending; int64 of shape (N,), N at least 1.
        size: Samples per epoch.
        seed: The run's seed.

    Returns:
        int64 of shape (N,), each in [0, size).
    """
    places = np.empty_like(keys)
    start = 0
    while start < len(keys):
        epoch = int(keys[start]) // size
        first = epoch * size
        here = slice(start, int(np.searchsorted(keys, first + size)))
        places[here] = permute_all(keys[here] - first, size, order.epoch_key(seed, epoch))
        start = here.stop
    return places


def mark_all(keys: Integers, places: Integers, size: int) -> Integers:
    """`order.mark` of many samples.

    Args:
        keys: Their numbers within the run; int64 of shape (N,).
        places: Which of the corpus's samples they are; of the same shape.
        size: Samples per epoch.

    Returns:
        The same 64 bits as int64 of shape (N,), so that sums wrap around.
    """
    epochs = (keys // size).astype(np.uint64)
    return mix_all(mix_all(epochs + np.uint64(1)) + places.astype(np.uint64)).view(np.int64)


def digest_steps(firsts: ArrayLike, count: int, size: int, seed: int) -> Words:
    """The digests that steps have if they use the samples that the order gives them.

    Args:
        firsts: Number of each step's first sample within the run, ascending by at least `count`;
            of shape (N,).
        count: Samples per step.
        size: Samples per epoch.
        seed: The run's seed.

    Returns:
        uint64 of shape (N,).
    """
    keys = (np.asarray(firsts, np.int64)[:, None] + np.arange(count)).ravel()
    marks = mark_all(keys, find_places(keys, size, seed), size)
    return marks.reshape(-1, count).sum(axis=1).view(np.uint64)


def permute_all(indices: Integers, size: int, key: int) -> Integers:
    """`order.permute` of many indices at once: equal results, a fraction of the time.

    Args:
        indices: int64 of shape (N,), each in [0, size).
        size: As for `order.permute`.
        key: As for `order.permute`.

    Returns:
        int64 of shape (N,).
    """
    rows, columns = (np.uint64(side) for side in order.grid(size))
    keys = [(np.uint64(even), np.uint64(odd)) for even, odd in order.round_keys(key)]
    images = indices.astype(np.uint64)
    walking = np.arange(len(images))
    while len(walking):
        row, column = np.divmod(images[walking], columns)
        for even, odd in keys:
            row = (row + mix_all(column ^ even) % rows) % rows
            column = (column + mix_all(row ^ odd) % columns) % columns
        images[walking] = row * columns + column
        walking = walking[images[walking] >= np.uint64(size)]
    return images.astype(np.int64)


def mix_all(words: Words) -> Words:
    """`order.mix` of an array; unsigned products wrap around as they should."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(order.MIX_1)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(order.MIX_2)
    return words ^ (words >> np.uint64(31))
