"""Claims: elastic runs on one cluster tell each other what they want, so that none takes all of it.

Each run writes its claim where all can read it, and each computes the same shares. A run above its
share gives workers back, one below it grows into what is free; nobody has to be in charge.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

from tidemill.plan.sizing import Claim, fair_shares
from tidemill.spec.scale import ScaleSpec

RENEW_S = 1.0
YIELD_S = 1.5
"""Seconds for which a run is above its share before it gives something back."""
STALE_S = 15.0
"""Age of a claim whose run is gone, the difference of clocks included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What one run tells the others.

    Attributes:
        run: Its name, unlike any other's.
        least: Fewest workers it goes on with.
        most: Most it has use for.
        weight: Its share beside others.
        held: Workers it has.
        since_s: When it came, seconds since the epoch.
        at_s: When it said so.
    """

    run: str
    least: int
    most: int
    weight: float
    held: int
    since_s: float
    at_s: float


class Claims:
    """One run's part in it.

    Args:
        run: Its name, unlike any other's.
        scale: What it wants.
        write: Puts the run's claim where others read it; empty takes it away.
        read: Gives all runs' claims.
        clock: Seconds since the epoch.
    """

    def __init__(
        self,
        run: str,
        scale: ScaleSpec,
        *,
        write: Callable[[str], None],
        read: Callable[[], Iterable[str]],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._run = run
        self._scale = scale
        self._write = write
        self._read = read
        self._clock = clock
        self._since_s = clock()
        self._told: Told | None = None
        self._above_s: float | None = None

    def most(self, slots: int, capacity: int, held: int) -> int:
        """Most workers the run may have now, its spares included.

        Args:
            slots: Workers it has room for, beside what others hold.
            capacity: Workers it would have room for if nobody else held anything.
            held: Processes it has.
        """
        self._tell(held)
        now_s = self._clock()
        others = [told for told in map(_decode, self._read()) if told.run != self._run]
        living = [told for told in others if now_s - told.at_s < STALE_S]
        everybody = sorted([self._ours(held), *living], key=lambda told: (told.since_s, told.run))
        shares = fair_shares(
            min(capacity, slots + sum(told.held for told in living)),
            {
                told.run: Claim(least=told.least, most=told.most, weight=told.weight)
                for told in everybody
            },
        )
        # Whoever is here already keeps what it cannot do without.
        share = max(shares[self._run], min(held, self._scale.least))
        if share >= held:
            self._above_s = None
            return share
        # What others hold and what they say they do differ for a moment when they change.
        self._above_s = now_s if self._above_s is None else self._above_s
        return share if now_s - self._above_s > YIELD_S else held

    def hold(self, count: int) -> None:
        """Tell the others of processes that are about to start, before they take what is free."""
        if self._told is None or self._told.held < count:
            self._tell(count)

    def _tell(self, held: int) -> None:
        told, now_s = self._told, self._clock()
        if told is None or told.held != held or now_s - told.at_s > RENEW_S:
            self._told = self._ours(held)
            self._write(json.dumps(asdict(self._told)))

    def _ours(self, held: int) -> Told:
        scale = self._scale
        return Told(
            run=self._run,
            least=scale.least,
            most=scale.workers + scale.spares,
            weight=scale.weight,
            held=held,
            since_s=self._since_s,
            at_s=self._clock(),
        )

    def close(self) -> None:
        """Want nothing any more."""
        self._write("")


def _decode(text: str) -> Told:
    return Told(**json.loads(text))
