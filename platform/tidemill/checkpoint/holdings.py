"""Which process holds what of a run's state in memory, and what follows from it; pure arithmetic.

A *version* is the state after one step of one attempt. It lies in shares, one for each rank that
trained it, or in a single one where every rank has all of it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple


class Key(NamedTuple):
    """Names a share of a version.

    Attributes:
        attempt: The attempt that made it.
        step: Optimizer steps taken or skipped by then.
        number: Which share, from 0.
        of: Shares of the version.
    """

    attempt: int
    step: int
    number: int
    of: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """What one process knows of a run.

    Attributes:
        shares: What it holds.
        attempt: The newest attempt that it trained in; 0 if in none.
        step: Steps taken or skipped when that attempt told it for the last time.
        vain: Attempts after that one that it took part in, and that ended before they trained.
    """

    shares: Sequence[Key] = ()
    attempt: int = 0
    step: int = 0
    vain: Sequence[int] = ()

    def plain(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "shares": [list(key) for key in self.shares],
            "attempt": self.attempt,
            "step": self.step,
            "vain": list(self.vain),
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Inventory:
        """Take back what `plain` returned."""
        return cls(**{**plain, "shares": [Key(*key) for key in plain["shares"]]})


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    """A version of which every share is held.

    Attributes:
        attempt: The attempt that made it.
        step: Steps taken or skipped by then.
        holders: By number of the share, the ranks that hold it.
        newest: Whether the run never got further, so that no checkpoint can be newer.
    """

    attempt: int
    step: int
    holders: tuple[tuple[int, ...], ...]
    newest: bool

    def key(self, number: int) -> Key:
        """The name of a share."""
        return Key(self.attempt, self.step, number, len(self.holders))


def find_whole(told: Sequence[Inventory], attempt: int) -> Whole | None:
    """Find the newest version that a group can go on from.

    Versions of an attempt count only if no later one has trained: that one may have gone on from an
    earlier state, and what it did since would be forgotten and told all the same.

    Args:
        told: What each rank of the group knows.
        attempt: The attempt that begins.

    Returns:
        It; None if some share of each version is held by nobody, or a later attempt has trained.
    """
    vain = {number for inventory in told for number in inventory.vain}
    held: dict[tuple[int, int, int], dict[int, list[int]]] = {}
    for rank, inventory in enumerate(told):
        for key in inventory.shares:
            shares = held.setdefault((key.attempt, key.step, key.of), {})
            shares.setdefault(key.number, []).append(rank)
    reached = max((inventory.attempt, inventory.step) for inventory in told)
    for (made, step, of), shares in sorted(held.items(), reverse=True):
        later = range(made + 1, attempt)
        if made < attempt and len(shares) == of and vain.issuperset(later):
            holders = tuple(tuple(shares[number]) for number in range(of))
            return Whole(attempt=made, step=step, holders=holders, newest=reached <= (made, step))
    return None


def choose_partners(nodes: Sequence[str]) -> list[int]:
    """Say which rank holds the copy of each rank's share: one on another node, where possible.

    Ranks of one node stand side by side in a ring, and each takes the rank that is as many places
    further as the fullest node has ranks.

    Args:
        nodes: Name of each rank's node, by rank.

    Returns:
        By rank, who holds its copy; each rank occurs once.
    """
    ring = sorted(range(len(nodes)), key=lambda rank: (nodes.index(nodes[rank]), rank))
    fullest = max(nodes.count(node) for node in nodes)
    shift = fullest if fullest < len(ring) else 1
    partners = [0] * len(ring)
    for place, rank in enumerate(ring):
        partners[rank] = ring[(place + shift) % len(ring)]
    return partners


def plan_moves(stays: Sequence[bool], held: Sequence[Iterable[int]]) -> list[tuple[int, int, int]]:
    """Say who gives what to whom, so that those who stay hold every share.

    Args:
        stays: Whether each rank stays.
        held: The numbers of the shares that each rank holds.

    Returns:
        (share, giver, taker), spread evenly over the takers; nothing if nobody stays, or all of it
        is held by those who do.
    """
    staying = [rank for rank, one in enumerate(stays) if one]
    safe = {number for rank in staying for number in held[rank]}
    givers: dict[int, int] = {}
    for rank, numbers in enumerate(held):
        for number in numbers:
            if number not in safe:
                givers.setdefault(number, rank)
    takers = itertools.cycle(staying)
    return [(number, givers[number], next(takers)) for number in sorted(givers) if staying]
