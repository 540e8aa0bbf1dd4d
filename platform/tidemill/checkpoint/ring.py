"""Ring: sharded state, copied after a step to the memory of its own rank and of one other.

Two versions are held: while one is under way, the one before it is whole on all ranks. So a rank
may be lost at any moment, and what it alone was training is still held by another one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tidemill.checkpoint.content import find_targets, lay_out
from tidemill.checkpoint.exchange import Exchange
from tidemill.checkpoint.holdings import Key, choose_partners, plan_moves
from tidemill.checkpoint.keeper import Keeper, Slab, Slabs, pack
from tidemill.checkpoint.manifest import encode_tensors
from tidemill.errors import CheckpointError
from tidemill.spec.progress import Cursor, State


class RingKeeper(Keeper):
    """Keeps this rank's share in its own memory and in that of one other rank.

    Between two copies all ranks must have heard of each other, as they do at the beginning of each
    step: only then is the first one known to be whole, and the one before it free to go.

    Args:
        slabs: See `Keeper`.
        exchange: See `Keeper`.
        look: See `Keeper`.
        every: Steps between two copies; 0 makes none but to hand over.
        node: Name of this rank's node.
    """

    def __init__(
        self,
        slabs: Slabs,
        exchange: Exchange,
        look: Callable[[], State],
        *,
        every: int,
        node: str,
    ) -> None:
        super().__init__(slabs, exchange, look)
        self._every, self._node = every, node
        self._spare: list[Tensor] = []

    def begin(self, cursor: Cursor) -> None:
        """See `Keeper.begin`."""
        state, rank = self._live(), self._world.rank
        targets = find_targets(state)
        self._wanted = [target.wanted for target in targets]
        self._layout = lay_out(state, targets, str(rank))
        mine = {
            "node": self._node,
            "tensors": encode_tensors(self._layout.tensors),
            "size": self._layout.data,
        }
        heard = self._exchange.all_gather(mine)
        partners = choose_partners([told["node"] for told in heard])
        self._partner, self._ward = partners[rank], partners.index(rank)
        self._tensors = {number: heard[number]["tensors"] for number in (rank, self._ward)}
        self._size = {number: heard[number]["size"] for number in (rank, self._ward)}
        self._cursor = cursor
        if self._every:
            self._copy()

    def tear(self) -> None:
        """See `Keeper.tear`; copies are not live."""

    def commit(self, cursor: Cursor) -> None:
        """See `Keeper.commit`."""
        self._cursor = cursor
        if self._every and cursor.step % self._every == 0:
            self._copy()
        self._note(cursor)

    def hand_over(self, *, stays: bool) -> None:
        """See `Keeper.hand_over`."""
        if self.newest != self._cursor.step:
            self._copy()
        rank, mine = self._world.rank, self._newest_slabs()
        heard = self._exchange.all_gather([stays, list(mine)])
        moves = plan_moves([told for told, _ in heard], [numbers for _, numbers in heard])
        given = [
            (number, mine[number].about, mine[number].content.numel())
            for number, giver, _ in moves
            if giver == rank
        ]
        told = {
            number: (about, size)
            for pairs in self._exchange.all_gather(given)
            for number, about, size in pairs
        }
        outgoing: dict[int, list[Tensor]] = {}
        incoming: dict[int, list[Tensor]] = {}
        taken: dict[int, Slab] = {}
        for number, giver, taker in moves:
            about, size = told[number]
            if rank == giver:
                outgoing.setdefault(taker, []).append(mine[number].content)
            if rank == taker:
                taken[number] = Slab(about, torch.empty(size, dtype=torch.uint8))
                incoming.setdefault(giver, []).append(taken[number].content)
        self._exchange.trade(outgoing, incoming)
        for number, slab in taken.items():
            self._slabs.held[self._key(number)] = slab
        self._exchange.all_gather(None)  # it has arrived, so whoever gave it may go
        if not stays:
            self._slabs.held.clear()

    def keep(self) -> None:
        """See `Keeper.keep`; what is worth it was copied before."""
        self._spare.clear()
        self._end()

    def _key(self, number: int) -> Key:
        """The name of a share of the version of now."""
        return Key(self._world.attempt, self._cursor.step, number, self._world.size)

    def _newest_slabs(self) -> dict[int, Slab]:
        """The shares that this process holds of the newest version, by number."""
        attempt = self._world.attempt
        return {
            key.number: slab
            for key, slab in self._slabs.held.items()
            if (key.attempt, key.step) == (attempt, self.newest)
        }

    def _copy(self) -> None:
        """Make a version of the live state; until it is whole, the one before it stays."""
        state = self._live()
        targets = find_targets(state)
        if [target.wanted for target in targets] != self._wanted:
            raise CheckpointError("memory of processes: the state is cut otherwise than before")
        attempt, before = self._world.attempt, self.newest
        self._spare += self._slabs.drop(lambda key: key.attempt == attempt and key.step < before)
        rank, ward = self._world.rank, self._ward
        ours, theirs = self._take_memory(self._size[rank]), self._take_memory(self._size[ward])
        pack(self._layout, targets, ours)
        if self._gpu is not None:
            torch.cuda.current_stream(self._gpu).synchronize()
        self._exchange.trade({self._partner: [ours]}, {ward: [theirs]})
        for number, content in ((rank, ours), (ward, theirs)):
            self._hold(self._key(number), state.scalars, self._tensors[number], content)
        self.newest = self._cursor.step

    def _take_memory(self, size: int) -> Tensor:
        """Memory that an older version took, or else new."""
        for index, spare in enumerate(self._spare):
            if spare.numel() == size:
                return self._spare.pop(index)
        return torch.empty(size, dtype=torch.uint8, pin_memory=self._gpu is not None)
