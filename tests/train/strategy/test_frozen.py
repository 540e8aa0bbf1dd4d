"""Models of which some parameters are not trained, and buffers: the same under every strategy."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.kit import accessors
from tests.kit.mixed import BOTTOM_FROZEN, MIXED_FROZEN, build_mixed, mixed
from tests.kit.training import STRATEGIES, in_precision, plain_losses, run_tiny, tiny_run
from tests.kit.world import run_world
from tidemill.plan.batch import make_batch_plan
from tidemill.spec.progress import EventKind, World
from tidemill.spec.run import RunSpec
from tidemill.spec.strategy import MemorySpec, Recompute
from tidemill.train.optim import moment_names

TOLERANCE = {"fp32": 2e-6, "bf16": 5e-3}

Trained = tuple[list[float], dict[str, Tensor], dict[str, Tensor], set[tuple[str, str]]]


def _trained(world: World, run: RunSpec) -> Trained:
    """Losses, masters and moments, buffers, and what the state names with its types."""
    memory, engine = run_tiny(world, run)
    state = engine.state()
    assert engine.wanted().tensors.keys() == state.tensors.keys()
    return (
        [step["loss"] for step in memory.all(EventKind.step)],
        accessors.masters_and_moments(engine),
        accessors.buffers(engine),
        {(name, fragment.dtype) for name, fragment in state.tensors.items()},
    )


@pytest.mark.parametrize(
    ("kind", "frozen", "size"), [("fp32", MIXED_FROZEN, 2), ("bf16", BOTTOM_FROZEN, 3)]
)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_frozen_parameters_stand_still_while_the_rest_is_trained(
    strategy: str, kind: str, frozen: tuple[str, ...], size: int
) -> None:
    run = tiny_run(
        strategy, steps=8, model=mixed(frozen=list(frozen)), precision=in_precision(kind)
    )
    if kind == "bf16":  # whose tolerance does not hide a gradient that recomputing loses
        run = replace(run, memory=MemorySpec(recompute=Recompute.blocks))
    losses, held, buffers, told = run_world(_trained, size, run)[0]
    reference = plain_losses(run)
    assert losses == pytest.approx(reference, abs=TOLERANCE[kind])
    assert max(reference) - min(reference) > 10 * TOLERANCE[kind]

    fresh = build_mixed(run.seed, frozen=frozen)
    expected = {
        ("buffer.scale", "float32"),
        ("buffer.warmth", "float32"),
        ("buffer.calls", "int64"),
    }
    for name, parameter in fresh.named_parameters():
        expected.add((f"param.{name}", "float32"))
        if parameter.requires_grad:
            expected |= {(f"{moment}.{name}", "float32") for moment in moment_names(run.optim)}
        same = torch.equal(held[f"param.{name}"], parameter)
        assert same is not parameter.requires_grad, name
    assert told == expected
    assert held.keys() | buffers.keys() == {name for name, _ in expected}
    assert torch.equal(buffers["buffer.scale"], fresh.get_buffer("scale"))
    slots = make_batch_plan(run.batch.global_size, run.batch.micro_size, size).accumulate
    assert buffers["buffer.calls"] == run.steps * slots
