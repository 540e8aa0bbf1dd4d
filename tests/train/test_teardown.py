"""Nothing of an engine is left when its process goes on; and what would be, without each reset.

Every attempt runs in a thread of its own, as a worker's does: DTensor keeps caches by thread.
"""

from __future__ import annotations

import functools
import gc
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from torch.nn import functional

from tests.kit.accessors import model_of
from tests.kit.lives import Usage, form, in_a_thread, usage
from tests.kit.training import (
    SEQUENCE,
    STRATEGIES,
    VOCAB,
    losses_of,
    plain_losses,
    run_tiny,
    tiny_run,
    train_tiny,
)
from tests.kit.world import RankFailed, run_world
from tidemill.checkpoint.exchange import Exchange
from tidemill.errors import forget_frames
from tidemill.spec.progress import Cursor, EventKind, World
from tidemill.spec.run import RunSpec
from tidemill.spec.strategy import MemorySpec, Recompute
from tidemill.train import teardown
from tidemill.train.engine import Engine, build_engine
from tidemill.train.model import build_model
from tidemill.train.strategy import deepspeed_globals
from tidemill.train.teardown import (
    abort_groups,
    dismantle,
    find_survivors,
    freeze,
)

STEPS = 3
TOLERANCE = 2e-6
LINEAR = functional.linear


class Flood(Exception):  # noqa: N818 - a noun, like the errors it stands for
    """Raised in the depths of a model."""


def _attempt(world: World, run: RunSpec) -> tuple[list[float], list[str]]:
    """Train from the beginning in the group that is there; the losses, and what survived it."""
    engine, losses = _trained(world, run)
    return losses, find_survivors(dismantle(engine, failed=False))


def _trained(world: World, run: RunSpec) -> tuple[Engine, list[float]]:
    Exchange(world)  # a group beside that of training
    memory, engine = run_tiny(world, run)
    return engine, [step["loss"] for step in memory.all(EventKind.step)]


def _lives(world: World, names: list[str], place: str) -> list[tuple[str, list[float], Usage]]:
    """One attempt after the other in this process."""
    freeze()
    assert gc.get_freeze_count() > len(gc.get_objects())
    dist.barrier()
    assert not find_survivors(dismantle(None, failed=False))  # a group, but no engine yet
    found: list[tuple[str, list[float], Usage]] = []
    for number, name in enumerate(names):
        form(world, f"{place}/{number}")
        run = tiny_run(name, steps=STEPS)
        losses, survivors = in_a_thread(functools.partial(_attempt, world, run))
        assert not survivors, (number, name, survivors)
        assert not dist.is_initialized()
        abort_groups()  # there is none, and so nothing to do
        assert functional.linear is LINEAR, name
        found.append((name, losses, usage()))
    return found


def test_one_engine_after_the_other_leaves_nothing(tmp_path: Path) -> None:
    order = ["deepspeed_z3", *STRATEGIES, "ddp"]
    reference = plain_losses(tiny_run(steps=STEPS))
    for found in run_world(_lives, 2, order, str(tmp_path)):
        for name, losses, held in found:
            assert losses == pytest.approx(reference, abs=TOLERANCE), name
            assert losses == next(first for other, first, _ in found if other == name), name
            assert held == found[0][2], name


# --- exceptions --------------------------------------------------------------------------------


def _flooded(world: World, run: RunSpec, holder: list[Engine]) -> None:
    """Take a step, then raise in the midst of the second block's forward pass."""
    model: Any = build_model(run.model, vocab=VOCAB, sequence=SEQUENCE, seed=run.seed)
    engine = build_engine(run, model, world)
    holder.append(engine)
    train_tiny(world, replace(run, steps=2), engine, Cursor())
    model.blocks[1].register_forward_pre_hook(_raise)
    train_tiny(world, run, engine, Cursor())


def _raise(*_: Any) -> None:
    with suppress(KeyError):
        raise KeyError
    raise Flood


def _caught(world: World, run: RunSpec) -> tuple[Flood, Engine]:
    """The exception of a flooded attempt, which is told on; and its engine."""
    holder: list[Engine] = []
    try:
        _flooded(world, run, holder)
    except Flood as flood:
        return flood, holder.pop()
    raise AssertionError


def _remember(world: World, run: RunSpec) -> list[str]:
    """The exception is kept as it is."""
    error, engine = _caught(world, run)
    survivors = find_survivors(dismantle(engine, failed=True))
    assert error.__traceback__
    return survivors


def _forget(world: World, run: RunSpec) -> list[str]:
    """The exception is kept, in a group and as a cause, without its frames."""
    error, engine = _caught(world, run)
    told = RuntimeError()
    told.__cause__ = ExceptionGroup("several", [error])
    forget_frames(told)
    return find_survivors(dismantle(engine, failed=True))


