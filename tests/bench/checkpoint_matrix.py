"""Every strategy and world loads what every other saved, bit for bit; and what that costs.

`pairs`, `max_difference`: all saves and loads over {ddp, fsdp2, ZeRO-1, 2, 3} x worlds 1 to 4, in
fp32, bf16 and fp16, of a model with frozen, tied and odd-sized parameters and buffers. What is
compared is read out of both engines by their own accessors, before the save and after the restore.
`load_other_vs_same`: seconds of `Store.load` from a checkpoint of another strategy and world over
those from one of the same, both in the page cache, in turns in one process.

A process builds several engines one after the other: what earlier ones leave behind could change
how later ones train, but nothing is trained after a load.
"""

from __future__ import annotations

import math
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[2] / "platform")]

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from tests.bench.contract import parse_rounds, tell
from tests.kit import accessors
from tests.kit.checkpoints import load_here, open_store, save_here
from tests.kit.mixed import build_mixed, mixed
from tests.kit.training import STRATEGIES, tiny_run, train_tiny
from tests.kit.world import run_world
from tidemill.spec.progress import Cursor, World
from tidemill.spec.run import RunSpec
from tidemill.spec.training import GptSpec, PrecisionKind, PrecisionSpec
from tidemill.train.engine import Engine, build_engine
from tidemill.train.model import build_model

KINDS, WORLDS = ["fp32", "bf16", "fp16"], [1, 2, 3, 4]
QUICK_KINDS, QUICK_WORLDS = ["bf16"], [1, 3]
ROUNDS, QUICK_ROUNDS = 9, 3
TIMEOUT_S = 1800.0
LARGE, LARGE_VOCAB = GptSpec(layers=2, heads=4, width=512), 8192
"""10.5 M parameters: 126 MB with their moments."""
# Who loads, at which world, what else than its own: strategy and world.
LOADS = {
    ("ddp", 2): ("deepspeed_z3", 3),
    ("fsdp2", 2): ("ddp", 1),
    ("fsdp2", 3): ("deepspeed_z2", 2),
    ("deepspeed_z1", 2): ("fsdp2", 3),
    ("deepspeed_z2", 3): ("deepspeed_z3", 2),
    ("deepspeed_z3", 2): ("deepspeed_z1", 3),
}


def small(strategy: str, kind: str, steps: int) -> RunSpec:
    """A run of the small model, in fp16 with a dynamic loss scale."""
    precision = PrecisionSpec(kind=PrecisionKind(kind), initial_scale_power=11)
    return tiny_run(strategy, steps=steps, model=mixed(), precision=precision)


def save_small(world: World, kinds: list[str], root: str) -> None:
    """Train, dump and save under every strategy; no two leave the same behind."""
    for kind in kinds:
        for number, strategy in enumerate(STRATEGIES):
            seed, steps = 10 * number + world.size, 1 + (number + world.size) % 3
            run = small(strategy, kind, steps)
            engine = build_engine(run, build_mixed(seed), world)
            train_tiny(world, run, engine, Cursor())
            place = f"{root}/{kind}/{strategy}-{world.size}"
            save_here(world, run, engine, place, Cursor(step=steps))
            held = accessors.everything(engine)
            if world.rank == 0:
                save_file(held, f"{place}/held")
            accessors.end(engine)


def load_small(world: World, kinds: list[str], worlds: list[int], root: str) -> dict[str, float]:
    """Load everything under every strategy; give the largest difference by pair."""
    worst: dict[str, float] = {}
    for kind in kinds:
        for strategy in STRATEGIES:
            run = small(strategy, kind, 1)
            engine = build_engine(run, build_mixed(99), world)
            for saved in (f"{other}-{size}" for size in worlds for other in STRATEGIES):
                place = f"{root}/{kind}/{saved}"
                load_here(world, run, engine, place)
                pair = f"{kind} {saved} {strategy}-{world.size}"
                held = load_file(f"{place}/held")
                worst[pair] = difference(accessors.everything(engine), held)
            accessors.end(engine)
    return worst


