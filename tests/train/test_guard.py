"""A run that skips a step goes on; one that skips every step ends, and says what to try."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.kit.training import SEQUENCE, VOCAB, RaggedStream, tiny_run
from tests.kit.world import run_world
from tidemill.errors import TrainingError
from tidemill.plan.batch import Slot
from tidemill.spec.progress import World
from tidemill.spec.training import PrecisionKind, PrecisionSpec
from tidemill.train.engine import Engine, Outcome, build_engine
from tidemill.train.guard import Guard
from tidemill.train.loop import to_device
from tidemill.train.model import build_model

APPLIED = Outcome(applied=True, grad_norm=1.0)
SKIPPED = Outcome(applied=False, grad_norm=float("inf"))


def make_guard(limit: int, kind: str = "fp32", *, fixed: float = 0.0, scale: float = 1.0) -> Guard:
    state = SimpleNamespace(scalars={"loss_scale": {"value": scale, "good_steps": 0}})
    engine = SimpleNamespace(state=lambda: state)
    precision = PrecisionSpec(kind=PrecisionKind(kind), loss_scale=fixed, max_skipped_steps=limit)
    return Guard(precision, cast("Engine", engine))


def test_a_good_step_ends_a_row() -> None:
    guard = make_guard(3)
    for step, outcome in enumerate([SKIPPED, SKIPPED, APPLIED] * 5):
        guard.note(outcome, step)
    assert guard.state() == {"skipped": 10, "in_a_row": 0}


@pytest.mark.parametrize("limit", [1, 2, 7])
def test_a_row_as_long_as_the_limit_ends_the_run(limit: int) -> None:
    guard = make_guard(limit)
    guard.note(APPLIED, 40)
    for step in range(41, 40 + limit):
        guard.note(SKIPPED, step)
    told = "1 step was" if limit == 1 else f"{limit} steps in a row were"
    with pytest.raises(TrainingError, match=f"^step {40 + limit}: {told} skipped because "):
        guard.note(SKIPPED, 40 + limit)


def test_without_a_limit_a_run_skips_for_ever() -> None:
    guard = make_guard(0)
    for step in range(10_000):
        guard.note(SKIPPED, step)
    assert guard.state() == {"skipped": 10_000, "in_a_row": 10_000}


def test_a_restart_does_not_break_a_row() -> None:
    first = make_guard(3)
    for step, outcome in enumerate([SKIPPED, APPLIED, SKIPPED]):
        first.note(outcome, step)
    again = make_guard(3)
    again.restore(json.loads(json.dumps(first.state())))
    again.note(SKIPPED, 3)
    assert again.state() == {"skipped": 3, "in_a_row": 2}
    with pytest.raises(TrainingError):
        again.note(SKIPPED, 4)


@pytest.mark.parametrize(
    ("precision", "told"),
    [
        ({"kind": "fp32"}, ("finite in fp32;", "lower optim.lr;")),
        ({"kind": "bf16"}, ("finite in bf16;", "lower optim.lr or precision=fp32;")),
        (
            {"kind": "fp16", "scale": 1.0},
            ("finite in fp16 at loss scale 1;", "lower optim.lr or precision=bf16;"),
        ),
        (
            {"kind": "fp16", "fixed": 65536.0, "scale": 65536.0},
            ("finite in fp16 at loss scale 65536;", "lower precision.loss_scale (0 adapts it)"),
        ),
    ],
)
def test_what_to_try_depends_on_the_precision(
    precision: dict[str, Any], told: tuple[str, str]
) -> None:
    with pytest.raises(TrainingError) as caught:
        make_guard(1, **precision).note(SKIPPED, 0)
    for part in (*told, "checkpoint.from_run=", "precision.max_skipped_steps="):
        assert part in str(caught.value)
    assert caught.value.rank is None


def skip_steps(world: World, strategy: str) -> tuple[str, dict[str, int]]:
    """Take steps of which rank 1 has the NaN, until the guard has something to say."""
    precision = PrecisionSpec(
        kind=PrecisionKind.fp16, initial_scale_power=6, scale_window=500, max_skipped_steps=3
    )
    run = tiny_run(strategy, precision=precision)
    model = build_model(run.model, vocab=VOCAB, sequence=SEQUENCE, seed=run.seed)
    engine = build_engine(run, model, world)
    guard = Guard(precision, engine)
    batch = to_device(RaggedStream().take(0, Slot(start=2 * world.rank, size=2)), world)
    for step, poisoned in enumerate([True, False, True, True, True, True]):
        weight = math.nan if poisoned and world.rank == 1 else 1e-3
        engine.accumulate(batch, weight, last=True)
        try:
            guard.note(engine.step(1e-3), step)
        except TrainingError as error:
            return str(error), guard.state()
    raise AssertionError(guard.state())


@pytest.mark.parametrize("strategy", ["ddp", "deepspeed_z2"])
def test_all_ranks_stop_at_the_same_step(strategy: str) -> None:
    one, two = run_world(skip_steps, 2, strategy)
    assert one == two
    told, state = one
    # Four halvings of 2^6, of which the guard has seen three in a row.
    assert told.startswith("step 4: 3 steps in a row were skipped")
    assert "in fp16 at loss scale 4;" in told
    assert state == {"skipped": 4, "in_a_row": 3}
