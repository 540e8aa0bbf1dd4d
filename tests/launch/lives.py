"""Lives of a run that is killed and resized, told in this process: what ranks do to its ledger.

The plan of batches, the order, the tail and the joining are the real ones. Made up are processes,
storage and time: a log is what was written of it, and a process is what it remembers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import strategies as st

from tidemill.data.places import find_places, mark_all
from tidemill.data.proof import Order
from tidemill.plan.batch import make_batch_plan
from tidemill.report.codec import decode_events, encode_fields, encode_line
from tidemill.report.history import History, make_history
from tidemill.report.tail import Remembering, Tail, Told, catch_up, see_how_far
from tidemill.spec.progress import Event, EventKind

LONGEST = 40
"""Steps of a life, about."""

Taken = list[int]
Spoil = Callable[[int, int, Taken], Taken]


@dataclass(frozen=True, kw_only=True)
class Turn:
    """A group's life.

    Attributes:
        size: Ranks.
        first: Which of the processes comes first.
        steps: Whole steps it takes.
        save_after: Step after which a checkpoint is committed, if it takes so many.
        torn: Ranks that have also taken the step that the others died in, as bits.
        leaves: Whether it ends by agreement.
        dies: Ranks that die, as bits; or those that stay if it ends by agreement.
        unwritten: Lines that the first rank takes with it, at most.
        behind: Steps that the newest state in memory lags behind the newest one.
    """

    size: int
    first: int
    steps: int
    save_after: int
    torn: int
    leaves: bool
    dies: int
    unwritten: int
    behind: int


TURNS = st.lists(
    st.builds(
        Turn,
        size=st.integers(1, 5),
        first=st.integers(0, 4),
        steps=st.integers(0, 6),
        save_after=st.integers(1, 9),
        torn=st.integers(0, 31),
        leaves=st.booleans(),
        dies=st.integers(0, 31),
        unwritten=st.integers(0, 20),
        behind=st.integers(0, 2),
    ),
    max_size=5,
)


@dataclass
class Process:
    """What a worker's process keeps: its tail, and how far its state is."""

    tail: Tail = field(default_factory=Tail)
    reached: int = 0


class Log:
    """The log of an attempt; lines beyond `safe` may be lost."""

    def __init__(self, life: Life) -> None:
        self.lines = life.logs.setdefault(life.attempt, [])
        self.safe = 0
        self._life = life

    def record(self, kind: EventKind, **fields: Any) -> None:
        self.lines.append(encode_line(kind, 0.0, self._life.attempt, encode_fields(fields)))

    def tell_late(self, event: Event) -> None:
        fields = encode_fields(event.fields | {"late": self._life.attempt})
        self.lines.append(encode_line(event.kind, 0.0, event.attempt, fields))

    def told(self) -> Told:
        return self._life.told

    def flush(self) -> None:
        self.safe = len(self.lines)


@functools.cache
def marks_of(order: Order) -> list[int]:
    """The mark of every sample that a life may use, by number."""
    keys = np.arange(2 * LONGEST * order.count)
    marks = mark_all(keys, find_places(keys, order.size, order.seed), order.size)
    return marks.view(np.uint64).tolist()


