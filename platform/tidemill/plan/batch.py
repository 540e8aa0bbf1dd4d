"""BatchPlan: deal the samples of a step over any number of ranks without changing the step.

Every rank runs the same number of slots, so collective counts agree; where there are fewer samples
than slots, a slot is empty and runs one dummy sample whose targets are all masked.

With fixed slots, even the cuts between slots do not depend on the ranks: only who runs which slot
does, and ranks may run different numbers of them.
"""

from __future__ import annotations

from dataclasses import dataclass

from tidemill.errors import SpecError


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """One forward and backward of one rank.

    Attributes:
        start: Offset of its first sample within the step.
        size: Samples it holds; an empty slot holds none.
    """

    start: int
    size: int

    @property
    def weight(self) -> int:
        """1, or 0 for an empty slot, which runs a masked dummy sample."""
        return int(self.size > 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPlan:
    """How `global_size` samples are dealt over `world` ranks.

    Attributes:
        global_size: Samples per optimizer step.
        world: Number of ranks.
        count: Slots of the step, over all ranks; their sizes differ by at most one.
        fixed: Whether `count` is the same for every world, so that a rank runs a range of slots.
    """

    global_size: int
    world: int
    count: int
    fixed: bool = False

    @property
    def accumulate(self) -> int:
        """Most slots that a rank runs per step."""
        return -(-self.count // self.world)

    def numbers(self, rank: int) -> range:
        """The numbers of the slots of `rank` within the step, in the order it runs them."""
        if self.fixed:
            first, last = (edge * self.count // self.world for edge in (rank, rank + 1))
            return range(first, last)
        return range(rank, self.count, self.world)

    def slots(self, rank: int) -> tuple[Slot, ...]:
        """The slots of `rank`, in the order it runs them; one that is empty if it has none."""
        base, longer = divmod(self.global_size, self.count)
        return tuple(
            Slot(start=n * base + min(n, longer), size=base + (n < longer))
            for n in self.numbers(rank)
        ) or (Slot(start=self.global_size, size=0),)


def make_batch_plan(
    global_size: int, micro_size: int, world: int, *, fixed: bool = False
) -> BatchPlan:
    """Choose the fewest slots that keep every slot within `micro_size` samples.

    Args:
        global_size: Samples per optimizer step, at least 1.
        micro_size: Most samples one rank holds at once, at least 1.
        world: Number of ranks, at least 1.
        fixed: Choose as for one rank; else the fewest of which every rank runs as many.

    Raises:
        SpecError: An argument is below 1.
    """
    for key, value in (
        ("batch.global_size", global_size),
        ("batch.micro_size", micro_size),
        ("scale.workers", world),
    ):
        if value < 1:
            raise SpecError(key, f"{value} is too small", "use 1 or more")
    count = (
        -(-global_size // micro_size) if fixed else world * -(-global_size // (world * micro_size))
    )
    return BatchPlan(global_size=global_size, world=world, count=count, fixed=fixed)
