"""Activations: what a micro-batch holds between forward and backward, and what a model is made of.

For our GPT it follows from its sizes, for the kernels that torch 2.13 takes on a GPU; of any other
model it must be traced (`tidemill.train.footprint`). A trace sees the kernels of a CPU, which fuse
less: for them there is the same formula, so that it can be held against the trace.

Sources: Korthikanti et al., "Reducing Activation Recomputation in Large Transformer Models", arXiv
2205.05198, section 4.1 (the method; its 34 s b h has other kernels and GPT-2's dropout). What each
operator saves is from torch's `derivatives.yaml`: `linear` its input, `gelu` its input, attention
(FlashAttention, Dao et al., arXiv 2205.14135) q, k, v, its output and one fp32 per row and head.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tidemill.errors import SpecError
from tidemill.plan.batch import make_batch_plan
from tidemill.plan.run import count_parameters
from tidemill.spec.run import RunSpec
from tidemill.spec.strategy import DdpSpec, Recompute
from tidemill.spec.training import GptSpec, PrecisionKind

FP32 = 4
"""Bytes of an element: masters, moments, reductions, logits."""
LOGITS = 3 * FP32
"""Bytes of a logit when backward begins: log-probability, its gradient, the logit's gradient."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Activations:
    """What one micro-batch needs beside parameters, their gradients and buffers.

    Attributes:
        samples: Of the micro-batch.
        saved_bytes: Held when forward has ended.
        peak_bytes: Most that is held at a time, in forward or backward.
        logits_bytes: As much of the peak is due to the logits, as far as that is known.
        saved_fixed_bytes: As much of `saved_bytes` does not depend on samples: autocast's copies.
        peak_fixed_bytes: The same of `peak_bytes`.
    """

    samples: int
    saved_bytes: int
    peak_bytes: int
    logits_bytes: int = 0
    saved_fixed_bytes: int = 0
    peak_fixed_bytes: int = 0

    def of(self, samples: int) -> Activations:
        """The same of a micro-batch of another size: in proportion, but for what is fixed."""

        def scaled(held: int, fixed: int = 0) -> int:
            return fixed - (fixed - held) * samples // self.samples

        return replace(
            self,
            samples=samples,
            saved_bytes=scaled(self.saved_bytes, self.saved_fixed_bytes),
            peak_bytes=scaled(self.peak_bytes, self.peak_fixed_bytes),
            logits_bytes=scaled(self.logits_bytes),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """A model, as far as memory goes.

    Attributes:
        parameters: Elements of all weights, shared ones counted once.
        trained: Elements of those that are trained.
        largest: Elements of the largest tensor.
        block: Elements of the largest block; 0 if it has no blocks.
        blocks: How many blocks it has.
        activations: Of one micro-batch.
    """

    parameters: int
    trained: int
    largest: int
    block: int
    blocks: int
    activations: Activations


def low_bytes(kind: PrecisionKind) -> int:
    """Bytes of an element in forward and backward."""
    return FP32 if kind is PrecisionKind.fp32 else 2


def largest_slot(spec: RunSpec, world: int) -> int:
    """Most samples that a rank holds at once."""
    batch = spec.batch
    plan = make_batch_plan(batch.global_size, batch.micro_size, world, fixed=spec.bitwise)
    return -(-batch.global_size // plan.count)


def footprint_of(spec: RunSpec, *, vocab: int, fused: bool = True) -> Footprint:
    """The footprint of our GPT at `batch.micro_size`, by formula.

    Args:
        spec: The run.
        vocab: Number of distinct tokens.
        fused: Kernels of a GPU; else those that a CPU takes, as a trace sees them.

    Raises:
        SpecError: It is a model of the user's own.
    """
    parameters = count_parameters(spec.model, vocab=vocab)
    if not isinstance(spec.model, GptSpec) or parameters is None:
        raise SpecError("model", "is your own, so no formula knows its size", "have it traced")
    gpt, width = spec.model, spec.model.width
    return Footprint(
        parameters=parameters,
        trained=parameters,
        largest=width * max(vocab, 4 * width),
        block=12 * width**2 + 2 * width,
        blocks=gpt.layers,
        activations=_activations(spec, gpt, vocab=vocab, fused=fused),
    )


def _activations(spec: RunSpec, gpt: GptSpec, *, vocab: int, fused: bool) -> Activations:
    """By formula; `low` and `stream` are bytes of an element, `stream` of the residual one.

    Under DDP, autocast keeps the stream in fp32 and a low-precision copy of each matrix; the other
    strategies compute in low precision throughout.
    """
    kind, width = spec.precision.kind, gpt.width
    low = low_bytes(kind)
    autocast = isinstance(spec.strategy, DdpSpec) and kind is not PrecisionKind.fp32
    stream = FP32 if autocast else low
    tokens = spec.batch.micro_size * spec.batch.sequence
    recomputed = spec.memory.recompute is Recompute.blocks

    # Inputs of norms. On a CPU also what they are multiplied with, in fp32, as are then the inputs.
    norm = stream if fused else 2 * FP32
    # Attention of fp32 is another kernel on a GPU, whose output needs no copy to be a matrix again.
    copies = 0 if fused and kind is PrecisionKind.fp32 else 1
    # Inputs of qkv and up, qkv, turned q and k, attended and its copy, up, gelu.
    matrices = (2 + 3 + 2 + 1 + copies + 4 + 4) * low
    masks = 2 * low if gpt.dropout else 0
    rows = FP32 * (gpt.heads + 2)
    block = tokens * ((2 * norm + matrices + masks) * width + rows)
    rotary = FP32 * spec.batch.sequence * width // gpt.heads
    ends = tokens * ((norm + low + (stream if gpt.dropout else 0)) * width + FP32)
    copied = low * 12 * width**2 if autocast else 0
    head = low * vocab * width

    kept = tokens * stream * width if recomputed else block
    fixed = rotary + (head if autocast else 0) + (0 if recomputed else gpt.layers * copied)
    saved = gpt.layers * kept + ends + fixed
    # Each is the most at one time: logits as backward begins; on the way to them, what autocast
    # keeps of blocks that will be recomputed; and one block's backward, by which logits are gone.
    logits = LOGITS * tokens * vocab
    again = gpt.layers * copied if recomputed else 0
    copies_and_logits = again + (low + 2 * FP32) * tokens * vocab if recomputed else 0
    passing = FP32 * (3 if gpt.dropout or not recomputed else 1) * tokens * width
    working_fixed = head + (copied if recomputed else 0)
    working = passing + working_fixed + (block if recomputed else 0)
    most, most_fixed = max((logits, 0), (copies_and_logits, again), (working, working_fixed))
    return Activations(
        samples=spec.batch.micro_size,
        saved_bytes=saved + logits // 3,
        peak_bytes=saved + most,
        logits_bytes=logits if logits == most else 0,
        saved_fixed_bytes=fixed,
        peak_fixed_bytes=fixed + most_fixed,
    )
