"""Keeper: how the state of one attempt comes into the memory of its processes, and stays there.

What is replicated is on every rank anyway, so it is copied only when the engine that holds it is to
go. What is sharded has to be elsewhere before a rank is lost, see `ring`.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tidemill.checkpoint.content import Layout, Target, find_targets, lay_out
from tidemill.checkpoint.exchange import Exchange
from tidemill.checkpoint.fragments import find_flaw
from tidemill.checkpoint.holdings import Inventory, Key
from tidemill.checkpoint.manifest import encode_tensors
from tidemill.checkpoint.snapshot import own_buffers
from tidemill.errors import CheckpointError
from tidemill.spec.progress import Cursor, State


@dataclass(frozen=True, slots=True)
class Slab:
    """A share of a version, in host memory.

    Attributes:
        about: JSON: `samples`, `scalars`, the `world` that trained it, and `tensors`: where the
            pieces lie in
        content: its bytes, 1-D uint8.
    """

    about: dict[str, Any]
    content: Tensor


@dataclass(slots=True)
class Slabs:
    """What a process holds of a run, and how far the run got with it.

    Attributes:
        held: Shares of versions, of its own rank and of others.
        attempt: The newest attempt that it trained in; 0 if in none.
        step: Steps taken or skipped by then, as far as it knows.
        vain: Later attempts that it took part in, and that ended before they trained.
    """

    held: dict[Key, Slab] = field(default_factory=dict[Key, Slab])
    attempt: int = 0
    step: int = 0
    vain: list[int] = field(default_factory=list[int])

    def inventory(self) -> Inventory:
        """What other ranks are told of it."""
        return Inventory(
            shares=list(self.held), attempt=self.attempt, step=self.step, vain=self.vain
        )

    def drop(self, goes: Callable[[Key], bool]) -> list[Tensor]:
        """Hold certain shares no longer; gives the memory that they took."""
        return [self.held.pop(key).content for key in [key for key in self.held if goes(key)]]


class Keeper(abc.ABC):
    """Keeps the state of one attempt; a `train.loop.Keeper`.

    Args:
        slabs: What this process holds.
        exchange: Between the ranks; nobody else's, and closed by `keep`.
        look: Gives views of this rank's live state.

    Attributes:
        newest: Step of the newest version of this attempt that this process holds; -1 if none.
    """

    def __init__(self, slabs: Slabs, exchange: Exchange, look: Callable[[], State]) -> None:
        self.newest = -1
        self._slabs = slabs
        self._exchange = exchange
        self._world = exchange.world
        self._look: Callable[[], State] | None = look
        self._cursor = Cursor()
        device = torch.device(self._world.device)
        self._gpu = device if device.type == "cuda" else None

    @abc.abstractmethod
    def begin(self, cursor: Cursor) -> None:
        """The live state is that of `cursor`, for the first time. Collective."""

    @abc.abstractmethod
    def tear(self) -> None:
        """From now on the live state is between two steps, and worth nothing until `commit`."""

    @abc.abstractmethod
    def commit(self, cursor: Cursor) -> None:
        """The live state is that of `cursor`; every rank calls it after every step."""

    @abc.abstractmethod
    def hand_over(self, *, stays: bool) -> None:
        """See to it that processes which stay hold the newest state. Collective.

        For the end of a group that some ranks leave on purpose, between two steps. If nobody stays,
        nobody holds it.

        Args:
            stays: Whether this process will be in the next group.
        """

    @abc.abstractmethod
    def keep(self) -> None:
        """The attempt has ended, however it did: hold what is worth it, and let go of the engine.

        Talks to no other rank, and may be repeated.
        """

    def _live(self) -> State:
        if self._look is None:
            raise CheckpointError("memory of processes: the attempt has ended")
        return self._look()

    def _note(self, cursor: Cursor) -> None:
        self._cursor = cursor
        self._slabs.attempt, self._slabs.step = self._world.attempt, cursor.step

    def _hold(
        self, key: Key, scalars: dict[str, Any], tensors: dict[str, Any], content: Tensor
    ) -> None:
        about = {
            "samples": self._cursor.samples,
            "scalars": scalars,
            "world": self._world.size,
            "tensors": tensors,
        }
        self._slabs.held[key] = Slab(about, content)

    def _end(self) -> None:
        self._look = None
        self._exchange.close()


class WholeKeeper(Keeper):
    """Keeps state of which this rank has everything: live while it trains, in a copy after that."""

    def begin(self, cursor: Cursor) -> None:
        """See `Keeper.begin`.

        Raises:
            CheckpointError: This rank has not everything.
        """
        state = self._live()
        for name, tensor in lay_out(state, find_targets(state), "").tensors.items():
            if flaw := find_flaw(tensor.pieces, tensor.numel):
                raise CheckpointError(f"memory of processes: {name} is not replicated, {flaw}")
        self._buffered, self._buffers = bool(own_buffers(state)), {}
        if self._gpu is not None:
            self._stream, self._updated = torch.cuda.Stream(self._gpu), torch.cuda.Event()
        self._stand(cursor)

    def tear(self) -> None:
        """See `Keeper.tear`."""
        self.newest = -1

    def commit(self, cursor: Cursor) -> None:
        """See `Keeper.commit`."""
        self._stand(cursor)
        self._note(cursor)

    def hand_over(self, *, stays: bool) -> None:
        """See `Keeper.hand_over`: everybody has it."""
        if not stays:
            self.newest = -1

    def keep(self) -> None:
        """See `Keeper.keep`."""
        try:
            if self._look is not None and self.newest >= 0:
                self._copy()
        finally:
            self._end()

    def _stand(self, cursor: Cursor) -> None:
        self._cursor, self.newest = cursor, cursor.step
        if self._buffered:  # the next forward changes them, whether its step is ever taken or not
            self._buffers = own_buffers(self._live())
        if self._gpu is not None:
            self._updated.record(torch.cuda.current_stream(self._gpu))

    def _copy(self) -> None:
        live = self._live()
        state = State(live.tensors | self._buffers, live.scalars)
        targets = find_targets(state)
        layout = lay_out(state, targets, "0")
        content = torch.empty(layout.data, dtype=torch.uint8)
        if self._gpu is None:
            pack(layout, targets, content)
        else:
            # Training's own stream may wait for ever for a rank that is gone.
            with torch.cuda.stream(self._stream):
                self._stream.wait_event(self._updated)
                pack(layout, targets, content)
            self._stream.synchronize()
        key = Key(self._world.attempt, self._cursor.step, 0, 1)
        self._hold(key, state.scalars, encode_tensors(layout.tensors), content)


def pack(layout: Layout, targets: Sequence[Target], content: Tensor) -> None:
    """Begin to copy live pieces to where they lie in `content`; on a GPU, its stream does."""
    for offset, target in zip(layout.offsets, targets, strict=True):
        size = target.memory.numel()
        content[offset : offset + size].copy_(target.memory, non_blocking=True)
