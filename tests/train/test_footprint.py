"""A trace measures what real memory would hold, and the formula says the same without torch."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

from tests.spec.test_run import RUN
from tidemill.errors import SpecError
from tidemill.plan.activations import Activations, footprint_of
from tidemill.spec.run import RunSpec
from tidemill.spec.strategy import (
    DdpSpec,
    DeepSpeedSpec,
    Fsdp2Spec,
    MemorySpec,
    Recompute,
    StrategySpec,
)
from tidemill.spec.training import (
    BatchSpec,
    CustomModelSpec,
    GptSpec,
    PrecisionKind,
    PrecisionSpec,
)
from tidemill.train.engine import LossModel
from tidemill.train.footprint import Alive, trace_footprint
from tidemill.train.model import apply_recompute, build_model
from tidemill.train.precision import DTYPES

SAVED, PEAK = 0.001, 0.05
"""How far the formula may be off the trace."""
ODDS = 100
"""Bytes of tables and counts that are not worth a term."""
GROWTH_MIB = 500
"""Of a process that traces a model of 4 GB; what it is made of is code."""

STRATEGIES = (DdpSpec(), Fsdp2Spec(), DeepSpeedSpec(stage=2))
MODELS: dict[str, tuple[GptSpec, int, int, int]] = {
    "nano": (GptSpec(layers=4, heads=2, width=128), 257, 8, 128),
    "dropout": (GptSpec(layers=3, heads=2, width=64, dropout=0.1), 1000, 3, 48),
    "bytes": (GptSpec(layers=6, heads=4, width=128), 16, 4, 256),
    "wide": (GptSpec(layers=3, heads=12, width=768), 50_257, 8, 1024),
}
"""Sizes, vocabulary, samples and sequence."""
each_recompute = pytest.mark.parametrize("recompute", Recompute)


def make_run(model: Any, kind: PrecisionKind = PrecisionKind.fp32, **more: Any) -> RunSpec:
    usual: dict[str, Any] = {
        "model": model,
        "precision": PrecisionSpec(kind=kind),
        "batch": BatchSpec(global_size=4, micro_size=4, sequence=32),
    }
    return replace(RUN, **usual | more)


# --- the formula and the trace ---------------------------------------------------------------


@each_recompute
@pytest.mark.parametrize("kind", PrecisionKind)
@pytest.mark.parametrize(
    ("strategy", "model", "vocab", "samples", "sequence"),
    [
        pytest.param(strategy, *sizes, id=f"{name}-{strategy.name}")
        for name, sizes in MODELS.items()
        for strategy in STRATEGIES
        # To our GPT, which has no buffers, FSDP2 and DeepSpeed are the same.
        if name == "nano" or not isinstance(strategy, DeepSpeedSpec)
    ],
)
def test_the_formula_says_what_the_trace_sees(
    *,
    strategy: StrategySpec,
    model: GptSpec,
    vocab: int,
    samples: int,
    sequence: int,
    kind: PrecisionKind,
    recompute: Recompute,
) -> None:
    spec = make_run(
        model,
        kind,
        strategy=strategy,
        memory=MemorySpec(recompute=recompute),
        batch=BatchSpec(global_size=samples, micro_size=samples, sequence=sequence),
    )
    traced, said = trace_footprint(spec, vocab), footprint_of(spec, vocab=vocab, fused=False)
    assert replace(traced, activations=said.activations) == said
    seen, formula = traced.activations, said.activations
    assert formula.saved_bytes == pytest.approx(seen.saved_bytes, rel=SAVED)
    assert formula.peak_bytes == pytest.approx(seen.peak_bytes, rel=PEAK)
    assert formula.saved_fixed_bytes == pytest.approx(seen.saved_fixed_bytes, rel=SAVED, abs=ODDS)
    # A GPU's kernels save less than a CPU's, never more.
    fused = footprint_of(spec, vocab=vocab).activations
    assert 0.75 < fused.peak_bytes / formula.peak_bytes <= 1


# --- the trace and real memory ---------------------------------------------------------------


def real_model(spec: RunSpec, vocab: int) -> tuple[LossModel, tuple[Tensor, ...]]:
    samples, sequence = spec.batch.micro_size, spec.batch.sequence
    model = build_model(spec.model, vocab=vocab, sequence=sequence, seed=0)
    apply_recompute(model, spec.memory.recompute)
    if not isinstance(spec.strategy, DdpSpec):
        model.to(DTYPES[spec.precision.kind])
    inputs_BS = torch.zeros(samples, sequence, dtype=torch.int64)
    return LossModel(model), (inputs_BS, inputs_BS.clone(), torch.zeros(samples, dtype=torch.int64))


def autocast(spec: RunSpec) -> Any:
    low = spec.precision.kind is not PrecisionKind.fp32 and isinstance(spec.strategy, DdpSpec)
    return torch.autocast("cpu", DTYPES[spec.precision.kind], enabled=low)


real = pytest.mark.parametrize(
    ("kind", "strategy"),
    [
        (PrecisionKind.fp32, DdpSpec()),
        (PrecisionKind.bf16, DdpSpec()),
        (PrecisionKind.bf16, Fsdp2Spec()),
        (PrecisionKind.fp16, Fsdp2Spec()),
    ],
    ids=["fp32", "autocast", "bf16", "fp16"],
)


@each_recompute
@real
def test_the_trace_is_what_the_allocator_hands_out(
    kind: PrecisionKind, strategy: StrategySpec, recompute: Recompute
) -> None:
    spec = make_run(
        GptSpec(layers=2, heads=2, width=64),
        kind,
        strategy=strategy,
        memory=MemorySpec(recompute=recompute),
    )
    model, batch = real_model(spec, 97)
    with (
        profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded,
        autocast(spec),
    ):
        loss = model(*batch)
    assert loss.requires_grad
    profiler: Any = recorded.profiler
    events = profiler.kineto_results.events()
    allocated = sum(event.nbytes() for event in events if event.name() == "[memory]")
    assert trace_footprint(spec, 97).activations.saved_bytes == allocated


@real
def test_it_is_what_autograd_saves(kind: PrecisionKind, strategy: StrategySpec) -> None:
    spec = make_run(GptSpec(layers=2, heads=2, width=64), kind, strategy=strategy)
    model, batch = real_model(spec, 97)
    known = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *batch)}
    saved: dict[int, tuple[Tensor, int]] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            saved[storage.data_ptr()] = (tensor, storage.nbytes())
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor), autocast(spec):
        loss = model(*batch)
    held = sum(size for _, size in saved.values())
    traced = trace_footprint(spec, 97).activations.saved_bytes
    assert traced - held == loss.nbytes  # the one thing that forward returns and nobody saves


def test_the_peak_is_that_of_real_tensors() -> None:
    spec = make_run(GptSpec(layers=2, heads=2, width=64))
    model, batch = real_model(spec, 97)
    for weight in model.parameters():
        weight.register_post_accumulate_grad_hook(lambda held: setattr(held, "grad", None))
    alive = Alive(batch, model.parameters())
    with alive:
        model(*batch).backward()
    assert trace_footprint(spec, 97).activations.peak_bytes == alive.peak.bytes


@each_recompute
@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda each: each.name)
def test_a_smaller_micro_batch_need_not_be_traced_again(
    strategy: StrategySpec, recompute: Recompute
) -> None:
    def traced(samples: int) -> Activations:
        batch = BatchSpec(global_size=8, micro_size=samples, sequence=256)
        memory = MemorySpec(recompute=recompute)
        model = GptSpec(layers=4, heads=2, width=128)
        spec = make_run(model, PrecisionKind.bf16, strategy=strategy, memory=memory, batch=batch)
        return trace_footprint(spec, 257).activations

    small, scaled = traced(2), traced(8).of(2)
    assert scaled.saved_fixed_bytes == small.saved_fixed_bytes > 0
    assert scaled.saved_bytes == pytest.approx(small.saved_bytes, rel=SAVED)
    assert scaled.peak_bytes == pytest.approx(small.peak_bytes, rel=PEAK)


# --- what is counted of attention ------------------------------------------------------------


def test_attention_is_counted_as_flash_unless_only_math_will_do() -> None:
    model = GptSpec(layers=1, heads=2, width=64)

    def saved(sequence: int, backend: SDPBackend | None) -> int:
        batch = BatchSpec(global_size=2, micro_size=2, sequence=sequence)
        with sdpa_kernel(backend) if backend else contextlib.nullcontext():
            found = trace_footprint(make_run(model, batch=batch), 8)
        return found.activations.saved_bytes

    # Flash is what a CPU takes by itself, and has nothing that grows with the square.
    assert saved(128, None) == saved(128, SDPBackend.FLASH_ATTENTION)
    assert saved(256, None) == pytest.approx(2 * saved(128, None), rel=1e-3)
    scores = 4 * 2 * 2 * 128**2  # one fp32 matrix per sample and head
    grown = saved(256, SDPBackend.MATH) - 2 * saved(128, SDPBackend.MATH)
    assert grown == pytest.approx((2**2 - 2) * scores, rel=1e-3)


# --- any model -------------------------------------------------------------------------------


class Keyless(nn.Module):
    """A user's model: half of it frozen, one buffer, no blocks."""

    def __init__(self, vocab: int, width: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab, width).requires_grad_(False)
        self.head = nn.Linear(width, vocab)
        self.register_buffer("gain", torch.ones(width))

    def forward(self, inputs_BS: Tensor) -> Tensor:
        return self.head(self.embed(inputs_BS) * self.gain)


