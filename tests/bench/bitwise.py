"""`reproducibility=bitwise`: the same bits at every world size and through resizes; what it costs.

`worlds_equal`: share of worlds 1, 2, 3, 4, 5 and 7 on whose every rank parameters, moments, losses
and gradient norms are those of world 1, to the bit. `history_equal`: the same of world 2, 4, 3, 1
and 4, each going on from the checkpoint of the one before; 1 or 0. Both with clipping, dropout and
ragged targets. `control_differs`: share of worlds 2 to 7 in which plain DDP ends with parameters
that it does not have in world 1.
`overhead`: seconds of a step over plain DDP's, less one: the model of the first run in fp32, 8
slots a step, on two ranks, the arms in turns in the same processes.
"""

from __future__ import annotations

import io
import os
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[2] / "platform")]

from tidemill.train.host import ALLOCATOR

if not os.environ.items() >= {**ALLOCATOR, "OMP_NUM_THREADS": "1"}.items():
    os.environ |= {**ALLOCATOR, "OMP_NUM_THREADS": "1"}
    # glibc reads them once, and workers run with them
    os.execv(sys.executable, [sys.executable, *sys.argv])  # noqa: S606

import torch
import torch.distributed as dist
from torch import Tensor

from tests.bench.contract import alternate, parse_rounds, ratio, tell
from tests.kit import accessors
from tests.kit.checkpoints import load_here, save_here
from tests.kit.training import (
    SEQUENCE,
    VOCAB,
    Memory,
    NoKeeper,
    NoSamples,
    NoStore,
    run_tiny,
    tiny_run,
    train_tiny,
)
from tests.kit.world import run_world
from tidemill.compose import compose
from tidemill.data.corpus import open_stream, prepare_corpus
from tidemill.spec.progress import Cursor, EventKind, World
from tidemill.spec.run import Reproducibility, RunSpec
from tidemill.spec.training import BatchSpec
from tidemill.storage import locate
from tidemill.train.engine import build_engine
from tidemill.train.guard import Guard
from tidemill.train.loop import Parts, train
from tidemill.train.model import build_model
from tidemill.train.pulse import Pulse

WORLDS, HISTORY = [1, 2, 3, 4, 5, 7], [2, 4, 3, 1, 4]
ROUNDS, QUICK_ROUNDS = 20, 4
LEG_STEPS, QUICK_LEG_STEPS = 12, 2
"""Steps of each world of the history."""
BATCH = BatchSpec(global_size=23, micro_size=2, sequence=SEQUENCE)
"""12 slots, one of them smaller, so that most worlds deal them unevenly."""
TIMED_WORLD = 2
TIMED = ["data=synthetic", "strategy=ddp", "precision=fp32", "batch.micro_size=8"]
TIMEOUT_S = 1800.0

Curve = list[tuple[float, float]]
Trained = tuple[Curve, dict[str, Tensor]]


def told(memory: Memory) -> Curve:
    """Loss and gradient norm of every step."""
    return [(step["loss"], step["grad_norm"]) for step in memory.all(EventKind.step)]


def same(ours: Trained, theirs: Trained) -> bool:
    """Whether two runs have the same curve and end with the same state, to the bit."""
    held = theirs[1]
    return ours[0] == theirs[0] and all(torch.equal(ours[1][name], held[name]) for name in held)


def train_both(world: World, steps: int) -> dict[Reproducibility, Trained]:
    """A run of so many steps in both modes."""
    found: dict[Reproducibility, Trained] = {}
    for mode in Reproducibility:
        run = tiny_run(steps=steps, batch=BATCH, reproducibility=mode)
        memory, engine = run_tiny(world, run)
        found[mode] = told(memory), accessors.everything(engine)
    return found


def train_leg(world: World, place: str, until: int, seed: int) -> Trained:
    """Go on until step `until`, from what the world before left in `place`."""
    run = tiny_run(steps=until, batch=BATCH, reproducibility=Reproducibility.bitwise)
    model: Any = build_model(run.model, vocab=VOCAB, sequence=SEQUENCE, seed=seed)
    model.seed = run.seed  # that of dropout; other weights must not matter after a restore
    engine = build_engine(run, model, world)
    saved = load_here(world, run, engine, place)
    memory = train_tiny(world, run, engine, saved.cursor if saved else Cursor())
    cursor = Cursor(step=until, samples=until * BATCH.global_size)
    save_here(world, run, engine, place, cursor)
    return told(memory), accessors.everything(engine)


