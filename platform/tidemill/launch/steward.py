"""Steward: looks after the group of a run from within Ray Train's controller.

It sees the nodes and every rank's signs of life, and decides when the group forms anew, with whom,
and whether a failure is worth another try. How that is done to Ray is `elastic`'s business.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from tidemill.errors import TidemillError
from tidemill.launch.failure import diagnose
from tidemill.launch.hands import Hands
from tidemill.launch.health import Vitals
from tidemill.launch.judge import Fault, Judge
from tidemill.launch.nodes import Node
from tidemill.launch.policy import (
    Cause,
    Formation,
    Place,
    Reform,
    ahead,
    form,
    places_of,
    reform,
    size_of,
)
from tidemill.launch.pool import Pool, Process
from tidemill.launch.timeline import Timeline
from tidemill.launch.watch import Watch
from tidemill.plan.costs import rules_of
from tidemill.plan.sizing import worth_growing
from tidemill.spec.progress import EventKind
from tidemill.spec.run import RunSpec
from tidemill.train.pulse import Phase

LOOK_S = 0.25
"""Seconds between looks at the nodes."""
SETTLE_S = 2.0
"""Seconds that a group trains before it is asked to grow."""
FIRST_GUESS_S = 5.0
"""What a change costs, before one was seen."""

CAUSES = {
    Fault.kill: Cause.kill,
    Fault.preempted: Cause.kill,
    Fault.oom: Cause.error,
    Fault.hang: Cause.hang,
    Fault.error: Cause.error,
    Fault.refusal: Cause.error,
}

log = logging.getLogger(__name__)


class Steward:
    """Decides for one run.

    Args:
        spec: The run.
        pool: Its processes that are in no group.
        hands: What it can do.

    Attributes:
        group: Processes of the group, by rank; empty while there is none.
        chosen: Workers by node of the group that is, or that is to be next.
        timeline: Of the change that led to the group, or is going on.
        vigil: Follows the ranks of the group.
    """

    def __init__(self, spec: RunSpec, pool: Pool, hands: Hands) -> None:
        self.group: list[Process] = []
        self.chosen: Formation = {}
        self.timeline = Timeline(Cause.start)
        self.vigil = Watch(spec.scale)
        self._spec = spec
        self._rules = rules_of(spec)
        self._pool = pool
        self._hands = hands
        self._nodes: dict[str, Node] = {}
        self._noticed: set[str] = set()
        self._left: set[str] = set()
        self._stocked: set[str] = set()
        self._reform: Reform | None = None
        self._looked_s = -math.inf
        self._began_s = time.monotonic()
        self._judge = Judge(spec.scale.max_failures)
        self._failure: TidemillError | None = None
        self._cost_s = FIRST_GUESS_S

    # --- while there is no group -----------------------------------------------------------------

    def form(self) -> Formation | None:
        """Choose the next group; None while there are too few nodes."""
        self._look()
        scale = self._spec.scale
        self.timeline.note(lost=sorted(self._left - self._nodes.keys()))
        chosen = form(self._places(), scale.least, min(self._allowed(), scale.workers))
        if chosen:
            self._hands.hold(size_of(chosen))
        self.timeline.mark("decide" if chosen else "place")
        self.chosen = chosen or {}
        return chosen

    def joining(self, group: Sequence[Process]) -> None:
        """Processes are to become a group, by rank."""
        self.group = list(group)
        self._stocked -= {process.node for process in group if process.joins == 1}
        fresh = sum(process.joins == 1 for process in group)
        self.timeline.note(world=len(group), fresh=fresh, kept=len(group) - fresh)

    def started(self) -> None:
        """They have."""
        if self.timeline.cause is not Cause.start:
            self._cost_s = self.timeline.seconds
        self._began_s = time.monotonic()
        self.vigil.begin()

    def ended(self) -> None:
        """The group has ended, and its processes are parked or gone."""
        self._left = set(self._current)
        self.group = []
        self.timeline.mark("stop")
        if self._failure is not None and self.vigil.attempt:
            self._hands.note_failure(self.vigil.attempt, self._failure)
            self._failure = None

    # --- while a group trains --------------------------------------------------------------------

    def watch(self, vitals: Mapping[int, Vitals | None]) -> Formation | None:
        """Look after the group; called several times a second.

        Args:
            vitals: What each rank told, None for one that did not answer.

        Returns:
            The group to form now, once this one has come to its boundary.
        """
        for kind, fields in self.vigil.feed(vitals, self.group, self._nodes.keys()):
            self._tell(kind, **fields)
        if self._reform is not None:
            if self._has_parked(vitals):
                change, self._reform = self._reform, None
                self._begin_change(change.cause, self.vigil.ended_s)
                self.chosen = change.formation
                return change.formation
            return None
        if time.monotonic() - self._looked_s < LOOK_S:
            return None
        self._look()
        self._notice()
        self._stock()
        places, current, allowed = self._places(), self._current, self._allowed()
        most = min(allowed, self._spec.scale.workers)
        # Whoever is lost, or on a machine that goes, is about to be replaced from the pool.
        self._pool.trim(allowed - sum(current[place.node] for place in places if not place.leaving))
        self._pool.start_ahead(ahead(places, current, most, allowed - most, self._pays))
        settled = time.monotonic() - self._began_s > SETTLE_S
        pays = self._pays if settled and self.vigil.step_s else lambda _: False
        self._reform = reform(places, current, self._spec.scale.least, most, pays)
        if self._reform is not None:
            self._ask_all(self._reform)
        return None

    @property
    def patience_s(self) -> float:
        """Seconds that a process may take to end its part in a group that has failed."""
        return max(5.0, 4 * self.vigil.step_s)

    def failed(self, error: BaseException) -> TidemillError | None:
        """The group has failed, or could not form; the next change begins here.

        Returns:
            What to end the run with; None to go on.
        """
        self._reform = None
        nodes = {rank: process.node for rank, process in enumerate(self.group)}
        failure = diagnose(error, nodes, self._noticed)
        verdict = self._judge.judge(
            failure.error, self.vigil.step, failure.fault, trained=self.vigil.trained
        )
        if verdict.go_on:
            self._failure = failure.error
        self._begin_change(CAUSES[failure.fault], self.vigil.ended_s)
        self._look()
        # Ray takes a second to say that a call to a lost process is in vain.
        self.vigil.doomed |= {rank for rank, node in nodes.items() if node not in self._nodes}
        return verdict.error

    # --- within ----------------------------------------------------------------------------------

    def _begin_change(self, cause: Cause, detect_s: float) -> None:
        self.timeline = Timeline(cause, len(self.group), detect_s)

    @property
    def _current(self) -> Counter[str]:
        return Counter(process.node for process in self.group)

    def _look(self) -> None:
        self._looked_s = time.monotonic()
        self._nodes = self._hands.look(self._current + self._pool.nodes)
        # A machine that is to go goes sooner if nothing is left on it.
        self._pool.drop({key for key, node in self._nodes.items() if node.leaves_at_s is None})
        self._pool.gather()

    def _places(self) -> list[Place]:
        pool = self._pool
        return places_of(self._nodes.values(), self._current, pool.nodes, pool.warm)

    def _allowed(self) -> int:
        """Most processes that the run may have now, its spares included."""
        staying = [node for node in self._nodes.values() if node.leaves_at_s is None]
        return self._hands.most(
            sum(node.slots for node in staying),
            sum(node.capacity for node in staying),
            len(self.group) + self._pool.nodes.total(),
        )

    def _has_parked(self, vitals: Mapping[int, Vitals | None]) -> bool:
        return all(told is not None and told.phase is Phase.parked for told in vitals.values())

    def _pays(self, size: int) -> bool:
        """Whether growing to `size` workers gains more than it costs, as far as is known."""
        if not self.vigil.step_s:
            return True
        now, then = (self._rules.load_at(world) for world in (max(1, len(self.group)), size))
        remaining = self._spec.steps - (self.vigil.step or 0)
        return worth_growing(remaining, self.vigil.step_s, now, then, self._cost_s)

    def _notice(self) -> None:
        """Say once of each node that it goes."""
        current = self._current
        fresh = [
            node
            for node in self._nodes.values()
            if node.leaves_at_s is not None and node.id not in self._noticed and current[node.id]
        ]
        self._noticed |= {node.id for node in fresh}
        if not fresh:
            return
        known = [node.leaves_at_s for node in fresh if node.leaves_at_s]
        left_s = max(0.0, min(known) - time.time()) if known else None
        self._tell(
            EventKind.notice,
            nodes=[node.id for node in fresh],
            reason="drain",
            deadline_s=left_s,
        )
        staying = sum(node.slots for node in self._nodes.values() if node.leaves_at_s is None)
        if staying < self._spec.scale.least:
            # The run cannot go on without them: what it has is saved while it still has it.
            for process in self.group:
                self._hands.ask_to_save(process)

    def _stock(self) -> None:
        """Prepare for the loss of a worker whose node stays."""
        if time.monotonic() - self._began_s > SETTLE_S:
            for key, node in self._nodes.items():
                if node.slots and key not in self._stocked:
                    self._stocked.add(key)
                    self._hands.stock(self.group[0], node)

    def _ask_all(self, change: Reform) -> None:
        log.info(
            "%s: %d workers become %d", change.cause, len(self.group), size_of(change.formation)
        )
        left = Counter(change.formation)
        for process in self.group:
            stays = left[process.node] > 0
            left[process.node] -= stays
            self._hands.ask_to_leave(process, stays)

    def _tell(self, kind: EventKind, **fields: Any) -> None:
        if self.group:
            self._hands.tell(self.group[0], kind, {"step": self.vigil.step or 0} | fields)
