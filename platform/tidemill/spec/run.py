"""RunSpec: everything a person chooses about one run, and the relations between the choices.

A run is identified by its name; what makes its mathematics is identified by `digest()`. Where it
runs (strategy, world, storage) is deliberately not part of that: a run may move.
"""

from __future__ import annotations

import math
import re
from dataclasses import field
from enum import StrEnum
from typing import ClassVar

from tidemill.spec.base import Plain, Spec, digest_of, spec, to_plain
from tidemill.spec.checkpoint import CheckpointSpec
from tidemill.spec.duration import parse_duration
from tidemill.spec.placement import BudgetSpec, PlacementSpec
from tidemill.spec.scale import ScaleSpec
from tidemill.spec.strategy import (
    DdpSpec,
    DeepSpeedSpec,
    Fsdp2Spec,
    MemorySpec,
    Offload,
    StrategySpec,
)
from tidemill.spec.training import (
    BatchSpec,
    DataSpec,
    ModelSpec,
    OptimSpec,
    PrecisionKind,
    PrecisionSpec,
)

SMALLEST_DEEPSPEED_SCALE_WINDOW = 500


@spec
class ReportSpec(Spec):
    """What a run writes down and how often.

    Attributes:
        every_steps: Steps between recorded step events.
        eval_every_steps: Steps between validations; 0 validates only at the end.
        eval_samples: Held-out samples per validation; 0 uses them all.
        live: Show progress in the terminal while the run goes on.
        worker_logs: Also show what Ray and the workers print.
        dashboard: Start Ray's dashboard with a Ray started for the run.
    """

    GROUP: ClassVar[str] = "report"

    every_steps: int = 1
    eval_every_steps: int = 0
    eval_samples: int = 0
    live: bool = True
    worker_logs: bool = False
    dashboard: bool = False

    def __post_init__(self) -> None:
        self.require_at_least(1, "every_steps")
        self.require_at_least(0, "eval_every_steps", "eval_samples")


class Resume(StrEnum):
    """What to do with checkpoints that a run of this name already has."""

    auto = "auto"
    never = "never"
    must = "must"


class Reproducibility(StrEnum):
    """How much of a run is the same again at another number of workers: rounding aside, or all."""

    standard = "standard"
    bitwise = "bitwise"


