"""Memory: the newest state of a run in the host memory of the processes that train it.

A process outlives the group that it trains in, and so does what it holds here. Whoever is left of a
group fills the engines of the next one from it, whatever its size, without a word to storage.

*Sharded* state (FSDP2, ZeRO) is copied after a step, each rank's share to its own memory and to
that of one other rank, on another node if there is one. Two versions are held: while one is under
way, the one before is whole. AdamW has 12 bytes of state per parameter in fp32; so a rank spends
48 bytes × parameters / world of host memory and sends a quarter of that for each version; while a
group begins, half of it is what the old group left. What two ranks held alone is lost when both of
them are, and then there is storage.

*Replicated* state (DDP, or any in a world of one) is copied when an attempt ends, and only if it is
whole then: 12 bytes × parameters on every rank from that moment until the next attempt has begun,
and nothing while it trains.
"""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tidemill.checkpoint import shares
from tidemill.checkpoint.checksum import add_up, checksum_stored
from tidemill.checkpoint.content import find_targets
from tidemill.checkpoint.exchange import PATIENCE, Exchange
from tidemill.checkpoint.fragments import StoredTensor, plan_copies
from tidemill.checkpoint.holdings import Inventory, Whole, find_whole
from tidemill.checkpoint.keeper import Keeper, Slabs, WholeKeeper
from tidemill.checkpoint.ring import RingKeeper
from tidemill.errors import CheckpointError
from tidemill.spec.progress import Cursor, State, World

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Held", "Keeper", "Memory"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A state all of which is held by ranks of a group.

    Attributes:
        attempt: The attempt that made it.
        cursor: Where the run goes on.
        world: Ranks that trained it.
        scalars: JSON values of the state.
        origin: What the run started from, see `Manifest.origin`.
        tensors: What is held, the number of its share in the place of a file's name.
        whole: Who holds it.
        exchange: Between the ranks that looked for it.
    """

    attempt: int
    cursor: Cursor
    world: int
    scalars: dict[str, Any]
    origin: dict[str, Any]
    tensors: dict[str, StoredTensor]
    whole: Whole
    exchange: Exchange

    @property
    def newest(self) -> bool:
        """Whether the run never got further, so that no checkpoint can be newer."""
        return self.whole.newest

    def source(self, number: int, rank: int) -> int:
        """Who gives a share to `rank`: itself if it can, or else one of those who hold it."""
        holders = self.whole.holders[number]
        return rank if rank in holders else holders[rank % len(holders)]


class Memory:
    """What one process holds; one per process, for as long as it lives.

    Attributes:
        origin: What the run started from, see `Manifest.origin`; its checkpoints will have to say.
    """

    def __init__(self) -> None:
        self.origin: dict[str, Any] = {}
        self._slabs = Slabs()

    def find(self, exchange: Exchange) -> Held | None:
        """Look for the newest state that this group can go on from. Collective.

        Args:
            exchange: Between the ranks of the group; its attempt is later than what it may find.

        Returns:
            It; None if some of each is held by nobody, or if a later attempt has trained without
            any of these processes, so that they hold what is no longer the run's history.
        """
        rank, attempt = exchange.world.rank, exchange.world.attempt
        told = exchange.all_gather(self._slabs.inventory().plain())
        self._slabs.vain.append(attempt)  # until it has begun
        whole = find_whole([Inventory.from_plain(plain) for plain in told], attempt)
        if whole is None:
            return None
        mine = [
            (number, self._slabs.held[whole.key(number)].about | {"origin": self.origin})
            for number, holders in enumerate(whole.holders)
            if holders[0] == rank
        ]
        heard = dict(pair for pairs in exchange.all_gather(mine) for pair in pairs)
        try:
            tensors = shares.join_tensors([heard[number] for number in sorted(heard)])
        except CheckpointError as error:
            log.warning("step %d in the memory of processes is not whole: %s", whole.step, error)
            return None
        return Held(
            attempt=whole.attempt,
            cursor=Cursor(step=whole.step, samples=heard[0]["samples"]),
            world=heard[0]["world"],
            scalars=heard[0]["scalars"],
            origin=heard[0]["origin"],
            tensors=tensors,
            whole=whole,
            exchange=exchange,
        )

    def fill(self, found: Held, state: State, world: World) -> int:
        """Fill `state` with what `find` found, bytes sent only to those who lack them. Collective.

        Args:
            found: It.
            state: Its pieces are filled in place, however they are cut, and its scalars updated.
            world: This rank's place.

        Returns:
            The checksum of what is held, for comparison with the one of what was filled.

        Raises:
            CheckpointError: It is of another model or optimizer; the same one on every rank.
        """
        incoming: dict[int, list[Tensor]] = {}

        def ask() -> dict[int, list[tuple[int, int, int]]]:
            shares.require_fit("memory of processes", state, found.tensors)
            targets = find_targets(state)
            asked: dict[int, list[tuple[int, int, int]]] = {}
            plan = plan_copies([target.wanted for target in targets], found.tensors)
            for file, copies in plan.items():
                number = int(file)
                source = found.source(number, world.rank)
                for copy in copies:
                    target = targets[copy.target].memory[copy.at : copy.at + copy.size]
                    if source == world.rank:
                        target.copy_(self._read(found.whole, number, copy.offset, copy.size))
                    else:
                        asked.setdefault(source, []).append((number, copy.offset, copy.size))
                        incoming.setdefault(source, []).append(target)
            return asked

        outgoing = {
            rank: [self._read(found.whole, *wish) for wish in asked[str(world.rank)]]
            for rank, asked in enumerate(found.exchange.together(ask))
            if str(world.rank) in asked
        }
        found.exchange.trade(outgoing, incoming)
        state.scalars.update(found.scalars)
        kept = found.attempt, found.cursor.step  # others are older, or were never whole
        self._slabs.drop(lambda key: (key.attempt, key.step) != kept)

        def read(file: str, offset: int, size: int) -> Tensor | None:
            mine = found.whole.holders[int(file)][0] == world.rank
            return self._read(found.whole, int(file), offset, size) if mine else None

        return add_up(found.exchange.all_gather(checksum_stored(found.tensors, read)))

    def begin(
        self,
        world: World,
        look: Callable[[], State],
        cursor: Cursor,
        *,
        replicated: bool,
        every: int,
        node: str = "",
        patience: dt.timedelta = PATIENCE,
    ) -> Keeper:
        """Keep the state of an attempt from now on. Collective.

        What earlier attempts left is dropped once this one's state is held by every rank, so an
        attempt that fails before that leaves all of it to the next one.

        Args:
            world: This rank's place.
            look: Gives views of this rank's share of the live state; of all of it, if replicated.
            cursor: Where the run goes on.
            replicated: Whether every rank has all of the state.
            every: Steps between two copies of what is sharded; 0 copies none.
            node: Name of this rank's node, so that copies lie on another one.
            patience: How long a rank waits for another one.

        Raises:
            CheckpointError: What is said to be replicated is not all of the state.
        """
        exchange = Exchange(world, patience)
        try:
            keeper = (
                WholeKeeper(self._slabs, exchange, look)
                if replicated or world.size == 1
                else RingKeeper(self._slabs, exchange, look, every=every, node=node)
            )
            keeper.begin(cursor)
            exchange.all_gather(None)
        except BaseException:
            exchange.close()
            raise
        self._slabs.drop(lambda key: key.attempt != world.attempt)
        self._slabs.attempt, self._slabs.step = world.attempt, cursor.step
        self._slabs.vain.clear()
        return keeper

    def _read(self, whole: Whole, number: int, offset: int, size: int) -> Tensor:
        return self._slabs.held[whole.key(number)].content[offset : offset + size]
