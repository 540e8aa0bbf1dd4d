"""State in host memory: the same losses, masters, moments and restores as without, bit for bit.

On a CPU both are one memory, so these tests show the arithmetic and the bookkeeping, and that the
libraries were told to offload.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.kit import accessors
from tests.kit.checkpoints import load_here, save_here
from tests.kit.mixed import build_mixed, mixed
from tests.kit.training import in_precision, run_tiny, tiny_run, train_tiny
from tests.kit.world import run_world
from tidemill.spec.progress import Cursor, EventKind, World
from tidemill.spec.run import RunSpec
from tidemill.spec.strategy import Fsdp2Spec, MemorySpec, Offload
from tidemill.train.engine import Batch, Engine, build_engine

OFFLOADS = [
    ("fsdp2", Offload.all),
    ("deepspeed_z1", Offload.optimizer),
    ("deepspeed_z2", Offload.optimizer),
    ("deepspeed_z3", Offload.optimizer),
    ("deepspeed_z3", Offload.all),
]
SPOILED_SLOT, SAVED, STEPS = 2, 2, 3
OTHER_SEED = 99


def _spoil(engine: Engine, world: World) -> None:
    """Give the last rank gradients that are not finite in one slot of the second step."""
    accumulate, calls = engine.accumulate, [0]

    def spoiled(batch: Batch, weight: float, *, last: bool) -> object:
        hit = world.rank == world.size - 1 and calls[0] == SPOILED_SLOT
        calls[0] += 1
        return accumulate(batch, math.nan if hit else weight, last=last)

    engine.accumulate = spoiled  # type: ignore[method-assign]


def _told(engine: Any, run: RunSpec) -> list[bool]:
    """Whether the library offloads the optimizer, and the parameters."""
    if isinstance(run.strategy, Fsdp2Spec):
        group = engine.wrapped._get_fsdp_state()._fsdp_param_groups[0]
        return [all(held.offload_to_cpu for held in group.fsdp_params)] * 2
    zero = engine.zero
    optimizer = zero.cpu_offload if hasattr(zero, "cpu_offload") else zero.offload_optimizer
    return [optimizer, getattr(zero, "offload_param", False)]


def _everywhere(world: World, runs: list[RunSpec], place: str) -> list[list[bool]]:
    return [_with_and_without(world, run, f"{place}/{number}") for number, run in enumerate(runs)]


def _with_and_without(world: World, run: RunSpec, place: str) -> list[bool]:
    plain = replace(run, memory=MemorySpec())
    memory, engine = run_tiny(world, plain, _spoil)
    expected, losses = accessors.everything(engine), memory.all(EventKind.step)
    assert [step["applied"] for step in losses] == [True, False, True]
    accessors.end(engine)

    memory, engine = run_tiny(world, replace(run, steps=SAVED), _spoil)
    told, saved = _told(engine, run), accessors.everything(engine)
    save_here(world, run, engine, place, Cursor(step=SAVED, samples=SAVED * run.batch.global_size))
    accessors.end(engine)

    engine = build_engine(run, build_mixed(OTHER_SEED), world)
    found = load_here(world, run, engine, place)
    assert found is not None
    _require_same(accessors.everything(engine), saved)
    again = train_tiny(world, run, engine, found.cursor)
    steps = [*memory.all(EventKind.step), *again.all(EventKind.step)]
    assert [step["loss"] for step in steps] == [step["loss"] for step in losses]
    _require_same(accessors.everything(engine), expected)
    accessors.end(engine)
    return told


def _require_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


@pytest.mark.parametrize(("strategy", "offload"), OFFLOADS)
def test_offload_changes_no_bit(strategy: str, offload: Offload, tmp_path: Path) -> None:
    runs = [
        tiny_run(
            strategy,
            steps=STEPS,
            model=mixed(),
            memory=MemorySpec(offload=offload),
            precision=in_precision(kind),
        )
        for kind in ("fp32", "bf16", "fp16")
    ]
    for told in run_world(_everywhere, 2, runs, str(tmp_path))[0]:
        assert told == [True, offload is Offload.all]
