"""The few things that ranks must agree on beside gradients.

All of them are sums of numbers that every rank can represent exactly, or a broadcast, so agreement
never depends on the order of ranks.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from tidemill.spec.progress import World


def use_threads(count: int) -> None:
    """Let torch use `count` threads in this process, at least one."""
    torch.set_num_threads(max(1, count))


def agree(world: World, *counts: int) -> tuple[int, ...]:
    """Sum integers over all ranks, exactly."""
    if world.size == 1:
        return counts
    sums = torch.tensor(counts, dtype=torch.int64, device=world.device)
    dist.all_reduce(sums)
    return tuple(int(value) for value in sums.tolist())


def sum_over_ranks(world: World, total: Tensor) -> float:
    """Sum a float64 scalar over all ranks."""
    if world.size > 1:
        dist.all_reduce(total)
    return float(total)


def from_first_rank(value: int, device: str) -> int:
    """What rank 0 passed as `value`."""
    held = torch.tensor([value], dtype=torch.int64, device=device)
    dist.broadcast(held, src=0)
    return int(held)