class Capped(Keyless):
    """A model whose buffer has a say in what is saved."""

    def __init__(self, vocab: int, width: int) -> None:
        super().__init__(vocab, width)
        self.register_buffer("cap", torch.full((vocab,), 30.0))

    def forward(self, inputs_BS: Tensor) -> Tensor:
        return torch.tanh(self.head(self.embed(inputs_BS)) * self.cap)


class Peeking(Keyless):
    """A model that depends on values."""

    def forward(self, inputs_BS: Tensor) -> Tensor:
        logits_BSV = super().forward(inputs_BS)
        return logits_BSV * 2 if logits_BSV.max().item() > 1 else logits_BSV


def make_keyless(vocab: int, sequence: int, width: int = 6) -> nn.Module:
    return Keyless(vocab, width)


def make_capped(vocab: int, sequence: int) -> nn.Module:
    return Capped(vocab, 6)


def make_silent(vocab: int, sequence: int) -> nn.Module:
    raise ZeroDivisionError


def make_peeking(vocab: int, sequence: int) -> nn.Module:
    return Peeking(vocab, 6)


def test_a_model_of_ones_own_is_traced() -> None:
    model = CustomModelSpec(factory=f"{__name__}:make_keyless", options={"width": 10})
    found = trace_footprint(make_run(model), 31)
    assert (found.parameters, found.trained) == (31 * 10 + 31 * 11, 31 * 11)
    assert (found.largest, found.block, found.blocks) == (310, 0, 0)
    tokens = 4 * 32
    # The input of the head, the log-probabilities; the loss and the number of its targets.
    assert found.activations.saved_bytes == 4 * tokens * (10 + 31) + 8
    assert found.activations.peak_bytes >= 4 * tokens * (10 + 3 * 31)


