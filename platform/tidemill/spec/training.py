"""The nouns that define what is learned: model, data, optim, precision, batch.

Everything here changes the mathematics of a run, so everything here (but `WHERE` fields and
`micro_size`) is part of `RunSpec.digest()`.
"""

from __future__ import annotations

from dataclasses import field
from enum import StrEnum
from typing import Any, ClassVar

from tidemill.spec.base import Spec, spec
from tidemill.spec.placement import Tier


@spec
class ModelSpec(Spec):
    """What maps tokens to next-token logits. Variants: `GptSpec`, `CustomModelSpec`."""

    GROUP: ClassVar[str] = "model"


@spec
class GptSpec(ModelSpec):
    """A pre-norm GPT with rotary positions, SDPA attention and tied embeddings.

    Attributes:
        layers: Transformer blocks.
        heads: Attention heads per block.
        width: Model width; a multiple of 2 x heads (rotary positions turn pairs).
        dropout: Probability on the residual branches; the mask depends on (seed, sample) alone.
    """

    layers: int
    heads: int
    width: int
    dropout: float = 0.0

    def __post_init__(self) -> None:
        self.require_at_least(1, "layers", "heads", "width")
        self.require(
            self.width % (2 * self.heads) == 0,
            "width",
            f"{self.width} does not give {self.heads} heads an even width",
            f"use a multiple of {2 * self.heads}",
        )
        self.require_between(0.0, 0.95, "dropout")


@spec
class CustomModelSpec(ModelSpec):
    """A user's own `torch.nn.Module`.

    Attributes:
        factory: `package.module:function`, called `function(vocab=..., sequence=..., **options)`.
            It returns a module whose `forward(inputs_BS)` gives logits of shape (B, S, vocab).
            If the module has `blocks` (a `ModuleList`), they are the units of sharding and
            recomputation. If `forward` takes `keys_B`, it gets one integer per sample to key
            dropout with.
        options: Passed to the factory as keyword arguments.
    """

    factory: str
    options: dict[str, Any] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        module, _, function = self.factory.partition(":")
        self.require(
            bool(module) and function.isidentifier(),
            "factory",
            f"{self.factory!r} is not package.module:function",
            "name an importable function, e.g. my_lab.models:make_mlp",
        )


@spec
class DataSpec(Spec):
    """Where tokens come from. Variants: `TextSpec`, `TokensSpec`, `SyntheticSpec`.

    Attributes:
        tier: Least trusted machine that these data may be on, whatever the run allows.
    """

    GROUP: ClassVar[str] = "data"
    WHERE: ClassVar[frozenset[str]] = frozenset({"tier"})

    tier: Tier = Tier.community


@spec
class TextSpec(DataSpec):
    """UTF-8 files as byte tokens, one document per file.

    Attributes:
        paths: Files, directories or globs, local or any URI that pyarrow reads. Empty means the
            `.py` sources of the running interpreter's standard library.
        exclude: Globs to leave out, matched against the path below each root.
        held_out: Share of documents kept for validation, chosen by a hash of their content.
    """

    WHERE: ClassVar[frozenset[str]] = frozenset({"tier", "paths", "exclude"})

    paths: list[str] = field(default_factory=list[str])
    exclude: list[str] = field(default_factory=list[str])
    held_out: float = 0.05

    def __post_init__(self) -> None:
        self.require_between(0.0, 0.5, "held_out")


@spec
class TokensSpec(DataSpec):
    """Parquet shards of tokens made by anyone: one row per document, a list of integers each.

    Attributes:
        paths: Parquet files, directories or globs, local or any URI that pyarrow reads.
        vocab: Number of distinct tokens; every token is in [0, vocab).
        column: The list column that holds a document's tokens.
        held_out: Share of documents kept for validation, chosen by a hash of their content.
    """

    WHERE: ClassVar[frozenset[str]] = frozenset({"tier", "paths", "column"})

    paths: list[str]
    vocab: int
    column: str = "tokens"
    held_out: float = 0.05

    def __post_init__(self) -> None:
        self.require(bool(self.paths), "paths", "is empty", "name Parquet files or a glob")
        self.require_at_least(2, "vocab")
        self.require_between(0.0, 0.5, "held_out")


@spec
class SyntheticSpec(DataSpec):
    """Learnable made-up samples for tests: noisy arithmetic sequences, some of them ragged.

    Attributes:
        vocab: Number of distinct tokens.
        samples: Samples per epoch; validation has a tenth as many of its own.
        ragged: Share of samples whose tail targets are masked, all the way to none left.
    """

    vocab: int = 64
    samples: int = 4096
    ragged: float = 0.0

    def __post_init__(self) -> None:
        self.require_at_least(4, "vocab")
        self.require_at_least(1, "samples")
        self.require_between(0.0, 1.0, "ragged")


