"""How many workers, and where: pure decisions about places, without Ray and without a clock.

A group that stands still costs more than a small one that trains. So a new group takes the
processes that are warm, if they are enough, and whoever is still starting joins later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from tidemill.launch.nodes import Node

Formation = dict[str, int]
"""Workers by node."""


class Cause(StrEnum):
    """Why a group ended, and another one began."""

    start = "start"
    kill = "kill"
    error = "error"
    hang = "hang"
    drain = "drain"
    grow = "grow"
    share = "share"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A node, as far as one run is concerned.

    Attributes:
        node: Its id.
        slots: Workers of this run that fit there, those that are there already included.
        warm: Processes of this run that are there and would join at once, or train already.
        leaving: Whether it was announced that the node goes.
    """

    node: str
    slots: int
    warm: int = 0
    leaving: bool = False


@dataclass(frozen=True, slots=True)
class Reform:
    """A group that is to end at the next boundary of a step, for another one.

    Attributes:
        formation: The other one.
        cause: Why.
    """

    formation: Formation
    cause: Cause


def size_of(formation: Mapping[str, int]) -> int:
    """Workers in all."""
    return sum(formation.values())


def places_of(
    nodes: Iterable[Node],
    current: Mapping[str, int],
    pooled: Mapping[str, int],
    warm: Mapping[str, int],
) -> list[Place]:
    """What nodes offer, those with processes first, so that these are chosen first.

    Args:
        nodes: All that can be used.
        current: Workers of the group by node.
        pooled: Processes in no group by node.
        warm: How many of these would join at once.
    """
    places = [
        Place(
            node=node.id,
            slots=node.slots,
            warm=warm.get(node.id, 0) + current.get(node.id, 0),
            leaving=node.leaves_at_s is not None,
        )
        for node in nodes
    ]

    def order(place: Place) -> tuple[int, int, int, str]:
        key = place.node
        return -current.get(key, 0), -place.warm, -pooled.get(key, 0), key

    return sorted(places, key=order)


def form(places: Iterable[Place], least: int, most: int) -> Formation | None:
    """Choose a group when there is none.

    Args:
        places: All that are known.
        least: Fewest workers the run goes on with.
        most: Most it may have.

    Returns:
        Warm processes alone if they are enough, else as many workers as there are slots for; None
        if those are too few.
    """
    staying = [place for place in places if not place.leaving]
    warm = _fill({place.node: min(place.warm, place.slots) for place in staying}, most)
    if size_of(warm) >= least:
        return warm
    return _with_cold(warm, staying, least, most)


def _with_cold(
    warm: Formation, staying: Iterable[Place], least: int, most: int
) -> Formation | None:
    free = {place.node: place.slots - warm.get(place.node, 0) for place in staying}
    cold = _fill(free, most - size_of(warm))
    nodes = {**warm, **cold}
    found = {node: warm.get(node, 0) + cold.get(node, 0) for node in nodes}
    return found if size_of(found) >= least else None


def reform(
    places: Iterable[Place],
    current: Mapping[str, int],
    least: int,
    most: int,
    pays: Callable[[int], bool],
) -> Reform | None:
    """Choose another group for one that trains.

    Args:
        places: All that are known; those of the group among them, unless they are gone.
        current: The group's workers by node.
        least: Fewest workers the run goes on with.
        most: Most it may have now, its share of the cluster.
        pays: Whether growing to so many workers would gain more than the change costs.

    Returns:
        None if the group is as it should be, or cannot be as it should.
    """
    known = {place.node: place for place in places}
    if not current.keys() <= known.keys():
        return None  # a node does not answer: either it will, or the group fails
    leaving = {node for node in current if known[node].leaving}
    staying = {node: count for node, count in current.items() if node not in leaving}
    spare = {
        node: min(place.warm, place.slots) - staying.get(node, 0)
        for node, place in known.items()
        if not place.leaving
    }
    kept = _fill(staying, most)
    joining = _fill(spare, most - size_of(kept))
    target = {
        node: kept.get(node, 0) + joining.get(node, 0) for node in dict.fromkeys([*kept, *joining])
    }
    size = size_of(target)
    if size < least or size == 0:
        return None
    if leaving:
        return Reform(target, Cause.drain)
    if size < size_of(current):
        return Reform(target, Cause.share)
    if size > size_of(current) and pays(size):
        return Reform(target, Cause.grow)
    return None


def ahead(
    places: Iterable[Place],
    current: Mapping[str, int],
    most: int,
    spares: int,
    pays: Callable[[int], bool],
) -> Formation:
    """Processes to start before they are needed, by node.

    Args:
        places: All that are known.
        current: The group's workers by node.
        most: Most workers the run may have now.
        spares: Processes that it may have beside them.
        pays: As for `reform`.
    """
    staying = [place for place in places if not place.leaving]
    here = {place.node for place in staying}
    ours = sum(max(place.warm, current.get(place.node, 0)) for place in staying)
    free = {
        place.node: place.slots - max(place.warm, current.get(place.node, 0)) for place in staying
    }
    size = min(most, ours + sum(free.values()))
    whole = all(node in here for node in current)
    grows = size > ours and (not whole or pays(size))
    return _fill(free, (size if grows else min(ours, most)) + spares - ours)


def _fill(room: Mapping[str, int], most: int) -> Formation:
    """Take from `room` in its order, at most `most` in all."""
    found: Formation = {}
    for node, count in room.items():
        taken = min(count, most - size_of(found))
        if taken > 0:
            found[node] = taken
    return found
