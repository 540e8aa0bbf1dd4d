"""Sums in one fixed order, whoever holds the parts: a binary tree over the slots of a step.

Floating-point addition rounds, so a sum depends on where its brackets are. Here they are where the
tree has them: a node covers a range of slots and is the sum of its two halves. A rank that holds a
range of slots adds up the nodes within it as its slots come; whoever gets the nodes of all ranks
goes on in the same way. However the slots are cut into ranges, the same two numbers meet.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

T = TypeVar("T")


class TreeSum(Generic[T]):
    """A sum over `count` slots, as far as it is known; never more parts than twice log2(count).

    Args:
        count: Slots of the whole sum, at least 1.
        add: Gives the sum of its left and its right argument; may reuse the left one's memory.

    Attributes:
        nodes: Ranges of slots, ascending, each with its sum.
    """

    def __init__(self, count: int, add: Callable[[T, T], T]) -> None:
        self.nodes: list[tuple[range, T]] = []
        self._count, self._add = count, add

    def put(self, node: range, value: T) -> None:
        """Take what follows the nodes so far, and add up what the tree has as one node.

        Args:
            node: A slot, or what is a node in another part of the sum.
            value: Its sum.
        """
        while self.nodes and are_halves(self.nodes[-1][0], node, self._count):
            left, held = self.nodes.pop()
            node, value = range(left.start, node.stop), self._add(held, value)
        self.nodes.append((node, value))

    def take(self) -> list[tuple[range, T]]:
        """Give the nodes, and begin anew."""
        nodes, self.nodes = self.nodes, []
        return nodes


def are_halves(left: range, right: range, count: int) -> bool:
    """Whether the tree over `count` slots has a node of which these are the halves."""
    start, stop = 0, count
    while stop - start > 1:
        middle = (start + stop) // 2
        if left.start >= middle:
            start = middle
        elif right.stop <= middle:
            stop = middle
        else:
            return (left.start, left.stop, right.stop) == (start, middle, stop)
    return False


def cover(span: range, count: int) -> list[range]:
    """The nodes that a rank with the slots of `span` ends up with."""
    parts = TreeSum[None](count, lambda _left, _right: None)
    for slot in span:
        parts.put(range(slot, slot + 1), None)
    return [node for node, _ in parts.nodes]


def sum_in_order(values: Iterable[float]) -> float:
    """The sum of the values of all slots, as the tree has it; 0 if there are none."""
    held = list(values)
    whole = TreeSum[float](len(held), operator.add)
    for number, value in enumerate(held):
        whole.put(range(number, number + 1), value)
    return whole.nodes[0][1] if held else 0.0