class ScheduleKind(StrEnum):
    """How the learning rate falls after warm-up."""

    constant = "constant"
    linear = "linear"
    cosine = "cosine"


@spec
class OptimSpec(Spec):
    """The optimizer and its learning rate by step. Variants: `AdamWSpec`, `SgdSpec`.

    Attributes:
        lr: Peak learning rate; never scaled by the world size.
        schedule: Shape of the fall from `lr` to `lr * final_fraction`.
        warmup_steps: Steps of linear rise from 0 to `lr`.
        decay_steps: Step at which the fall ends; later steps stay at the floor.
        final_fraction: Floor of the fall, as a share of `lr`.
        weight_decay: Decoupled for AdamW; applied to tensors of two or more dimensions only.
        clip: Largest global gradient norm; 0 turns clipping off.
    """

    GROUP: ClassVar[str] = "optim"

    lr: float
    schedule: ScheduleKind = ScheduleKind.cosine
    warmup_steps: int = 0
    decay_steps: int = 1000
    final_fraction: float = 0.1
    weight_decay: float = 0.0
    clip: float = 1.0

    def __post_init__(self) -> None:
        self.require(self.lr > 0, "lr", f"{self.lr} is not positive", "use e.g. 1e-3")
        self.require_at_least(0, "lr", "warmup_steps", "weight_decay", "clip")
        self.require(
            self.decay_steps > self.warmup_steps,
            "decay_steps",
            f"{self.decay_steps} is not after optim.warmup_steps={self.warmup_steps}",
            "use more decay_steps or fewer warmup_steps",
        )
        self.require_between(0.0, 1.0, "final_fraction")


@spec
class AdamWSpec(OptimSpec):
    """AdamW (Loshchilov and Hutter, arXiv 1711.05101)."""

    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_between(0.0, 0.99999, "beta1", "beta2")
        self.require(self.eps > 0, "eps", f"{self.eps} is not positive", "use e.g. 1e-8")
        self.require_at_least(0, "eps")


@spec
class SgdSpec(OptimSpec):
    """Stochastic gradient descent with momentum."""

    momentum: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_between(0.0, 0.99999, "momentum")


class PrecisionKind(StrEnum):
    """The number format of forward and backward; masters and moments are always fp32."""

    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


@spec
class PrecisionSpec(Spec):
    """Number formats, and the loss scale that keeps fp16 gradients representable.

    Attributes:
        kind: Format of forward and backward.
        loss_scale: Fixed fp16 loss scale; 0 means dynamic.
        initial_scale_power: First dynamic scale, as a power of two.
        scale_window: Good steps after which the dynamic scale doubles.
        max_skipped_steps: Steps in a row that may be skipped for gradients that are not finite; the
            run stops at the last of them. 0 never stops it.
    """

    GROUP: ClassVar[str] = "precision"
    WHERE: ClassVar[frozenset[str]] = frozenset({"max_skipped_steps"})

    kind: PrecisionKind = PrecisionKind.fp32
    loss_scale: float = 0.0
    initial_scale_power: int = 16
    scale_window: int = 1000
    max_skipped_steps: int = 100

    def __post_init__(self) -> None:
        self.require_at_least(0, "loss_scale", "max_skipped_steps")
        self.require_between(0, 30, "initial_scale_power")
        self.require_at_least(1, "scale_window")
        self.require(
            self.loss_scale == 0 or self.kind is PrecisionKind.fp16,
            "loss_scale",
            f"only fp16 scales its loss, and precision.kind is {self.kind.value}",
            "remove it or use precision=fp16",
        )


@spec
class BatchSpec(Spec):
    """The batch, which no change of machines may change.

    Attributes:
        global_size: Samples per optimizer step, over all ranks.
        micro_size: Most samples one rank holds at once; memory, not mathematics.
        sequence: Tokens per sample.
    """

    GROUP: ClassVar[str] = "batch"
    WHERE: ClassVar[frozenset[str]] = frozenset({"micro_size"})

    global_size: int
    micro_size: int
    sequence: int

    def __post_init__(self) -> None:
        self.require_at_least(1, "global_size", "micro_size")
        self.require_at_least(2, "sequence")
        self.require(
            self.micro_size <= self.global_size,
            "micro_size",
            f"{self.micro_size} is more than batch.global_size={self.global_size}",
            f"use {self.global_size} or less",
        )
