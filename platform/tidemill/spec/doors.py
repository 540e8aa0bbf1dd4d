"""What the smaller doors are asked for: text from a checkpoint, or its consolidated weights.

Both name a run by the directory it has below `storage`; everything about the model comes from the
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


def _require_run(asked: Spec, run: str, storage: str) -> None:
    asked.require(
        bool(run) and "/" not in run and "\\" not in run,
        "run",
        f"{run!r} is not the name of a run",
        "use the name it was trained under, and storage=DIR for where it is",
    )
    asked.require(bool(storage), "storage", "is empty", "name a directory or a URI")
