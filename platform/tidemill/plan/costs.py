"""Costs: what it takes a run when machines come and go, in seconds that were measured."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tidemill.plan.batch import make_batch_plan
from tidemill.spec.run import RunSpec
from tidemill.spec.strategy import DdpSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Stages:
    """Where the seconds between the last step of a group and the first of the next one go.

    Attributes:
        detect_s: Until the change begins; after a failure, from the moment it happened.
        stop_s: The old group ends.
        decide_s: Nodes are looked at.
        place_s: There are not enough of them.
        spawn_s: Processes start that nobody started ahead.
        join_s: They form a group.
        load_s: They get the state.
        first_step_s: What the first step takes longer than others.
    """

    detect_s: float = 0.0
    stop_s: float = 0.0
    decide_s: float = 0.0
    place_s: float = 0.0
    spawn_s: float = 0.0
    join_s: float = 0.0
    load_s: float = 0.0
    first_step_s: float = 0.0

    @property
    def restart_s(self) -> float:
        """All but `detect_s`."""
        started_s = self.stop_s + self.decide_s + self.place_s + self.spawn_s
        return started_s + self.join_s + self.load_s + self.first_step_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """What a run costs besides its steps.

    Attributes:
        kill: Stages of a change after a failure.
        drain: Stages of one that a notice led to.
        grow: Stages of one to more workers.
        ahead_s: Seconds from when a machine is up until it could join, while others train.
        step_s: Seconds of a step by world size; at least one.
        between_s: Seconds between two steps of a group, on average, without saves.
        save_s: Seconds for which training stops for a checkpoint.
        settle_s: Seconds that a group trains before it grows.
        back_s: Seconds until a machine that was announced to go is given back, once a run has left
            it; infinite if it stays until it is taken.
    """

    kill: Stages
    drain: Stages
    grow: Stages
    ahead_s: float
    step_s: Mapping[int, float]
    between_s: float = 0.0
    save_s: float = 0.0
    settle_s: float = 2.0
    back_s: float = 0.5

    def pace(self, rules: Rules, world: int) -> Pace:
        """How fast a group goes; the nearest size that was measured stands for others."""
        known = min(self.step_s, key=lambda size: (abs(size - world), size))
        load = rules.load_at(world) / rules.load_at(known)
        return Pace(
            step_s=self.step_s[known] * load,
            between_s=self.between_s,
            save_s=self.save_s,
            every=rules.save_every_steps,
        )

    def to_plain(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self) | {"step_s": {str(size): s for size, s in self.step_s.items()}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What a run makes of the machines there are; one worker on each.

    Attributes:
        least: Fewest workers it goes on with.
        most: Most it has use for.
        global_size: Samples of a step.
        micro_size: Most samples a worker holds at once.
        fixed: Whether slots are the same for every world.
        steps: Of the whole run; 0 if it does not end.
        replicated: Whether every worker holds all state.
        copy_every_steps: Steps between copies in a neighbour's memory; 0: none.
        near_every_steps: Steps between copies in the memory of nodes; 0: none.
        save_every_steps: Steps between checkpoints; 0: none.
    """

    least: int = 1
    most: int
    global_size: int
    micro_size: int
    fixed: bool = False
    steps: int = 0
    replicated: bool = True
    copy_every_steps: int = 1
    near_every_steps: int = 0
    save_every_steps: int = 0

    def load_at(self, world: int) -> int:
        """Most samples that one worker takes per step."""
        return _most_samples(self.global_size, self.micro_size, world, self.fixed)

    def lost(self, step: int, here: Sequence[bool]) -> int:
        """Steps that have to be taken again.

        Args:
            step: Steps taken by the last group.
            here: By rank of that group, whether its machine is still there.
        """
        if not any(here):
            every = self.save_every_steps
        elif self.replicated or all(here):
            return 0
        elif all(here[n - 1] or one for n, one in enumerate(here)) and self.copy_every_steps:
            every = self.copy_every_steps
        else:
            every = self.near_every_steps or self.save_every_steps
        return step % every if every else step


@functools.cache
def _most_samples(global_size: int, micro_size: int, world: int, fixed: bool) -> int:  # noqa: FBT001
    plan = make_batch_plan(global_size, micro_size, world, fixed=fixed)
    return max(sum(slot.size for slot in plan.slots(rank)) for rank in range(world))


def rules_of(spec: RunSpec) -> Rules:
    """The rules that a run will follow."""
    chosen = spec.checkpoint
    return Rules(
        least=spec.scale.least,
        most=spec.scale.workers,
        global_size=spec.batch.global_size,
        micro_size=spec.batch.micro_size,
        fixed=spec.bitwise,
        steps=spec.steps,
        replicated=isinstance(spec.strategy, DdpSpec),
        copy_every_steps=spec.scale.copy_every_steps,
        near_every_steps=chosen.near_every_steps if chosen.near_gib else 0,
        save_every_steps=chosen.every_steps,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How fast a group goes.

    Attributes:
        step_s: Seconds of a step.
        between_s: Seconds between two.
        save_s: Seconds of a save.
        every: Steps between saves; 0: none.
    """

    step_s: float
    between_s: float
    save_s: float
    every: int

    def seconds(self, first: int, steps: int) -> float:
        """How long the steps from number `first` on take."""
        return steps * (self.step_s + self.between_s) + self.saves(first, steps) * self.save_s

    def saves(self, first: int, steps: int) -> int:
        """Saves among them."""
        return (first + steps) // self.every - first // self.every if self.every else 0

    def steps(self, first: int, seconds: float) -> int:
        """How many steps from number `first` on end within so long."""
        low, high = 0, int(seconds / (self.step_s + self.between_s)) + 1
        while low < high:
            middle = (low + high + 1) // 2
            if self.seconds(first, middle) <= seconds:
                low = middle
            else:
                high = middle - 1
        return low


def costs_from_plain(plain: Mapping[str, Any]) -> Costs:
    """What `Costs.to_plain` wrote."""
    known = dict(plain)
    for name in ("kill", "drain", "grow"):
        known[name] = Stages(**plain[name])
    known["step_s"] = {int(world): float(seconds) for world, seconds in plain["step_s"].items()}
    return Costs(**known)


MEASURED = Costs(
    kill=Stages(
        detect_s=0.84, stop_s=0.02, decide_s=0.01, join_s=0.14, load_s=0.04, first_step_s=0.1
    ),
    drain=Stages(stop_s=0.02, decide_s=0.01, join_s=0.1, load_s=0.04, first_step_s=0.1),
    grow=Stages(stop_s=0.03, decide_s=0.01, join_s=0.6, load_s=0.3, first_step_s=0.15),
    ahead_s=7.0,
    step_s={1: 0.2},
)
"""Medians of a small DDP run on three raylets of one machine with two cores, Ray 2.60, gloo."""