@pytest.mark.parametrize(
    ("strategy", "inputs", "capped"),
    [(Fsdp2Spec(), 2, 4), (DeepSpeedSpec(stage=3), 2, 2), (DdpSpec(), 2, 4)],
    ids=lambda each: getattr(each, "name", ""),
)
def test_number_formats_are_those_of_the_strategy(
    strategy: StrategySpec, inputs: int, capped: int
) -> None:
    model = CustomModelSpec(factory=f"{__name__}:make_capped")
    found = trace_footprint(make_run(model, PrecisionKind.bf16, strategy=strategy), 31)
    # Autocast copies what is embedded to bf16. The cap is a buffer: DeepSpeed alone casts it, and
    # what is fp32 makes fp32 of what it is multiplied with.
    saved = 4 * 32 * (inputs * 6 + (capped + 4) * 31) + 8
    assert found.activations.saved_bytes == saved


def test_what_cannot_be_traced_says_so() -> None:
    model = CustomModelSpec(factory=f"{__name__}:make_peeking")
    with pytest.raises(SpecError, match=r"model\.factory: cannot be traced \(DataDependent"):
        trace_footprint(make_run(model), 31)
    model = CustomModelSpec(factory=f"{__name__}:make_silent")
    with pytest.raises(SpecError, match=r"model\.factory: cannot be traced \(ZeroDivisionError\)"):
        trace_footprint(make_run(model), 31)


def test_what_cannot_be_built_says_so_as_ever() -> None:
    with pytest.raises(SpecError, match="cannot import"):
        trace_footprint(make_run(CustomModelSpec(factory="no_such_module:make")), 31)
    memory = MemorySpec(recompute=Recompute.blocks)
    with pytest.raises(SpecError, match=r"memory\.recompute"):
        trace_footprint(
            make_run(CustomModelSpec(factory=f"{__name__}:make_keyless"), memory=memory), 31
        )


def test_random_numbers_stay_as_they_were() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    trace_footprint(make_run(GptSpec(layers=1, heads=1, width=8)), 31)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_billion_parameters_need_no_memory() -> None:
    script = """
import resource
from dataclasses import replace
from tests.train.test_footprint import GptSpec, PrecisionKind, make_run, trace_footprint
trace_footprint(make_run(GptSpec(layers=1, heads=1, width=8)), 31)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
spec = make_run(GptSpec(layers=24, heads=14, width=1792), PrecisionKind.bf16)
found = trace_footprint(spec, 50257)
assert found.parameters > 1e9
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) < GROWTH_MIB
