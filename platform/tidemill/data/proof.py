"""Proof that steps used the samples that the order gives them, from what their log says of each."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from tidemill.data.places import digest_steps

CHUNK_SAMPLES = 2**16


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """All that decides which samples the steps of a history use.

    Attributes:
        seed: The run's.
        count: Samples per step.
        size: Samples per epoch.
    """

    seed: int
    count: int
    size: int


class Doubt(StrEnum):
    """What is not as it should be about the samples of a step, in plain words."""

    silent = "does not tell its samples: an older version took it"
    displaced = "used another range of samples than its number says"
    miscounted = "used another number of samples than a step has"
    strange = "used other samples than the order gives it"


def find_doubts(
    firsts: Sequence[int],
    samples: Sequence[int],
    counts: Sequence[int],
    digests: Sequence[int],
    *,
    order: Order,
    advance: Callable[[int], None] = lambda _: None,
) -> list[tuple[int, Doubt]]:
    """Hold what steps tell of themselves against the order.

    Args:
        firsts: Number of the first sample that each should use, ascending; this and the next three
            are arrays of 64 bits, of shape (N,).
        samples: Samples of the run used after each, as it tells.
        counts: Samples that each used; below 0 if it does not tell.
        digests: Of those samples.
        order: What should have been.
        advance: Told how many samples have been held against it since the last call.

    Returns:
        Positions of the steps that are not as they should be, ascending, and why not.
    """
    right, told = np.asarray(firsts, np.int64), np.asarray(counts, np.int64)
    strange = np.zeros(len(right), np.bool_)

    def look(part: slice) -> int:
        expected = digest_steps(right[part], order.count, order.size, order.seed)
        strange[part] = expected != np.asarray(digests, np.uint64)[part]
        return expected.size * order.count

    parts = list(_parts(len(right), max(1, CHUNK_SAMPLES // order.count)))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for held in (pool.map if len(parts) > 1 else map)(look, parts):
            advance(held)
    doubts: dict[int, Doubt] = {}
    for doubt, wrong in (
        (Doubt.strange, strange),
        (Doubt.miscounted, told != order.count),
        (Doubt.displaced, np.asarray(samples, np.int64) != right + order.count),
        (Doubt.silent, told < 0),
    ):
        doubts |= dict.fromkeys(np.flatnonzero(wrong).tolist(), doubt)
    return sorted(doubts.items())


def _parts(total: int, size: int) -> Iterator[slice]:
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))
