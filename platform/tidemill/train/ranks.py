"""The few things that ranks must agree on beside gradients.

All of them are sums of integers, numbers that one rank alone contributes to, or a broadcast, so
agreement never depends on the order of ranks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from tidemill.plan.batch import BatchPlan
from tidemill.spec.progress import World
from tidemill.train.reduce import sum_in_order


def use_threads(count: int) -> None:
    """Let torch use `count` threads in this process, at least one."""
    torch.set_num_threads(max(1, count))


def agree(world: World, *counts: int) -> tuple[int, ...]:
    """Sum integers over all ranks, exactly; 64-bit sums wrap around."""
    if world.size == 1:
        return counts
    sums = torch.tensor(counts, dtype=torch.int64, device=world.device)
    dist.all_reduce(sums)
    return tuple(int(value) for value in sums.tolist())


class SlotSums:
    """Sums of losses by slot, added up in float64 and in the order of the slots.

    Args:
        world: This rank's place.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._sums: list[Tensor] = []

    def put(self, plan: BatchPlan, totals: Sequence[Tensor]) -> None:
        """Take the next slots' sums.

        Args:
            plan: How these slots are dealt.
            totals: One for each slot that this rank ran; that of an idle rank's dummy has no place.
        """
        sums = torch.zeros(plan.count, dtype=torch.float64, device=self._world.device)
        numbers = list(plan.numbers(self._world.rank))
        if numbers:
            sums[numbers] = torch.stack(list(totals)).double()
        self._sums.append(sums)

    def add_up(self) -> float:
        """The sum over all slots of all ranks. Collective."""
        sums = torch.cat(self._sums)
        if self._world.size > 1:
            dist.all_reduce(sums)  # exact: for each slot, all ranks but one add zero
        return sum_in_order(sums.tolist())


def highest(value: int, device: str) -> int:
    """The highest of what the ranks passed as `value`."""
    held = torch.tensor([value], dtype=torch.int64, device=device)
    dist.all_reduce(held, op=dist.ReduceOp.MAX)
    return int(held)
