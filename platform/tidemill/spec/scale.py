"""ScaleSpec: how many workers a run may have, what each one asks for, and how failures are borne.

None of it changes what is learned: the batch and the order of samples are the same at every size.
"""

from __future__ import annotations

import re
from dataclasses import field
from typing import ClassVar

from tidemill.spec.base import Spec, spec

LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}")


@spec
class ScaleSpec(Spec):
    """How many workers, and what each one asks Ray for.

    Attributes:
        workers: Ranks of the run; of an elastic one, the most it may have.
        min_workers: Fewest ranks it goes on with; 0 means as many as `workers`, so not elastic.
        cpus_per_worker: Logical CPUs each rank reserves.
        gpus_per_worker: 0 trains on CPU with gloo, 1 on a GPU with NCCL.
        labels: Ray node labels that a node must have, e.g. a GPU class, a tier or a region. A
            value may be one of Ray's conditions: `!spot`, `in(H100,H200)`, `!in(...)`.
        weight: Share of a cluster beside other elastic runs, in proportion to theirs.
        max_failures: Failures in a row, without a step of progress, after which the run gives up;
            -1 never does. A machine that gave notice before it left is none.
        collective_timeout_s: Seconds a collective may wait for a missing rank.
        hang_s: Seconds without progress after which the rank that holds up the others is replaced;
            0 judges by how long the steps so far took.
        copy_every_steps: Steps between copies of sharded state in the memory of a neighbour; 0
            copies none. DDP needs none: every rank holds everything.
        spares: Processes kept ready on further nodes, so that a lost worker is replaced at once.
        recycle_after: Times that a process joins a new group before a fresh one takes its place.
    """

    GROUP: ClassVar[str] = "scale"

    workers: int = 2
    min_workers: int = 0
    cpus_per_worker: float = 1.0
    gpus_per_worker: int = 0
    labels: dict[str, str] = field(default_factory=dict[str, str])
    weight: float = 1.0
    max_failures: int = 3
    collective_timeout_s: float = 300.0
    hang_s: float = 0.0
    copy_every_steps: int = 1
    spares: int = 0
    recycle_after: int = 100

    @property
    def least(self) -> int:
        """Fewest ranks it goes on with."""
        return self.min_workers or self.workers

    @property
    def elastic(self) -> bool:
        """Whether the number of ranks may change."""
        return self.least < self.workers

    def __post_init__(self) -> None:
        self.require_at_least(1, "workers", "recycle_after")
        self.require_at_least(0, "min_workers", "hang_s", "copy_every_steps", "spares")
        self.require(
            self.min_workers <= self.workers,
            "min_workers",
            f"{self.min_workers} is more than scale.workers={self.workers}",
            "use at most as many, or 0 for exactly as many",
        )
        self.require_between(0, 1, "gpus_per_worker")
        self.require_at_least(-1, "max_failures")
        self.require_at_least(1, "collective_timeout_s")
        for key, value, example in (
            ("cpus_per_worker", self.cpus_per_worker, "reserves nothing"),
            ("weight", self.weight, "is no share"),
        ):
            self.require(value > 0, key, f"{value} {example}", "use a positive number, e.g. 1")
        for label in self.labels:
            self.require(
                LABEL.fullmatch(label) is not None,
                "labels",
                f"{label!r} is no label of a Ray node",
                "use its key, e.g. ray.io/accelerator-type",
            )
