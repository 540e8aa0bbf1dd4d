"""What looking after a group takes from the outside, so that the deciding can be tested alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tidemill.errors import TidemillError
from tidemill.launch.nodes import Node
from tidemill.launch.pool import Process
from tidemill.spec.progress import EventKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Hands:
    """What a steward can do to the outside.

    Attributes:
        look: Which nodes could be used, given the run's workers by node.
        ask_to_leave: Tells a process to end its group's work at the next step's boundary, and
            whether it is wanted afterwards.
        ask_to_save: Tells a process to ask for a checkpoint.
        tell: Lets a process record an event.
        note_failure: Writes into the log of an attempt that it failed, and why.
        stock: Has a node keep a process ready, like that of a worker.
        most: Most processes the run may have, given what it has room for, what it had room for if
            it were alone, and what it has.
        hold: Says that it is about to have so many.
    """

    look: Callable[[Mapping[str, int]], dict[str, Node]]
    ask_to_leave: Callable[[Process, bool], None]
    ask_to_save: Callable[[Process], None]
    tell: Callable[[Process, EventKind, dict[str, Any]], None]
    note_failure: Callable[[int, TidemillError], None]
    stock: Callable[[Process, Node], None]
    most: Callable[[int, int, int], int]
    hold: Callable[[int], None]
