"""Health: which rank holds up a group, told from what all ranks say they are doing.

In a collective everybody waits for the last one, so the rank that stands still is found by
comparison: it came least far. How long is too long follows from the steps so far. Nothing here asks
Ray or a clock; ages are measured where the work is, so the clocks of machines need not agree.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from tidemill.launch.stragglers import Straggler, Stragglers
from tidemill.train.pulse import Phase, Reading

FLOOR_S = 10.0
"""No shorter standstill is a hang: storage, a page fault, a busy machine take their time."""
READ_S = 60.0
"""The same where samples are read: storage that fails for a moment is asked again."""
FACTOR = 10.0
"""A hang lasts this many times as long as a slow step, by which one in twenty takes longer."""
SLOW = 0.95
NEWEST = 64
"""Steps that are looked back at."""
FIRST = 5
"""Times of steps that must be known before they say anything."""
SILENT_S = 3.0
"""A worker and its node that say nothing for so long are gone."""
LONE, EARLY = 5.0, 20.0
"""Times as long if the node still answers, and if the worker may still be compiling."""
PATIENT = frozenset({Phase.starting, Phase.evaluate, Phase.save, Phase.settle, Phase.leaving})
"""Phases whose length no step foretells."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vitals:
    """What a worker tells with every poll.

    Attributes:
        attempt: Number of the group it is in; 0 while it is on its way there.
        step: Step it is in; -1 before the first.
        phase: What it does there.
        lap: How often it has begun that there before.
        age_s: Seconds for which it has been doing that.
        ended_s: Seconds since its training thread ended; 0 while that runs.
        reading: How fast it is by itself; None until that is known.
    """

    attempt: int
    step: int
    phase: Phase
    lap: int = 0
    age_s: float
    ended_s: float = 0.0
    reading: Reading | None = None

    @property
    def position(self) -> tuple[int, int, int]:
        """How far it came; all ranks of a group pass the same positions."""
        return self.step, self.phase.place, self.lap


@dataclass(frozen=True, slots=True)
class Hung:
    """The group stands still.

    Attributes:
        ranks: Those that came least far. If that is all of them, nothing tells who is to blame.
        step: The step they are in.
        phase: What they do there.
        after_s: Seconds for which they have been doing that.
    """

    ranks: tuple[int, ...]
    step: int
    phase: Phase
    after_s: float

    def __str__(self) -> str:
        """For people."""
        who = f"rank {self.ranks[0]} hangs" if len(self.ranks) == 1 else "ranks hang"
        where = f"step {self.step} ({self.phase})" if self.step >= 0 else f"{self.phase}"
        return f"{who} in {where}, {self.after_s:.1f} s without progress"


@dataclass(frozen=True, slots=True)
class Silent:
    """A rank does not answer any more.

    Attributes:
        rank: It.
        after_s: Seconds since it last did.
    """

    rank: int
    after_s: float

    def __str__(self) -> str:
        """For people."""
        return f"rank {self.rank} has not answered for {self.after_s:.1f} s"


Finding = Hung | Silent | Straggler