class Life:
    """A run from its start to its last step.

    Args:
        order: That it follows.
        micro_size: Most samples a rank holds.
        every_steps: Steps between step events.
        catches_up: Whether new groups tell what dead ranks did not.
        spoil: Changes what a rank takes: given step, rank and numbers of samples.
    """

    def __init__(
        self,
        order: Order,
        *,
        micro_size: int = 2,
        every_steps: int = 1,
        catches_up: bool = True,
        spoil: Spoil = lambda *taken: taken[-1],
    ) -> None:
        self.order, self.logs, self.attempt = order, dict[int, list[str]](), 0
        self.lived: list[int] = []  # the attempt that took each step of the newest state
        self.told = Told()
        self._micro_size, self._every_steps = micro_size, every_steps
        self._catches_up, self._spoil = catches_up, spoil
        self._processes: list[Process] = []
        self._saved = self._behind = 0
        self._marks = marks_of(order)

    def live(self, turns: list[Turn]) -> Life:
        """Go through all turns, then to the end without another change."""
        for turn in turns:
            self._take(turn)
        self._begin(2, 0)
        self._step()
        self._log.record(EventKind.finished, step=len(self.lived))
        return self

    def history(self) -> History:
        """What the logs tell."""
        lines = [line for attempt in sorted(self.logs) for line in self.logs[attempt]]
        return make_history(decode_events("".join(lines).encode()))

    def _take(self, turn: Turn) -> None:
        self._begin(turn.size, turn.first)
        for number in range(1, turn.steps + 1):
            self._step()
            if number == turn.save_after:
                self._log.flush()
                self._saved = len(self.lived)
                self._log.record(EventKind.checkpoint_saved, step=self._saved, name="c")
        if turn.leaves:
            self._log.record(EventKind.resizing, step=len(self.lived))
            self._processes = self._chosen(turn.dies) or self._processes
            return
        torn = self._chosen(turn.torn)
        if torn:
            self._step(torn)
        dead = [id(process) for process in self._chosen(turn.dies)] or [id(self._processes[0])]
        if id(self._processes[0]) in dead:
            kept = max(self._log.safe, len(self._log.lines) - turn.unwritten)
            del self._log.lines[kept:]
            if not kept:
                del self.logs[self.attempt]
        self._processes = [process for process in self._processes if id(process) not in dead]
        self._behind = turn.behind

    def _begin(self, size: int, first: int) -> None:
        """A new group: survivors, and fresh processes where there are too few."""
        self.attempt += 1
        self._processes = (self._processes + [Process() for _ in range(size)])[:size]
        newest = max(process.reached for process in self._processes)
        del self.lived[max(self._saved, newest - self._behind) :]
        self._behind, first = 0, first % size
        self._processes = self._processes[first:] + self._processes[:first]
        self._log = Log(self)
        self._recorders = [
            Remembering(process.tail, self.attempt, None if rank else self._log)
            for rank, process in enumerate(self._processes)
        ]
        self._record(EventKind.attempt_started, world=size)
        if self._catches_up:
            self._catch_up()
        step = len(self.lived)
        for process in self._processes:
            process.reached = step
        if step:
            self._record(EventKind.restored, step=step, samples=step * self.order.count)

    def _catch_up(self) -> None:
        """What ranks do at once is done one by one here, so what each will say is found before."""
        self.told = told = see_how_far(
            (attempt, [decode_events("".join(self.logs[attempt]).encode())])
            for attempt in sorted(self.logs, reverse=True)
        )
        plain = [told.since, [[attempt, *place] for attempt, place in told.places.items()]]
        offered = [process.tail.offer(told, self.attempt) for process in self._processes]
        for rank, process in enumerate(self._processes):
            answers = iter(([plain], offered))
            log = None if rank else self._log
            catch_up(process.tail, self.attempt, log, lambda _, answers=answers: next(answers))

    def _step(self, takers: list[Process] | None = None) -> None:
        """A step; if only some ranks take it, the newest state has it only if one of them stays."""
        step, order = len(self.lived), self.order
        plan = make_batch_plan(order.count, self._micro_size, len(self._processes))
        count = digest = 0
        for rank in range(plan.world):
            taken = [
                step * order.count + slot.start + offset
                for slot in plan.slots(rank)
                for offset in range(slot.size)
            ]
            taken = self._spoil(step, rank, taken)
            count += len(taken)
            digest += sum(self._marks[key] for key in taken)
        used = {
            "samples": (step + 1) * order.count,
            "count": count,
            "digest": f"{digest % 2**64:016x}",
        }
        kind = EventKind.used if step % self._every_steps else EventKind.step
        for process, recorder in zip(self._processes, self._recorders, strict=True):
            if takers is None or any(process is taker for taker in takers):
                recorder.record(kind, step=step, **used)
                process.reached = step + 1
        self.lived.append(self.attempt)
        if takers is None and step % 5 == 0:
            self._record(EventKind.evaluated, step=step + 1, loss=1.0)

    def _record(self, kind: EventKind, **fields: Any) -> None:
        for recorder in self._recorders:
            recorder.record(kind, **fields)

    def _chosen(self, bits: int) -> list[Process]:
        return [process for rank, process in enumerate(self._processes) if bits >> rank & 1]
