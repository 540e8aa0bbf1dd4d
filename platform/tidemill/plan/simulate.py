"""Simulate: months of machines that come and go, replayed in seconds with measured costs.

Between two things that happen to machines, a group trains at a steady pace, so a stretch of any
length is one multiplication. What is simulated is the policy that runs follow (`launch.policy`):
survivors go on at once, whoever comes later starts ahead and joins when that is worth it.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from functools import partial

from tidemill.plan.costs import Costs, Pace, Rules, Stages
from tidemill.plan.goodput import GoodputReport, Span, Use, add_up
from tidemill.plan.sizing import worth_growing
from tidemill.plan.trace import Stay, Trace

ENDLESS = 10**9
"""Steps that are left of a run that does not end."""
LOOK_S = 0.25
"""Seconds until a run sees that a machine was announced to go."""
ALWAYS = -1


def simulate(trace: Trace, rules: Rules, costs: Costs) -> GoodputReport:
    """Replay a trace.

    The run trains already when the trace begins, on the machines of its first moment.

    Args:
        trace: What happens to machines.
        rules: What the run makes of them.
        costs: What that takes.
    """
    run = _Run(trace, rules, costs)
    run.play()
    return GoodputReport(
        source=f"simulated: {trace.name}",
        duration_s=run.now_s,
        node_s=add_up(run.stays, run.spans, from_s=0.0, until_s=run.now_s, least=rules.least),
        steps=run.frontier,
        redone=run.redone,
        changes=dict(run.changes),
    )


class _Phase(Enum):
    """What a group does."""

    nothing = None
    """There are too few machines for one."""
    detecting = Use.detect
    forming = Use.restart
    training = Use.useful


@dataclass(slots=True)
class _Machine:
    """One that is there.

    Attributes:
        place: Of its stay.
        ready_s: When it could join.
        leaving: Whether it was announced that it goes.
    """

    place: int
    ready_s: float
    leaving: bool = False


class _Run:
    """One run on the machines of a trace.

    Attributes:
        now_s: The moment that is simulated.
        stays: Of the machines; one that is given back early ends early.
        spans: What groups did.
        changes: How often one formed, by cause.
        frontier: Steps that were ever taken.
        redone: Steps taken again.
    """

    def __init__(self, trace: Trace, rules: Rules, costs: Costs) -> None:
        self.now_s = 0.0
        self.stays = list(trace.stays)
        self.spans: list[Span] = []
        self.changes: Counter[str] = Counter()
        self.frontier = self.redone = 0
        self._rules, self._costs = rules, costs
        self._machines: dict[str, _Machine] = {}
        self._phase = _Phase.nothing
        self._since_s = 0.0
        self._group: list[str] = []
        self._holders: list[str] = []
        self._cursor = 0
        self._asked = False
        self._era = 0
        self._queue: list[tuple[float, int, int, Callable[[], None]]] = []
        self._tickets = itertools.count()
        for place, stay in enumerate(trace.stays):
            if stay.from_s:
                self._at(stay.from_s, partial(self._come, place))
            else:
                self._machines[stay.node] = _Machine(place, ready_s=0.0)
            if stay.until_s <= trace.duration_s:
                self._at(stay.until_s - stay.notice_s, partial(self._announce, stay))
                self._at(stay.until_s, partial(self._go, stay.node))
        self._at(trace.duration_s, self._finish)

    def play(self) -> None:
        """From the first moment to the last."""
        self._form(Stages())
        while self._queue:
            self.now_s, _, era, act = heapq.heappop(self._queue)
            if era in {ALWAYS, self._era}:
                act()

    def _at(self, at_s: float, act: Callable[[], None], era: int = ALWAYS) -> None:
        """Do something later; of an `era`, only if that lasts so long."""
        heapq.heappush(self._queue, (at_s, next(self._tickets), era, act))

    # --- what happens to machines ----------------------------------------------------------------

    def _come(self, place: int) -> None:
        ready_s = self.now_s + self._costs.ahead_s
        self._machines[self.stays[place].node] = _Machine(place, ready_s)
        self._at(ready_s, self._look)
        if self._phase is _Phase.nothing:
            self._form(self._costs.kill)

    def _announce(self, stay: Stay) -> None:
        if stay.notice_s:
            self._machines[stay.node].leaving = True
            if stay.node in self._group:
                self._at(self.now_s + LOOK_S, self._look)
            else:
                self._give_back(stay.node)

    def _go(self, node: str) -> None:
        if node not in self._machines:
            return  # given back already
        if node in self._group:
            self._end_phase()
            self._group.remove(node)
            if self._phase is not _Phase.detecting:
                self._enter(_Phase.detecting)
                later = partial(self._form, self._costs.kill, "kill")
                self._at(self.now_s + self._costs.kill.detect_s, later, self._era)
        del self._machines[node]

    def _give_back(self, node: str) -> None:
        place = self._machines.pop(node).place
        until_s = min(self.stays[place].until_s, self.now_s + self._costs.back_s)
        self.stays[place] = replace(self.stays[place], until_s=until_s)

    # --- what a run makes of it ------------------------------------------------------------------

    def _form(self, stages: Stages, cause: str = "") -> None:
        """Choose a group when there is none."""
        self._end_phase()
        least, most = self._rules.least, self._rules.most
        staying = self._staying()
        warm = [node for node in staying if self._machines[node].ready_s <= self.now_s]
        chosen = (warm if len(warm) >= least else staying)[:most]
        if len(chosen) < least:
            self._group = []
            self._enter(_Phase.nothing)
            return
        ready_s = max(self._machines[node].ready_s for node in chosen)
        self._begin(chosen, max(ready_s, self.now_s) + stages.restart_s, cause)

    def _look(self) -> None:
        """Choose another group for one that trains."""
        if self._phase is not _Phase.training or self._asked:
            return
        rules, costs = self._rules, self._costs
        ready = [n for n in self._staying() if self._machines[n].ready_s <= self.now_s]
        target = ready[: rules.most]
        if len(target) < rules.least:
            return
        if any(self._machines[node].leaving for node in self._group):
            cause, stages = "drain", costs.drain
        elif len(target) > len(self._group) and self._pays(len(target)):
            cause, stages = "grow", costs.grow
        else:
            return
        self._asked = True
        pace = self._pace
        # The step at hand, and the one at whose beginning ranks agree to leave.
        steps = pace.steps(self._cursor, self.now_s - self._since_s) + 2
        leave = partial(self._leave, target, steps, stages, cause)
        self._at(self._since_s + pace.seconds(self._cursor, steps), leave, self._era)

    def _leave(self, target: list[str], steps: int, stages: Stages, cause: str) -> None:
        """The boundary of a step at which a group ends for another one."""
        self._end_phase(steps)
        for node in [node for node in self._group if self._machines[node].leaving]:
            self._give_back(node)
        self._holders = target = [node for node in target if node in self._machines]
        self._begin(target, self.now_s + stages.detect_s + stages.restart_s, cause)

    def _begin(self, group: list[str], until_s: float, cause: str) -> None:
        self._group = group
        self._enter(_Phase.forming)
        self._at(until_s, partial(self._train, cause), self._era)

    def _train(self, cause: str) -> None:
        """A group takes its first step."""
        self._end_phase()
        here = [node in self._machines for node in self._holders]
        self._cursor -= self._rules.lost(self._cursor, here)
        self._holders = list(self._group)
        self._enter(_Phase.training)
        self._asked = False
        if cause:
            self.changes[cause] += 1
        for wait_s in (LOOK_S, self._costs.settle_s):
            self._at(self.now_s + wait_s, self._look, self._era)
        if self._rules.steps:
            left = self._rules.steps - self._cursor
            end_s = self.now_s + self._pace.seconds(self._cursor, left)
            self._at(end_s, partial(self._finish, left), self._era)

    def _finish(self, steps: int | None = None) -> None:
        self._end_phase(steps, whole=False)
        self._queue.clear()

    def _pays(self, size: int) -> bool:
        costs, rules, now = self._costs, self._rules, len(self._group)
        if self.now_s - self._since_s < costs.settle_s:
            return False
        pace = self._pace
        taken = self._cursor + pace.steps(self._cursor, self.now_s - self._since_s)
        return worth_growing(
            rules.steps - taken if rules.steps else ENDLESS,
            pace.step_s,
            rules.load_at(now),
            rules.load_at(size),
            costs.grow.detect_s + costs.grow.restart_s,
        )

    def _staying(self) -> list[str]:
        """Machines that are there and stay, those of the group first, then those ready first."""
        staying = [node for node, machine in self._machines.items() if not machine.leaving]
        members = set(self._group)
        return sorted(staying, key=lambda n: (n not in members, self._machines[n].ready_s))

    @property
    def _pace(self) -> Pace:
        return self._costs.pace(self._rules, len(self._group))

    # --- the account -----------------------------------------------------------------------------

    def _enter(self, phase: _Phase) -> None:
        self._phase, self._since_s = phase, self.now_s
        self._era += 1

    def _end_phase(self, steps: int | None = None, *, whole: bool = True) -> None:
        """Note what the group did since the phase began.

        Args:
            steps: Steps it took; None: as many as there was time for.
            whole: Whether a step that was not finished is lost.
        """
        if self._phase is not _Phase.training:
            if self._phase.value is not None:
                self._note(self._phase.value, self.now_s - self._since_s)
            self._since_s = self.now_s
            return
        pace = self._pace
        seconds = self.now_s - self._since_s
        taken = pace.steps(self._cursor, seconds) if steps is None else steps
        again = max(0, min(taken, self.frontier - self._cursor))
        waited_s = taken * pace.between_s + pace.saves(self._cursor, taken) * pace.save_s
        rest_s = seconds - taken * pace.step_s - waited_s
        self._note(Use.recompute, again * pace.step_s)
        self._note(Use.useful, (taken - again) * pace.step_s)
        self._note(Use.stall, waited_s)
        self._note(Use.recompute if whole else Use.useful, rest_s)
        self._cursor += taken
        self.frontier = max(self.frontier, self._cursor)
        self.redone += again

    def _note(self, use: Use, seconds: float) -> None:
        if seconds > 0 and self._group:
            end_s = self._since_s + seconds
            self.spans.append(
                Span(from_s=self._since_s, until_s=end_s, use=use, members=len(self._group))
            )
            self._since_s = end_s
