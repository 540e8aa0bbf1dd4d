"""BatchPlan: deal the samples of a step over any number of ranks without changing the step.

Every rank runs the same number of slots, so collective counts agree; where there are fewer samples
than slots, a slot is empty and runs one dummy sample whose targets are all masked.
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
        accumulate: Slots that every rank runs per step.
    """

    global_size: int
    world: int
    accumulate: int

    def slots(self, rank: int) -> tuple[Slot, ...]:
        """The slots of `rank`, in the order it runs them.

        Slot j of rank r is number j * world + r of the step; sizes differ by at most one.
        """
        base, longer = divmod(self.global_size, self.accumulate * self.world)
        return tuple(
            Slot(start=n * base + min(n, longer), size=base + (n < longer))
            for n in range(rank, self.accumulate * self.world, self.world)
        )


def make_batch_plan(global_size: int, micro_size: int, world: int) -> BatchPlan:
    """Choose the fewest slots that keep every slot within `micro_size` samples.

    Args:
        global_size: Samples per optimizer step, at least 1.
        micro_size: Most samples one rank holds at once, at least 1.
        world: Number of ranks, at least 1.

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
    return BatchPlan(
        global_size=global_size, world=world, accumulate=-(-global_size // (world * micro_size))
    )
