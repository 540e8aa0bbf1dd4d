"""JSON and bytes between ranks, and work that succeeds on every rank or fails alike on every rank.

It has a gloo group of its own, so that it works beside NCCL and never mixes with the collectives of
training; bytes travel as uint8 tensors, because nothing here may need pickle.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from tidemill.errors import CheckpointError, CorruptCheckpoint, TidemillError, TrainingError
from tidemill.spec.progress import World

PATIENCE = dt.timedelta(minutes=30)
"""How long a rank waits for the slowest one to write or hash its files."""
MESSAGE = 8 * 2**20
"""Most bytes of one message; a rank that trades holds one at most for each rank it trades with."""

log = logging.getLogger(__name__)


class Exchange:
    """All ranks of a world, talking. Making one is collective, and so is each method but `close`.

    Args:
        world: This rank's place; beyond one rank, `torch.distributed` must be set up.
        patience: How long a rank waits for another one.
    """

    def __init__(self, world: World, patience: dt.timedelta = PATIENCE) -> None:
        self.world = world
        self._group: dist.ProcessGroup | None = None
        if world.size > 1:
            dist.barrier()  # fails at once if a rank is gone; making a group waits for it
            group = dist.new_group(backend="gloo", timeout=patience)
            self._group = cast("dist.ProcessGroup", group)
            dist.barrier(self._group)  # who closes it at once fails none that is still connecting
        self._closed = False

    def all_gather(self, value: Any) -> list[Any]:
        """Give every rank the JSON values of all ranks, by rank."""
        group = self._require_group()
        if group is None:
            return [value]
        mine = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world.size)]
        dist.all_gather(sizes, torch.tensor([mine.numel()]), group=group)
        longest = max(int(size) for size in sizes)
        padded = torch.zeros(longest, dtype=torch.uint8)
        padded[: mine.numel()] = mine
        parts = [torch.empty(longest, dtype=torch.uint8) for _ in sizes]
        dist.all_gather(parts, padded, group=group)
        return [
            json.loads(part[: int(size)].numpy().tobytes())
            for part, size in zip(parts, sizes, strict=True)
        ]

    def trade(
        self, outgoing: Mapping[int, Sequence[Tensor]], incoming: Mapping[int, Sequence[Tensor]]
    ) -> None:
        """Send bytes to other ranks while theirs come in.

        Args:
            outgoing: What each rank is sent: 1-D contiguous uint8 tensors on the host.
            incoming: Where what each rank sends goes, as many bytes as that: 1-D contiguous uint8
                tensors on any device, cut in any way.
        """
        group = self._require_group()
        letters = {rank: _cut(parts) for rank, parts in outgoing.items()}
        boxes = {rank: _cut(parts) for rank, parts in incoming.items()}
        for number in range(max(map(len, (*letters.values(), *boxes.values())), default=0)):
            arrived: list[tuple[Tensor, list[Tensor]]] = []
            under_way: list[Any] = []
            for rank, messages in boxes.items():
                for parts in messages[number : number + 1]:
                    whole = _is_plain(parts)
                    buffer = parts[0] if whole else torch.empty(_size(parts), dtype=torch.uint8)
                    arrived += [] if whole else [(buffer, parts)]
                    under_way.append(dist.irecv(buffer, rank, group))
            for rank, messages in letters.items():
                for parts in messages[number : number + 1]:
                    letter = parts[0] if _is_plain(parts) else torch.cat(parts)
                    under_way.append(dist.isend(letter, rank, group))
            for work in under_way:
                work.wait()
            for buffer, parts in arrived:
                for part, held in zip(parts, buffer.split([p.numel() for p in parts]), strict=True):
                    part.copy_(held)

    def together(self, work: Callable[[], Any]) -> list[Any]:
        """Do `work` on every rank and wait for all of them.

        Args:
            work: Returns a JSON value; must not communicate.

        Returns:
            What each rank returned, by rank.

        Raises:
            CorruptCheckpoint: Some rank raised it; the same one on every rank.
            CheckpointError: Some rank failed otherwise; the same one on every rank.
        """
        own: Exception | None = None
        outcome: dict[str, Any] = {"result": None, "problem": "", "corrupt": False}
        try:
            outcome["result"] = work()
        except Exception as error:
            own = error
            outcome["problem"] = _one_line(error)
            outcome["corrupt"] = isinstance(error, CorruptCheckpoint)
            if not isinstance(error, TidemillError):
                log.warning("rank %d failed", self.world.rank, exc_info=error)
        outcomes = self.all_gather(outcome)
        failed = [rank for rank, heard in enumerate(outcomes) if heard["problem"]]
        for rank in failed:
            if outcomes[rank]["corrupt"]:
                raise CorruptCheckpoint(outcomes[rank]["problem"]) from own
        if failed:
            where = f"rank {failed[0]}: " if self.world.size > 1 else ""
            more = len(failed) - 1
            others = f" (and {more} more rank{'s' * (more > 1)})" if more else ""
            raise CheckpointError(where + outcomes[failed[0]]["problem"] + others) from own
        return [heard["result"] for heard in outcomes]

    def first(self, work: Callable[[], Any]) -> Any:
        """Do `work` on rank 0 and give every rank its result; raises as `together` does."""
        return self.together(work if self.world.rank == 0 else _nothing)[0]

    def close(self) -> None:
        """Talk no more, and let whoever waits for this rank hear of it at once.

        gloo cannot break off what another thread waits for here. But a group that nobody uses any
        more closes its connections, and a thread that waits for another rank fails as soon as that
        one closes; so the ranks that are left of a group set one another free.
        """
        self._closed = True
        group, self._group = self._group, None
        if group is not None:
            with contextlib.suppress(ValueError, AssertionError):  # all groups are gone already
                dist.destroy_process_group(group)

    def _require_group(self) -> dist.ProcessGroup | None:
        """The group as of now: another thread may close it. None only in a world of one."""
        group = self._group
        if self._closed:
            raise TrainingError("ranks do not talk any more: the attempt has ended")
        return group


def _nothing() -> None:
    return None


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if isinstance(error, TidemillError) else f"{type(error).__name__}: {text}"


def _cut(parts: Iterable[Tensor]) -> list[list[Tensor]]:
    """Group views of `parts` into messages, full but for the last one."""
    messages: list[list[Tensor]] = []
    room = 0
    for part in parts:
        left = part
        while left.numel():
            if not room:
                messages.append([])
                room = MESSAGE
            messages[-1].append(left[:room])
            left, room = left[room:], room - messages[-1][-1].numel()
    return messages


def _is_plain(parts: Sequence[Tensor]) -> bool:
    """Whether a message is one range of host memory, so that it needs no other."""
    return len(parts) == 1 and parts[0].device.type == "cpu"


def _size(parts: Iterable[Tensor]) -> int:
    return sum(part.numel() for part in parts)
