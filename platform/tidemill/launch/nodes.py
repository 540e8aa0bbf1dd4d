"""Which nodes a run could use right now: alive, answering, with the labels it asks for.

Ray calls a dead node alive for seconds. A connection to its raylet's port is refused at once, so
each look asks the raylets themselves.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

PROBE_S = 0.3
"""Seconds a raylet has to accept a connection."""
PROBES = 16
ENOUGH = 1e-6

_SET = re.compile(r"(!?)in\((.*)\)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A node that answers.

    Attributes:
        id: Ray's.
        address: Of its raylet.
        port: Of its raylet.
        slots: Workers that fit beside what others hold there.
        capacity: Workers that would fit if nobody else held anything.
        leaves_at_s: When it goes, seconds since the epoch; 0 if unknown, None if it stays.
    """

    id: str
    address: str
    port: int
    slots: int
    capacity: int
    leaves_at_s: float | None = None


def usable(
    nodes: Iterable[Mapping[str, Any]],
    free: Mapping[str, Mapping[str, float]],
    *,
    held: Mapping[str, int],
    draining: Mapping[str, int],
    need: Mapping[str, float],
    labels: Mapping[str, str],
) -> dict[str, Node]:
    """The nodes that could hold workers.

    Args:
        nodes: What `ray.nodes()` says.
        free: Resources that nobody holds, by node.
        held: Workers of this run by node.
        draining: Nodes that go, with when: milliseconds since the epoch, 0 if not known.
        need: Resources of one worker.
        labels: Conditions on the labels of a node.
    """
    found: dict[str, Node] = {}
    fitting = [
        node for node in nodes if node["Alive"] and matches(node.get("Labels") or {}, labels)
    ]
    with ThreadPoolExecutor(PROBES) as pool:
        answers = list(pool.map(answers_now, fitting))
    for node, answered in zip(fitting, answers, strict=True):
        if not answered:
            continue
        key = node["NodeID"]
        capacity = _fits(need, node["Resources"])
        if capacity > 0:
            leaves = draining.get(key)
            found[key] = Node(
                id=key,
                address=node["NodeManagerAddress"],
                port=node["NodeManagerPort"],
                slots=_fits(need, free.get(key, {}), held.get(key, 0)),
                capacity=capacity,
                leaves_at_s=None if leaves is None else leaves / 1000,
            )
    return found


def _fits(need: Mapping[str, float], there: Mapping[str, float], ours: int = 0) -> int:
    """Workers for which resources suffice, with what `ours` of them hold already."""
    return min(
        int((there.get(name, 0.0) + ours * amount + ENOUGH) // amount)
        for name, amount in need.items()
        if amount > 0
    )


def answers_now(node: Mapping[str, Any]) -> bool:
    """Whether a node's raylet accepts a connection."""
    try:
        socket.create_connection(
            (node["NodeManagerAddress"], node["NodeManagerPort"]), PROBE_S
        ).close()
    except OSError:
        return False
    return True


def matches(labels: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    """Whether the labels of a node meet all conditions.

    A condition is a value, `!value`, `in(a,b)` or `!in(a,b)`, as in Ray's label selectors.
    """
    return all(_meets(labels.get(key), condition) for key, condition in wanted.items())


def _meets(value: str | None, condition: str) -> bool:
    if listed := _SET.fullmatch(condition):
        among = value in {item.strip() for item in listed[2].split(",")}
        return among is not bool(listed[1])
    if condition.startswith("!"):
        return value != condition[1:]
    return value == condition
