"""State out of one engine and into another: the next steps are those of a run that never stopped.

The receiving engine starts from other weights on purpose, so only the restore can make it right.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.kit import accessors
from tests.kit.checkpoints import open_store
from tests.kit.training import (
    SEQUENCE,
    STRATEGIES,
    VOCAB,
    Memory,
    NoKeeper,
    NoSamples,
    RaggedStream,
    in_precision,
    losses_of,
    run_tiny,
    tiny_run,
)
from tests.kit.world import run_world
from tidemill.checkpoint.manifest import committed, read_manifest
from tidemill.spec.checkpoint import CheckpointSpec
from tidemill.spec.progress import Cursor, EventKind, World
from tidemill.spec.run import RunSpec
from tidemill.spec.training import PrecisionKind, PrecisionSpec, SgdSpec
from tidemill.storage import locate
from tidemill.train.engine import build_engine
from tidemill.train.guard import Guard
from tidemill.train.loop import Parts, train
from tidemill.train.model import build_model
from tidemill.train.pulse import Pulse

SAVED, STEPS = 3, 6
OTHER_SEED = 99


def _leg(world: World, run: RunSpec, place: str, until: int) -> list[float]:
    """Train `run` until step `until`, from its newest checkpoint if it has one; give the losses."""
    store = open_store(world, run, place)
    fresh = not committed(locate(place))
    model: Any = build_model(
        run.model, vocab=VOCAB, sequence=SEQUENCE, seed=run.seed if fresh else OTHER_SEED
    )
    model.seed = run.seed
    engine = build_engine(run, model, world)
    wanted = engine.wanted()
    found = store.load(wanted, _never)
    if found is not None:
        engine.restore(wanted)
    memory = Memory()
    parts = Parts(
        engine=engine,
        guard=Guard(run.precision, engine),
        stream=RaggedStream(),
        held_out=NoSamples(),
        byte_level=False,
        store=store,
        keeper=NoKeeper(),
        pulse=Pulse(),
        recorder=memory,
        stop_requested=lambda: False,
        save_requested=lambda: False,
        leave_requested=lambda: False,
    )
    train(replace(run, steps=until), parts, world, found.cursor if found else Cursor())
    store.close()
    accessors.end(engine)
    return [step["loss"] for step in memory.all(EventKind.step)]


def _never(*refused: Any) -> None:
    raise AssertionError(refused)


def _run(strategy: str, **changes: Any) -> RunSpec:
    return tiny_run(strategy, steps=STEPS, checkpoint=CheckpointSpec(every_steps=0), **changes)


def _lives(world: World, run: RunSpec, place: str) -> dict[str, tuple[list[float], list[float]]]:
    """In each precision, the losses of a run that never stopped and of one that did."""
    found: dict[str, tuple[list[float], list[float]]] = {}
    for kind in ("fp32", "bf16", "fp16"):
        precise = replace(run, precision=in_precision(kind))
        memory, engine = run_tiny(world, precise)
        accessors.end(engine)
        undisturbed = [step["loss"] for step in memory.all(EventKind.step)]
        first = _leg(world, precise, f"{place}/{kind}", SAVED)
        found[kind] = undisturbed, first + _leg(world, precise, f"{place}/{kind}", STEPS)
    return found


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_same_strategy_and_world_go_on_bit_for_bit(strategy: str, tmp_path: Path) -> None:
    found = run_world(_lives, 2, _run(strategy), str(tmp_path))[0]
    assert len({undisturbed[-1] for undisturbed, _ in found.values()}) == 3
    for kind, (undisturbed, interrupted) in found.items():
        assert len(interrupted) == STEPS
        assert interrupted == undisturbed, kind


def test_a_run_may_change_strategy_and_world(tmp_path: Path) -> None:
    undisturbed = run_world(losses_of, 2, _run("ddp"))[0]
    losses: list[float] = []
    legs = [
        ("deepspeed_z3", 2),
        ("fsdp2", 3),
        ("deepspeed_z1", 1),
        ("ddp", 3),
        ("deepspeed_z2", 2),
        ("deepspeed_z3", 3),
    ]
    for until, (strategy, world) in enumerate(legs, start=1):
        losses += run_world(_leg, world, _run(strategy), str(tmp_path), until)[0]
    assert losses == pytest.approx(undisturbed, abs=2e-6)


@pytest.mark.parametrize("strategy", ["fsdp2", "deepspeed_z1", "deepspeed_z3"])
def test_momentum_travels_too(strategy: str, tmp_path: Path) -> None:
    optim = SgdSpec(lr=0.05, decay_steps=30, momentum=0.9)
    undisturbed = run_world(losses_of, 1, _run("ddp", optim=optim))[0]
    losses = run_world(_leg, 2, _run(strategy, optim=optim), str(tmp_path), SAVED)[0]
    losses += run_world(_leg, 1, _run("ddp", optim=optim), str(tmp_path), STEPS)[0]
    assert losses == pytest.approx(undisturbed, abs=2e-6)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_dynamic_loss_scale_backs_off_and_is_remembered(strategy: str, tmp_path: Path) -> None:
    precision = PrecisionSpec(kind=PrecisionKind.fp16, initial_scale_power=28)
    run = _run(strategy, precision=precision)
    run_world(_leg, 2, run, str(tmp_path), SAVED)
    (saved,) = committed(locate(str(tmp_path)))
    scale = read_manifest(saved).scalars["loss_scale"]["value"]
    assert scale == 2.0 ** (28 - SAVED)
    run_world(_leg, 2, run, str(tmp_path), SAVED + 1)
    (saved,) = committed(locate(str(tmp_path)))
    assert read_manifest(saved).scalars["loss_scale"]["value"] in {scale, scale / 2}
