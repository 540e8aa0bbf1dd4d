"""What the smaller doors are asked for: text from a checkpoint, its weights, what there is, proof.

All name a run by the directory it has below `storage`; everything about the model comes from the
run itself, so nothing is said twice.
"""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar

from tidemill.spec.base import Spec, spec


@spec
class GenerateSpec(Spec):
    """Text from a run's newest checkpoint.

    Attributes:
        run: Name of the run.
        prompt: Text to go on from.
        tokens: Tokens to generate.
        temperature: Divides the logits; 0 always takes the likeliest token.
        top_k: Sample among this many likeliest tokens; 0 among all.
        seed: Seeds the sampling.
        storage: Directory or URI that holds the run.

        VERBATIM: Fields whose text means nothing to any configuration system.
    """

    VERBATIM: ClassVar[frozenset[str]] = frozenset({"prompt"})

    run: str
    prompt: str = ""
    tokens: int = 200
    temperature: float = 0.8
    top_k: int = 40
    seed: int = 0
    storage: str = "runs"

    def __post_init__(self) -> None:
        _require_run(self, self.run, self.storage)
        self.require_at_least(1, "tokens")
        self.require_between(0.0, 100.0, "temperature")
        self.require_at_least(0, "top_k")
        self.require_between(0, 2**63 - 1, "seed")


class ExportFormat(StrEnum):
    """Number format of exported weights."""

    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"

    @property
    def torch_name(self) -> str:
        """What torch calls it."""
        return {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}[self.value]


@spec
class ExportSpec(Spec):
    """Consolidated weights of a run's newest checkpoint, or of another.

    Attributes:
        run: Name of the run.
        to: Directory or URI to write to.
        step: Step of the checkpoint; 0 takes the newest that is whole.
        dtype: Number format of the written weights.
        shard_gib: Most weights per file, beyond which there are several and an index; a single
            larger tensor has a file of its own. 0 writes one file, however large.
        storage: Directory or URI that holds the run.
        overwrite: Replace what is already at `to`.
    """

    run: str
    to: str
    step: int = 0
    dtype: ExportFormat = ExportFormat.fp32
    shard_gib: float = 5.0
    storage: str = "runs"
    overwrite: bool = False

    def __post_init__(self) -> None:
        _require_run(self, self.run, self.storage)
        self.require_at_least(0, "step", "shard_gib")
        self.require(bool(self.to), "to", "is empty", "name a directory or a URI")


class Action(StrEnum):
    """What to do with the checkpoints of a run."""

    list = "list"
    show = "show"
    verify = "verify"
    prune = "prune"
    diff = "diff"


class Format(StrEnum):
    """How an answer is written: for people, or as one JSON value."""

    text = "text"
    json = "json"


@spec
class CheckpointsSpec(Spec):
    """A look at the checkpoints of a run, or fewer of them.

    Attributes:
        action: What to do.
        run: Name of the run.
        step: Step of the checkpoint; 0 shows and compares the newest that is whole, and verifies
            all of them.
        with_step: Compare with the checkpoint of this step; 0 takes the newest that is whole.
        with_run: Compare with a checkpoint of this run; empty for the same run.
        top: Tensors that a comparison names, those that differ most; 0 names all that differ.
        keep_last: Keep this many of the newest when pruning; the newest that is whole always stays.
        keep_best: Keep this many with the lowest held-out loss, or training loss if none has one.
        keep_every_steps: Keep those whose step is a multiple of this; 0 keeps none for that.
        apply: Remove, instead of saying what would be removed.
        format: How the answer is written.
        storage: Directory or URI that holds the run.
    """

    action: Action
    run: str
    step: int = 0
    with_step: int = 0
    with_run: str = ""
    top: int = 10
    keep_last: int = 0
    keep_best: int = 0
    keep_every_steps: int = 0
    apply: bool = False
    format: Format = Format.text
    storage: str = "runs"

    def __post_init__(self) -> None:
        _require_run(self, self.run, self.storage)
        self.require_at_least(0, "step", "with_step", "top")
        self.require_at_least(0, "keep_last", "keep_best", "keep_every_steps")
        if self.with_run:
            _require_run(self, self.with_run, self.storage, "with_run")
        match self.action:
            case Action.prune:
                self.require(
                    bool(self.keep_last or self.keep_best or self.keep_every_steps),
                    "keep_last",
                    "is not set, and neither is keep_best or keep_every_steps",
                    "say what to keep, e.g. keep_last=2",
                )
            case Action.diff:
                itself = (self.with_run or self.run, self.with_step) == (self.run, self.step)
                self.require(
                    not itself,
                    "with_step",
                    "names the same checkpoint as step",
                    "name another step to compare with, or another run in with_run",
                )
            case _:
                pass


@spec
class AuditSpec(Spec):
    """Proof of which samples a run has used.

    Attributes:
        run: Name of the run.
        format: How the answer is written.
        storage: Directory or URI that holds the run.
    """

    run: str
    format: Format = Format.text
    storage: str = "runs"

    def __post_init__(self) -> None:
        _require_run(self, self.run, self.storage)


def _require_run(asked: Spec, run: str, storage: str, key: str = "run") -> None:
    asked.require(
        bool(run) and "/" not in run and "\\" not in run,
        key,
        f"{run!r} is not the name of a run",
        "use the name it was trained under, and storage=DIR for where it is",
    )
    asked.require(bool(storage), "storage", "is empty", "name a directory or a URI")
