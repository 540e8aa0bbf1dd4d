"""Stragglers: ranks that slow down all others, told from what each one measures of itself.

A step takes as long on every rank as on the slowest one, so its time tells nothing. Readings are
taken apart from other ranks and are compared here.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from tidemill.train.pulse import Reading


class Lack(StrEnum):
    """What a straggler is short of."""

    compute = "compute"
    data = "data"


@dataclass(frozen=True, slots=True)
class Straggler:
    """A rank that slows down all others.

    Attributes:
        rank: It.
        what: What it is short of.
        slowdown: For `compute`, how many times as long as the others it takes for the same work;
            for `data`, how many times as long a step takes because of it.
    """

    rank: int
    what: Lack
    slowdown: float


class Stragglers:
    """Compares what ranks measure of themselves, apart from all others.

    A reading already is a median of several measurements. A rank is a straggler when it stays slow
    for twice as many more, so that a busy moment is none.
    """

    RATIO, RECOVERED = 1.5, 1.25
    WORTH = 0.1
    """Part of a step that a wait for data must cost."""
    LASTING = 18
    """Measurements for which it stays slow."""

    def __init__(self) -> None:
        self._number: dict[int, int] = {}
        self._since: dict[tuple[int, Lack], int] = {}
        self._told: set[tuple[int, Lack]] = set()

    def feed(self, readings: Mapping[int, Reading], step_s: float) -> list[Straggler]:
        """Take in the newest readings.

        Args:
            readings: By rank.
            step_s: Seconds that a step takes; 0 if not known.

        Returns:
            Who has become a straggler.
        """
        found: list[Straggler] = []
        for rank, own in readings.items():
            others = [reading for other, reading in readings.items() if other != rank]
            if not others or self._number.get(rank) == own.number:
                continue
            self._number[rank] = own.number
            usual = statistics.median(reading.compute_s for reading in others)
            slow = own.compute_s / usual if usual else 1.0
            found += self._look(rank, Lack.compute, own.number, slow, slow)
            usual = statistics.median(reading.data_s for reading in others)
            excess_s = own.data_s - usual
            ratio = own.data_s / max(usual, 1e-9) if excess_s > self.WORTH * step_s > 0 else 1.0
            slow = step_s / (step_s - excess_s) if excess_s < step_s else math.inf
            found += self._look(rank, Lack.data, own.number, ratio, slow)
        return found

    def _look(
        self, rank: int, what: Lack, number: int, ratio: float, slowdown: float
    ) -> list[Straggler]:
        key = rank, what
        if ratio <= self.RATIO:
            self._since.pop(key, None)
            if ratio < self.RECOVERED:
                self._told.discard(key)
            return []
        since = self._since.setdefault(key, number)
        if number - since < self.LASTING or key in self._told:
            return []
        self._told.add(key)
        return [Straggler(rank, what, slowdown)]