def difference(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """The largest absolute difference of any element; infinite if something is missing."""
    if ours.keys() != theirs.keys():
        return math.inf
    worst = 0.0
    for name, tensor in ours.items():
        other = theirs[name]
        if (tensor.dtype, tensor.shape) != (other.dtype, other.shape):
            return math.inf
        if not torch.equal(tensor, other):
            apart = (tensor.double() - other.double()).abs().max().item()
            worst = max(worst, math.inf if math.isnan(apart) else apart)
    return worst


def measure_pairs(kinds: list[str], worlds: list[int], root: str) -> dict[str, float]:
    """The largest difference of every pair of a save and a load."""
    for size in worlds:
        run_world(save_small, size, kinds, root, timeout_s=TIMEOUT_S)
        print(f"saved at world {size}", flush=True)
    worst: dict[str, float] = {}
    for size in worlds:
        by_rank = run_world(load_small, size, kinds, worlds, root, timeout_s=TIMEOUT_S)
        worst |= {pair: max(rank[pair] for rank in by_rank) for pair in by_rank[0]}
        print(f"loaded at world {size}: {len(worst)} pairs, {max(worst.values())}", flush=True)
    return worst


def build_large(world: World, strategy: str) -> tuple[RunSpec, Engine]:
    """A large engine."""
    run = tiny_run(strategy, model=LARGE)
    model = build_model(LARGE, vocab=LARGE_VOCAB, sequence=8, seed=1)
    return run, build_engine(run, model, world)


def save_large(world: World, strategy: str, root: str) -> None:
    """Save a large state as `strategy-world`."""
    run, engine = build_large(world, strategy)
    save_here(world, run, engine, f"{root}/{strategy}-{world.size}", Cursor(step=1))


def time_loads(
    world: World, strategy: str, places: dict[str, str], rounds: int
) -> dict[str, list[float]]:
    """Seconds of the slowest rank by arm; the first round warms up and is not counted."""
    run, engine = build_large(world, strategy)
    wanted = engine.wanted()
    stores = {arm: open_store(world, run, place) for arm, place in places.items()}
    seconds: dict[str, list[float]] = {arm: [] for arm in places}
    for number in range(rounds + 1):
        for arm in list(places)[:: 1 if number % 2 else -1]:
            dist.barrier()
            began_s = time.perf_counter()
            stores[arm].load(wanted, _never)
            taken_s = torch.tensor(time.perf_counter() - began_s, dtype=torch.float64)
            dist.all_reduce(taken_s, dist.ReduceOp.MAX)
            if number:
                seconds[arm].append(float(taken_s))
    for store in stores.values():
        store.close()
    return seconds


def measure_loads(rounds: int, root: str) -> dict[str, dict[str, list[float]]]:
    """Seconds by loader and arm."""
    for strategy, size in sorted({*LOADS, *LOADS.values()}):
        run_world(save_large, size, strategy, root, timeout_s=TIMEOUT_S)
    found: dict[str, dict[str, list[float]]] = {}
    for (strategy, size), (other, other_size) in LOADS.items():
        places = {"same": f"{root}/{strategy}-{size}", "other": f"{root}/{other}-{other_size}"}
        name = f"{other}-{other_size} {strategy}-{size}"
        found[name] = run_world(time_loads, size, strategy, places, rounds, timeout_s=TIMEOUT_S)[0]
        medians = {arm: statistics.median(seconds) for arm, seconds in found[name].items()}
        told = ", ".join(f"{arm} {median:.3f} s" for arm, median in medians.items())
        print(f"{name}: {told}", flush=True)
    return found


def main() -> None:
    """Measure all three figures."""
    rounds = parse_rounds(__doc__ or "", rounds=ROUNDS, quick=QUICK_ROUNDS)
    quick = rounds == QUICK_ROUNDS
    with tempfile.TemporaryDirectory() as root:
        worst = measure_pairs(
            QUICK_KINDS if quick else KINDS, QUICK_WORLDS if quick else WORLDS, f"{root}/small"
        )
        seconds = measure_loads(rounds, f"{root}/large")
    exact = max(worst.values()) == 0.0
    ratios = {
        pair: statistics.median(arms["other"]) / statistics.median(arms["same"])
        for pair, arms in seconds.items()
    }
    figures = {
        "pairs": float(len(worst)),
        "max_difference": max(worst.values()),
        "load_other_vs_same": statistics.median(ratios.values()) if exact else None,
    }
    unequal = {pair: apart for pair, apart in worst.items() if apart}
    tell("checkpoint_matrix", figures, rounds, {"unequal": unequal, "seconds": seconds})


def _never(*refused: Any) -> None:
    raise AssertionError(refused)


if __name__ == "__main__":
    main()