def _floods(world: World, run: RunSpec, place: str) -> list[list[str]]:
    found: list[list[str]] = []
    for number, end in enumerate((_forget, _remember)):
        form(world, f"{place}/{number}")
        found.append(in_a_thread(functools.partial(end, world, run)))
    return found


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_exception_from_the_depths_holds_nothing_once_its_frames_are_forgotten(
    strategy: str, tmp_path: Path
) -> None:
    memory = MemorySpec(recompute=Recompute.blocks)
    run = tiny_run(strategy, steps=4, memory=memory)
    ((forgotten, remembered),) = run_world(_floods, 1, run, str(tmp_path))
    assert not forgotten
    assert "first parameter" in remembered


# --- what is still held is named -----------------------------------------------------------------


def _hold(world: World, strategy: str, place: str) -> dict[str, list[str]]:
    """What survives while somebody holds something."""
    found: dict[str, list[str]] = {}
    for number, what in enumerate(("shell", "state", "group", "module")):
        form(world, f"{place}/{number}")
        engine: Any = _trained(world, tiny_run(strategy, steps=1))[0]
        held = {
            "shell": lambda engine: engine,
            "state": lambda engine: engine.state(),
            "group": lambda _: dist.new_group(backend="gloo"),
            "module": model_of,
        }[what](engine)
        found[what] = find_survivors(dismantle(engine, failed=False))
        del held
    return found


@pytest.mark.parametrize("strategy", ["fsdp2", "deepspeed_z2"])
def test_what_is_still_held_is_named(strategy: str, tmp_path: Path) -> None:
    (found,) = run_world(_hold, 1, strategy, str(tmp_path))
    assert found["shell"] == []
    assert found["state"] == ["memory of the first master"]
    (group,) = found["group"]
    assert group.startswith("process group")
    assert "first parameter" in found["module"]


# --- what each reset is for ----------------------------------------------------------------------


def _without(reset: str) -> None:
    """Leave out one reset of DeepSpeed's globals in this process."""
    resets = tuple(each for each in deepspeed_globals.RESETS if each.__name__ != reset)
    assert len(resets) == len(deepspeed_globals.RESETS) - 1
    deepspeed_globals.RESETS = resets  # type: ignore[assignment]


def _one_after_another(world: World, strategy: str, place: str, reset: str) -> list[list[str]]:
    """What survives of one attempt, and of the next."""
    _without(reset)
    found: list[list[str]] = []
    for number in range(2):
        form(world, f"{place}/{number}")
        found.append(in_a_thread(lambda: _attempt(world, tiny_run(strategy, steps=STEPS)))[1])
    return found


def test_without_it_deepspeed_asks_groups_that_are_gone(tmp_path: Path) -> None:
    with pytest.raises(RankFailed, match="is not registered"):
        run_world(_one_after_another, 1, "deepspeed_z1", str(tmp_path), "forget_groups")


@pytest.mark.parametrize("reset", ["forget_modules", "forget_releases"])
def test_without_it_zero_3_stays_alive(reset: str, tmp_path: Path) -> None:
    (found,) = run_world(_one_after_another, 1, "deepspeed_z3", str(tmp_path), reset)
    assert all("first parameter" in survivors for survivors in found)


def _join(world: World, place: str, reset: str) -> list[float]:
    """Rank 0 has trained alone before; rank 1 is new."""
    if world.rank == 0:
        _without(reset)
        form(World(), f"{place}/alone")
        _attempt(World(), tiny_run("deepspeed_z3", steps=1))
    form(world, f"{place}/both")
    return _attempt(world, tiny_run("deepspeed_z3", steps=1))[0]


def test_without_it_a_survivor_and_a_newcomer_number_differently(tmp_path: Path) -> None:
    with pytest.raises(RankFailed, match="disagreement"):
        run_world(_join, 2, str(tmp_path), "forget_numbers")


def _patched(world: World, place: str) -> str:
    _one_after_another(world, "deepspeed_z3", place, "unpatch_torch")
    return functional.linear.__name__


def test_without_it_later_models_use_the_linear_of_zero_3(tmp_path: Path) -> None:
    assert run_world(_patched, 1, str(tmp_path)) == ["zero3_linear_wrap"]


def _mesh(world: World, place: str) -> list[str]:
    teardown.forget_meshes = lambda: None  # type: ignore[assignment]
    form(world, f"{place}/mesh")
    return in_a_thread(lambda: _attempt(world, tiny_run("fsdp2", steps=STEPS)))[1]


def test_without_it_a_cached_mesh_keeps_its_group(tmp_path: Path) -> None:
    assert run_world(_mesh, 1, str(tmp_path)) == [["process group 0 (gloo)"]]


def test_zero_3_does_not_believe_an_environment_of_an_earlier_group() -> None:
    run_world(losses_of, 1, tiny_run("deepspeed_z3", steps=1), env={"WORLD_SIZE": "3"})