def compare_worlds(leg_steps: int) -> dict[str, float]:
    """All figures but the overhead."""
    steps = leg_steps * len(HISTORY)
    by_world: dict[int, list[dict[Reproducibility, Trained]]] = {}
    for size in WORLDS:
        by_world[size] = run_world(train_both, size, steps, timeout_s=TIMEOUT_S)
        print(f"world {size}: {steps} steps in both modes", flush=True)
    alone = by_world[1][0]
    bitwise, standard = alone[Reproducibility.bitwise], alone[Reproducibility.standard]
    equal = [
        all(same(rank[Reproducibility.bitwise], bitwise) for rank in ranks)
        for ranks in by_world.values()
    ]
    differs = [
        not same(([], by_world[size][0][Reproducibility.standard][1]), ([], standard[1]))
        for size in WORLDS[1:]
    ]
    curve: Curve = []
    ended: list[Trained] = []
    with tempfile.TemporaryDirectory() as place:
        for number, size in enumerate(HISTORY):
            until, seed = (number + 1) * leg_steps, tiny_run().seed + number
            ended = run_world(train_leg, size, place, until, seed, timeout_s=TIMEOUT_S)
            curve += ended[0][0]
            print(f"history, world {size}: {len(curve)} steps", flush=True)
    return {
        "worlds_equal": sum(equal) / len(equal),
        "history_equal": float(all(same((curve, rank[1]), bitwise) for rank in ended)),
        "control_differs": sum(differs) / len(differs),
    }


def time_steps(world: World, spec: RunSpec, rounds: int) -> dict[str, list[float]]:
    """Seconds of a step by mode; the first of each is not counted."""
    arms: dict[str, Callable[[], float]] = {}
    for mode in Reproducibility:
        arms[mode.value] = _arm(world, replace(spec, reproducibility=mode))
        arms[mode.value]()
    with redirect_stdout(sys.stdout if world.rank == 0 else io.StringIO()):
        return alternate(arms, rounds)


def _arm(world: World, spec: RunSpec) -> Callable[[], float]:
    place = locate(spec.storage)
    corpus = prepare_corpus(spec.data, place, sequence=spec.batch.sequence)
    model = build_model(
        spec.model, vocab=corpus.vocab, sequence=spec.batch.sequence, seed=spec.seed
    )
    engine = build_engine(spec, model, world)
    parts = Parts(
        engine=engine,
        guard=Guard(spec.precision, engine),
        stream=open_stream(
            spec.data, corpus, seed=spec.seed, sequence=spec.batch.sequence, split="train"
        ),
        held_out=NoSamples(),
        byte_level=False,
        store=NoStore(),
        keeper=NoKeeper(),
        pulse=Pulse(),
        recorder=Memory(),
        stop_requested=lambda: False,
        save_requested=lambda: False,
        leave_requested=lambda: False,
    )
    cursor = Cursor()

    def step() -> float:
        nonlocal cursor
        dist.barrier()
        began_s = time.perf_counter()
        cursor = train(replace(spec, steps=cursor.step + 1), parts, world, cursor)
        dist.barrier()
        return time.perf_counter() - began_s

    return step


def main() -> None:
    """Measure the figures."""
    rounds = parse_rounds(__doc__ or "", rounds=ROUNDS, quick=QUICK_ROUNDS)
    figures: dict[str, float | None] = {
        **compare_worlds(LEG_STEPS if rounds == ROUNDS else QUICK_LEG_STEPS)
    }
    with tempfile.TemporaryDirectory() as storage:
        spec = compose([*TIMED, f"storage={storage}"], config_name="config", schema=RunSpec)
        seconds = run_world(time_steps, TIMED_WORLD, spec, rounds, timeout_s=TIMEOUT_S)[0]
    right = figures["worlds_equal"] == figures["history_equal"] == 1.0
    overhead = ratio(seconds["bitwise"], seconds["standard"]) - 1.0
    figures["overhead"] = overhead if right else None
    tell("bitwise", figures, rounds, seconds)


if __name__ == "__main__":
    main()