class Health:
    """Watches the ranks of one run.

    Args:
        hang_s: Seconds without progress that are a hang; 0 judges by the steps so far.
        patience_s: Seconds without progress that are one where steps say nothing: on the way to
            the first of them, in validations and saves. A collective should not wait longer.
        silent_s: Seconds after which a worker is gone whose node does not answer either.
    """

    def __init__(self, hang_s: float, patience_s: float, silent_s: float = SILENT_S) -> None:
        self._hang_s = hang_s
        self._patience_s = patience_s
        self._silent_s = silent_s
        self.begin(0.0)

    def begin(self, now_s: float) -> None:
        """A group begins; its pace is its own."""
        self._began_s = now_s
        self._heard: dict[int, tuple[float, Vitals]] = {}
        self._told: set[int] = set()
        self._times: deque[float] = deque(maxlen=NEWEST)
        self._front = (-1, now_s)
        self._fed_s, self._odd_s = now_s, 0.0
        self._stragglers = Stragglers()

    @property
    def step_s(self) -> float:
        """Seconds that a step takes, validations and saves left out; 0 if not known."""
        return statistics.median(self._times) if self._times else 0.0

    def bound_s(self, phase: Phase) -> float:
        """Seconds without progress after which a group hangs whose last rank is in `phase`."""
        slow_s = _quantile(self._times, SLOW) if self._times else 0.0
        floor_s = READ_S if phase is Phase.data else FLOOR_S
        steady_s = self._hang_s or max(floor_s, FACTOR * slow_s)
        if phase in PATIENT or len(self._times) < FIRST:
            return max(self._patience_s, steady_s)
        return steady_s

    def feed(
        self,
        vitals: Mapping[int, Vitals | None],
        now_s: float,
        unreachable: Collection[int] = (),
    ) -> list[Finding]:
        """Take in what the ranks told; called several times a second.

        Args:
            vitals: By rank, None for one that did not answer in time.
            now_s: The time, by a clock that never goes back.
            unreachable: Ranks whose node does not answer either.

        Returns:
            What is new. A hang and a silence are told once in a group, a straggler again when it
            had recovered.
        """
        told = {rank: said for rank, said in vitals.items() if said is not None}
        self._heard |= {rank: (now_s, said) for rank, said in told.items()}
        self._time(told, now_s)
        found: list[Finding] = [*self._silent(vitals.keys() - told.keys(), now_s, unreachable)]
        if len(self._heard) == len(vitals) and not self._told:
            found += self._hung(now_s)
        readings = {rank: said.reading for rank, said in told.items() if said.reading is not None}
        return [*found, *self._stragglers.feed(readings, self.step_s)]

    def _silent(
        self, mute: Collection[int], now_s: float, unreachable: Collection[int]
    ) -> list[Silent]:
        found: list[Silent] = []
        for rank in sorted(set(mute) - self._told):
            at_s = self._heard[rank][0] if rank in self._heard else self._began_s
            lone = LONE if len(self._times) >= FIRST else EARLY
            if now_s - at_s > self._silent_s * (1 if rank in unreachable else lone):
                self._told.add(rank)
                found.append(Silent(rank, now_s - at_s))
        return found

    def _hung(self, now_s: float) -> list[Hung]:
        """Whoever came least far, if nobody got any further for too long."""
        known = {rank: _aged(said, now_s - at_s) for rank, (at_s, said) in self._heard.items()}
        at_work = {
            rank: said
            for rank, said in known.items()
            if not said.ended_s and said.phase is not Phase.parked
        }
        if not at_work:
            return []
        still_s = min(said.ended_s or said.age_s for said in known.values())
        last = min(at_work.values(), key=lambda said: said.position)
        if still_s <= self.bound_s(last.phase):
            return []
        ranks = [rank for rank, said in at_work.items() if said.position == last.position]
        self._told |= set(ranks)
        after_s = max(at_work[rank].age_s for rank in ranks)
        return [Hung(tuple(sorted(ranks)), last.step, last.phase, after_s)]

    def _time(self, told: Mapping[int, Vitals], now_s: float) -> None:
        """Note how long steps take, without the part of them that no step foretells."""
        since_s, self._fed_s = now_s - self._fed_s, now_s
        if any(said.phase in PATIENT for said in told.values()):
            self._odd_s += since_s
        step = min((said.step for said in told.values() if said.step >= 0), default=-1)
        if step <= self._front[0]:
            return
        before, at_s = self._front
        if before >= 0:
            self._times.append(max(0.0, now_s - at_s - self._odd_s) / (step - before))
        self._front, self._odd_s = (step, now_s), 0.0


def _aged(said: Vitals, seconds: float) -> Vitals:
    """What a rank would say so much later, if nothing has happened to it."""
    ended_s = said.ended_s + seconds if said.ended_s else 0.0
    return replace(said, age_s=said.age_s + seconds, ended_s=ended_s)


def _quantile(values: Collection[float], part: float) -> float:
    """The smallest of `values` that at least such a part of them does not exceed."""
    return sorted(values)[math.ceil(part * len(values)) - 1]
