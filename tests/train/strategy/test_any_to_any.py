"""What one strategy and world held, another holds after its restore, to the last bit.

Read on both sides through the engines' own accessors (`tests/kit/accessors.py`), so a mistake in
Tidemill's account of who holds what cannot hide by being made twice.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tests.kit import accessors
from tests.kit.checkpoints import load_here, save_here
from tests.kit.mixed import build_mixed, mixed
from tests.kit.training import STRATEGIES, in_precision, tiny_run, train_tiny
from tests.kit.world import run_world
from tidemill.spec.progress import Cursor, World
from tidemill.spec.strategy import MemorySpec, Offload
from tidemill.spec.training import PrecisionKind, PrecisionSpec
from tidemill.train.engine import build_engine

# Between them the worlds take the strategies in different orders, and start where others ended.
TOUR = {
    3: ["deepspeed_z3", "fsdp2", "deepspeed_z1", "ddp", "deepspeed_z2"],
    2: ["fsdp2", "deepspeed_z3", "ddp", "deepspeed_z2", "deepspeed_z1"],
    1: ["deepspeed_z3", "deepspeed_z2", "fsdp2", "ddp", "deepspeed_z1"],
}
OFFLOADING = 2
"""The world in which everything is offloaded that can be."""
OFFLOAD = {
    "ddp": Offload.none,
    "fsdp2": Offload.all,
    "deepspeed_z1": Offload.optimizer,
    "deepspeed_z2": Offload.optimizer,
    "deepspeed_z3": Offload.all,
}
KINDS = ["fp32", "bf16", "fp16"]
OTHER_SEED = 99


def _visit(world: World, strategies: list[str], place: str) -> dict[str, int]:
    """How many tensors were found equal in each precision."""
    return {kind: _take_turns(world, kind, strategies, f"{place}/{kind}") for kind in KINDS}


def _take_turns(world: World, kind: str, strategies: list[str], place: str) -> int:
    """Under each strategy: restore what the one before left, compare, train a step, leave it."""
    compared = 0
    for number, strategy in enumerate(strategies):
        precision = in_precision(kind)
        if kind == "fp16":
            precision = PrecisionSpec(kind=PrecisionKind.fp16, initial_scale_power=11)
        memory = MemorySpec(offload=OFFLOAD[strategy] if world.size == OFFLOADING else Offload.none)
        run = tiny_run(strategy, model=mixed(), precision=precision, memory=memory)
        engine = build_engine(run, build_mixed(OTHER_SEED + number), world)
        found = load_here(world, run, engine, place)
        if found is not None:
            compared += _compare(accessors.everything(engine), load_file(f"{place}/held"))
        cursor = found.cursor if found else Cursor()
        run = replace(run, steps=cursor.step + 1)
        train_tiny(world, run, engine, cursor)
        held = accessors.everything(engine)
        save_here(world, run, engine, place, Cursor(step=run.steps))
        if world.rank == 0:
            save_file(held, f"{place}/held")
        accessors.end(engine)
    return compared


def _compare(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> int:
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype, name
        assert torch.equal(tensor, theirs[name]), name
    return len(ours)


def test_masters_moments_buffers_and_scalars_travel_bit_for_bit(tmp_path: Path) -> None:
    assert all(sorted(turns) == sorted(STRATEGIES) for turns in TOUR.values())
    compared: Counter[str] = Counter()
    for size, strategies in TOUR.items():
        compared.update(run_world(_visit, size, strategies, str(tmp_path))[0])
    parameters = list(build_mixed(1).parameters())
    trained = sum(parameter.requires_grad for parameter in parameters)
    buffers_and_scalars = 3 + 3
    turns = len(TOUR) * len(STRATEGIES) - 1
    tensors = len(parameters) + 2 * trained + buffers_and_scalars
    assert compared == dict.fromkeys(KINDS, turns * tensors)