@spec
class RunSpec(Spec):
    """One run.

    Attributes:
        name: The run's directory below `storage`; the same name resumes the same run.
        seed: Seeds initial weights, sample order and dropout.
        steps: Optimizer steps of the whole run.
        storage: Directory or URI (`s3://`, `gs://`) that holds runs and cached corpora.
        resume: `auto` goes on if it can, `never` refuses a used name, `must` refuses a fresh one.
        reproducibility: `bitwise` gives the same bits at any number of workers (DDP only); a step
            is then cut by `batch.micro_size` alone, which so becomes part of the mathematics.
        deadline: Time from the first launch by which the run must be done, e.g. `12h`, `1d12h`;
            empty if it need not. Shortly before it, the run saves a checkpoint and stops.
    """

    name: str
    seed: int
    steps: int
    storage: str
    resume: Resume
    model: ModelSpec
    data: DataSpec
    optim: OptimSpec
    strategy: StrategySpec
    precision: PrecisionSpec
    batch: BatchSpec
    memory: MemorySpec
    checkpoint: CheckpointSpec
    scale: ScaleSpec
    report: ReportSpec
    placement: PlacementSpec = field(default_factory=PlacementSpec)
    budget: BudgetSpec = field(default_factory=BudgetSpec)
    reproducibility: Reproducibility = Reproducibility.standard
    deadline: str = ""

    @property
    def deadline_s(self) -> float:
        """Seconds from the first launch until the run must be done; infinite if it need not."""
        return parse_duration(self.deadline) if self.deadline else math.inf

    @property
    def bitwise(self) -> bool:
        """Whether every bit is to be the same at any number of workers."""
        return self.reproducibility is Reproducibility.bitwise

    def __post_init__(self) -> None:
        self.require(
            re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._,=+-]{0,199}", self.name) is not None,
            "name",
            f"{self.name!r} cannot name a directory everywhere",
            "use letters, digits and . _ , = + - (at most 200)",
        )
        self.require_between(0, 2**63 - 1, "seed")
        self.require_at_least(1, "steps")
        self.require(bool(self.storage), "storage", "is empty", "name a directory or a URI")
        try:
            parse_duration(self.deadline or "1s")
        except ValueError as error:
            self.require(False, "deadline", str(error), "use e.g. 90m, 12h or 1d12h")  # noqa: FBT003
        self.require(
            not isinstance(self.strategy, DeepSpeedSpec)
            or self.precision.kind is not PrecisionKind.fp16
            or self.precision.loss_scale > 0
            or self.precision.scale_window >= SMALLEST_DEEPSPEED_SCALE_WINDOW,
            "precision.scale_window",
            f"{self.precision.scale_window} with fp16 on DeepSpeed, which halves the update of "
            "every step on which the dynamic scale grows",
            f"use {SMALLEST_DEEPSPEED_SCALE_WINDOW} or more, strategy=ddp, or a fixed "
            "precision.loss_scale",
        )
        self.require(
            self.scale.gpus_per_worker > 0 or not getattr(self.strategy, "overlap", False),
            "strategy.overlap",
            "needs a GPU's streams and scale.gpus_per_worker is 0",
            "use strategy.overlap=false or scale.gpus_per_worker=1",
        )
        refusal = _offload_refusal(self.memory.offload, self.strategy)
        self.require(refusal is None, "memory.offload", *(refusal or ("", "")))
        refusal = _bitwise_refusal(self) if self.bitwise else None
        self.require(refusal is None, "reproducibility", *(refusal or ("", "")))

    def identity(self) -> Plain:
        """The plain form of all that changes the mathematics, and of nothing else.

        The content of a corpus is compared apart (`Corpus.digest`), so its location is left out.
        """
        held: Plain = {"seed": self.seed}
        for part in (self.model, self.data, self.optim, self.precision, self.batch):
            plain = to_plain(part)
            held[part.GROUP] = {key: plain[key] for key in plain if key not in part.WHERE}
        if self.bitwise:  # else the key is left out, as it was before there was a choice
            cut = f"batch.micro_size={self.batch.micro_size}"
            held["reproducibility"] = f"{self.reproducibility.value} with {cut}"
        return held

    def digest(self) -> str:
        """sha256 of `identity()`."""
        return digest_of(self.identity())


def _offload_refusal(offload: Offload, strategy: StrategySpec) -> tuple[str, str] | None:
    """What `strategy` cannot do about `offload`, and the remedy; None if it can."""
    match offload, strategy:
        case Offload.none, _:
            return None
        case _, DdpSpec():
            return (
                f"{offload} and DDP keeps everything where it computes",
                f"use strategy={'deepspeed_z2' if offload is Offload.optimizer else 'fsdp2'}",
            )
        case Offload.optimizer, Fsdp2Spec():
            return (
                "optimizer and FSDP2 keeps masters and moments beside the parameters",
                "use memory.offload=all or strategy=deepspeed_z2",
            )
        case Offload.all, DeepSpeedSpec(stage=1 | 2 as stage):
            return (
                f"all and ZeRO-{stage} keeps whole parameters where it computes",
                "use memory.offload=optimizer or strategy=deepspeed_z3",
            )
        case _:
            return None


def _bitwise_refusal(run: RunSpec) -> tuple[str, str] | None:
    """What stands against the same bits at any number of workers, and the remedy; None if nothing.

    A step has as many slots as one worker would run; a worker beyond their number would stand idle.
    """
    if not isinstance(run.strategy, DdpSpec):
        adds = f"strategy={run.strategy.name} adds up gradients in an order of its own"
        return f"bitwise, and {adds}", "use strategy=ddp, or reproducibility=standard"
    slots = -(-run.batch.global_size // run.batch.micro_size)
    if slots < run.scale.workers:
        most = run.batch.global_size // run.scale.workers
        smaller = f"batch.micro_size={most}, or " if most else ""
        cut = f"bitwise, and batch.micro_size={run.batch.micro_size} cuts a step into {slots} slots"
        return (
            f"{cut}, which leaves scale.workers={run.scale.workers} idle in part",
            f"use {smaller}scale.workers={slots}",
        )
    return None
