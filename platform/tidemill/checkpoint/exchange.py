"""JSON between ranks, and work that succeeds on every rank or fails alike on every rank.

It has a gloo group of its own, so that it works beside NCCL and never mixes with the collectives of
training; bytes travel as uint8 tensors, because nothing here may need pickle.
"""

from __future__ import annotations

import datetime as dt
import json
import logging
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from tidemill.errors import CheckpointError, CorruptCheckpoint, TidemillError
from tidemill.spec.progress import World

PATIENCE = dt.timedelta(minutes=30)
"""How long a rank waits for the slowest one to write or hash its files."""

log = logging.getLogger(__name__)


class Exchange:
    """All ranks of a world, talking JSON. Making one is collective, and so is each method.

    Args:
        world: This rank's place; beyond one rank, `torch.distributed` must be set up.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._group = dist.new_group(backend="gloo", timeout=PATIENCE) if world.size > 1 else None

    def all_gather(self, value: Any) -> list[Any]:
        """Give every rank the JSON values of all ranks, by rank."""
        if self._group is None:
            return [value]
        mine = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self._world.size)]
        dist.all_gather(sizes, torch.tensor([mine.numel()]), group=self._group)
        longest = max(int(size) for size in sizes)
        padded = torch.zeros(longest, dtype=torch.uint8)
        padded[: mine.numel()] = mine
        parts = [torch.empty(longest, dtype=torch.uint8) for _ in sizes]
        dist.all_gather(parts, padded, group=self._group)
        return [
            json.loads(part[: int(size)].numpy().tobytes())
            for part, size in zip(parts, sizes, strict=True)
        ]

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
                log.warning("rank %d failed", self._world.rank, exc_info=error)
        outcomes = self.all_gather(outcome)
        failed = [rank for rank, heard in enumerate(outcomes) if heard["problem"]]
        for rank in failed:
            if outcomes[rank]["corrupt"]:
                raise CorruptCheckpoint(outcomes[rank]["problem"]) from own
        if failed:
            where = f"rank {failed[0]}: " if self._world.size > 1 else ""
            more = len(failed) - 1
            others = f" (and {more} more rank{'s' * (more > 1)})" if more else ""
            raise CheckpointError(where + outcomes[failed[0]]["problem"] + others) from own
        return [heard["result"] for heard in outcomes]

    def first(self, work: Callable[[], Any]) -> Any:
        """Do `work` on rank 0 and give every rank its result; raises as `together` does."""
        return self.together(work if self._world.rank == 0 else _nothing)[0]


def _nothing() -> None:
    return None


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if isinstance(error, TidemillError) else f"{type(error).__name__}: {text}"
