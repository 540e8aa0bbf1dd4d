"""CheckpointSpec: when state is saved, what stays of it, and what a fresh run starts from.

None of it changes what is learned, so none of it is part of a run's identity.
"""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar

from tidemill.spec.base import Spec, spec


class Verify(StrEnum):
    """What is checked of a checkpoint that is read; sizes and the manifest always are."""

    full = "full"
    size = "size"


@spec
class CheckpointSpec(Spec):
    """When state is committed, how much of it is kept, and what a fresh run starts from.

    Attributes:
        every_steps: Steps between checkpoints; 0 saves only at the end, on a stop or on demand.
        every_s: Seconds after which a checkpoint is due in any case; 0 never.
        keep_last: Newest checkpoints kept; older ones are removed after each commit.
        keep_best: Also keep this many with the lowest held-out loss (training loss where no
            checkpoint has one).
        keep_every_steps: Also keep those whose step is a multiple of this; 0 keeps none for that.
        verify: `full` compares every byte that is read with its checksum, `size` only sizes.
        retry_for_s: Seconds for which a failing save is tried again, with growing pauses.
        near_gib: Host memory per node for copies of the newest snapshot, on its own node and on
            one other; 0 keeps none. A node needs four times what its ranks save: their own and
            those of another node, the newest and, until that is complete, the one before.
        near_every_steps: Steps between snapshots that go to that memory only; 0 takes none.
        init_from: A safetensors file, or a directory of them, whose weights a fresh run starts
            from; a path or a URI.
        from_run: Name of a run in the same storage from whose checkpoint a fresh run goes on.
        from_step: Step of that checkpoint; 0 takes the newest.
    """

    GROUP: ClassVar[str] = "checkpoint"

    every_steps: int = 100
    every_s: float = 0.0
    keep_last: int = 2
    keep_best: int = 0
    keep_every_steps: int = 0
    verify: Verify = Verify.full
    retry_for_s: float = 120.0
    near_gib: float = 0.0
    near_every_steps: int = 0
    init_from: str = ""
    from_run: str = ""
    from_step: int = 0

    def __post_init__(self) -> None:
        self.require_at_least(0, "every_steps", "every_s", "keep_best", "keep_every_steps")
        self.require_at_least(0, "retry_for_s", "near_gib", "near_every_steps", "from_step")
        self.require_at_least(1, "keep_last")
        self.require(
            not self.near_every_steps or self.near_gib > 0,
            "near_every_steps",
            f"{self.near_every_steps} and checkpoint.near_gib=0 leaves no memory for snapshots",
            "set checkpoint.near_gib to what a node can spare, e.g. 16",
        )
        self.require(
            not (self.init_from and self.from_run),
            "init_from",
            "and checkpoint.from_run both say what the run starts from",
            "keep one of them",
        )
        self.require(
            not self.from_step or bool(self.from_run),
            "from_step",
            f"{self.from_step} names a step and checkpoint.from_run no run",
            "name the run, or remove it",
        )
        self.require(
            "/" not in self.from_run,
            "from_run",
            f"{self.from_run!r} is not the name of a run",
            "use the name of a run in the same storage",
        )
