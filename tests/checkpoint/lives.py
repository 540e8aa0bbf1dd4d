"""Processes that outlive their groups, inside `run_world`: a group ends, another one forms.

A process "dies" by closing its connections and forgetting what it held, which is all that its peers
can see of a kill; who joins later is a process that holds nothing.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from torch import Tensor

from tests.checkpoint.states import blank, make_tensors, same_pieces, split, whole
from tidemill.checkpoint.checksum import checksum
from tidemill.checkpoint.exchange import Exchange
from tidemill.checkpoint.memory import Held, Keeper, Memory
from tidemill.spec.progress import Cursor, State, World

if TYPE_CHECKING:
    from pathlib import Path

PATIENCE = dt.timedelta(seconds=30)


class Dead(Exception):  # noqa: N818 - a noun, and no mistake
    """This process was to die here."""


@dataclass
class Life:
    """One process.

    Attributes:
        process: Its number, whatever its rank.
        scratch: Where groups meet.
        memory: What it holds.
        keeper: Of the attempt.
        live: The state that it trains, whole, of which it looks at its share only.
        step: Of which step that is.
    """

    process: int
    scratch: Path
    memory: Memory = field(default_factory=Memory)
    keeper: Keeper | None = None
    live: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    step: int = 0

    def meet(self, attempt: int, members: Sequence[int]) -> World | None:
        """Form the group of an attempt; None if this process is not in it."""
        self.leave()
        if self.process not in members:
            return None
        world = World(rank=members.index(self.process), size=len(members), attempt=attempt)
        dist.init_process_group(
            "gloo",
            store=dist.FileStore(str(self.scratch / f"attempt-{attempt}"), world.size),
            rank=world.rank,
            world_size=world.size,
            timeout=PATIENCE,
        )
        dist.barrier()  # who leaves early would break what others still set up
        return world

    def leave(self) -> None:
        """End the attempt, as a worker does."""
        if self.keeper is not None:
            self.keeper.keep()
            self.keeper = None
        if dist.is_initialized():
            dist.destroy_process_group()

    def die(self) -> None:
        """Lose everything."""
        if self.keeper is not None:
            self.keeper.tear()
        self.leave()
        self.memory = Memory()

    def begin(
        self, world: World, step: int, *, replicated: bool = False, every: int = 1, node: str = ""
    ) -> Keeper:
        """Begin an attempt with the state of a step, shares cut at random."""
        self.live = make_tensors(step)
        self.step = step
        self.keeper = self.memory.begin(
            world,
            self.look(world, replicated=replicated),
            at(step),
            replicated=replicated,
            every=every,
            node=node,
            patience=PATIENCE,
        )
        return self.keeper

    def look(self, world: World, *, replicated: bool = False) -> Callable[[], State]:
        """As an engine shows its state, in views of live memory."""

        def look() -> State:
            state = (
                whole(self.live)
                if replicated
                else split(self.live, world.rank, world.size, f"cut {world.attempt}")
            )
            state.scalars.update(scalars_of(self.step))
            return state

        return look

    def train(self, until: int) -> None:
        """Take steps; the state of each follows from its number."""
        assert self.keeper is not None
        while self.step < until:
            dist.barrier()
            self.keeper.tear()
            self.update()
            self.keeper.commit(at(self.step))

    def update(self) -> None:
        """Take one step in place, as an optimizer does, and tell nobody."""
        self.step += 1
        for name, tensor in make_tensors(self.step).items():
            self.live[name].copy_(tensor)

    def find(self, world: World) -> Held | None:
        """See `Memory.find`."""
        return self.memory.find(Exchange(world, PATIENCE))

    def resume(self, world: World, step: int, *, everything: bool = False) -> Held:
        """Fill a blank state from memory; it must be that of `step`, bit for bit."""
        found = self.find(world)
        assert found is not None, "nothing was found"
        assert (found.cursor, found.scalars) == (at(step), scalars_of(step))
        empty = blank(make_tensors(step))
        state = whole(empty) if everything else split(empty, world.rank, world.size, "other cut")
        assert self.memory.fill(found, state, world) == checksum(whole(make_tensors(step)))
        assert same_pieces(state, make_tensors(step)), f"rank {world.rank} has another state"
        assert state.scalars == scalars_of(step)
        return found

    def held(self) -> list[tuple[int, int, int]]:
        """(attempt, step, number) of each share it holds."""
        return sorted((key.attempt, key.step, key.number) for key in self.memory._slabs.held)


def at(step: int) -> Cursor:
    """Where the run is after a step."""
    return Cursor(step=step, samples=8 * step)


def scalars_of(step: int) -> dict[str, Any]:
    """JSON values of the state after a step."""
    return {
        "taken_steps": step,
        "loss_scale": {"value": 2.0**step, "good_steps": step},
        "guard": {"skipped": step, "in_a_row": 0},
    }
