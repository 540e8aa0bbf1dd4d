"""Training time lost per save, against `torch.save` and PyTorch's own asynchronous checkpoints.

One process trains a GPT under the real DDP engine and saves all of its state: weights and both
moments of Adam. torch gets one of the two cores and the other one is free, as host cores are beside
a GPU, and memory is kept as in Tidemill's workers; all of that is the same for every arm.

    stall_vs_torch_save      time training stands still per save, over that of torch.save
    stall_vs_dcp_async       the same over dcp.async_save with the settings that serve it best
    step_while_persisting    steps with a save in flight, its standstill apart, over ordinary steps
    bytes_vs_raw             bytes on disk / bytes of the tensors

Each is the worst of the sizes. `lost_s` in the raw figures is the time from asking for a save to
the end of the next step, less an ordinary step, so there standstill and slower steps are one.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[2] / "platform")]

from tidemill.train.host import ALLOCATOR

if not os.environ.items() >= {**ALLOCATOR, "OMP_NUM_THREADS": "1"}.items():
    os.environ |= {**ALLOCATOR, "OMP_NUM_THREADS": "1"}
    # glibc reads them once
    os.execv(sys.executable, [sys.executable, *sys.argv])  # noqa: S606

import torch
import torch.distributed as dist
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from tests.bench.contract import parse_rounds, tell
from tests.checkpoint.states import make_store
from tests.kit.training import tiny_run
from tidemill.checkpoint.retention import Keep
from tidemill.spec.progress import Cursor, World
from tidemill.spec.run import RunSpec
from tidemill.spec.training import BatchSpec, GptSpec
from tidemill.train.engine import Batch, build_engine
from tidemill.train.model import build_model
from tidemill.train.strategy.torch_engine import TorchEngine

VOCAB = 256
SEQUENCE = 64
SIZES_MB = {
    50: GptSpec(layers=5, heads=4, width=256),
    350: GptSpec(layers=9, heads=8, width=512),
    1400: GptSpec(layers=12, heads=14, width=896),
}
ORDINARY_STEPS = 3
WARM_STEPS = 3


@dataclass(slots=True)
class Training:
    """A training in this process, step by step.

    Attributes:
        engine: Real, under DDP with one rank.
        before_update: Called when the optimizer is about to change the state.
        waited_s: Seconds that this took in the last step.
        number: Steps taken.
    """

    engine: TorchEngine
    batch: Batch
    before_update: Callable[[], object] = lambda: None
    waited_s: float = 0.0
    number: int = 0

    def step(self) -> float:
        """Take one; give its seconds without those in `before_update`."""
        began_s = time.perf_counter()
        total = self.engine.accumulate(self.batch, 1.0 / SEQUENCE, last=True)
        waits_s = time.perf_counter()
        self.before_update()
        self.waited_s = time.perf_counter() - waits_s
        self.engine.step(1e-4)
        float(total)
        self.number += 1
        return time.perf_counter() - began_s - self.waited_s


@dataclass(slots=True)
class Heard:
    """What one arm has cost.

    Attributes:
        stall_s: Seconds that training stood still, per save.
        lost_s: Seconds from asking for a save to the end of the next step, less an ordinary step.
        beside: Steps with a save in flight, over ordinary ones.
        bytes: Bytes on disk of the last save.
    """

    stall_s: list[float] = field(default_factory=list)
    lost_s: list[float] = field(default_factory=list)
    beside: list[float] = field(default_factory=list)
    bytes: int = 0


Arm = Callable[[Training, Path], Callable[[], bool]]
"""Begins a save into a new directory; what it returns says whether it is on the disk."""


@contextmanager
def ours(training: Training, place: Path) -> Iterator[Arm]:
    """Tidemill's store."""
    store = make_store(World(), str(place), keep=Keep(last=1))
    store.prepare(training.engine.state())

    def save(training: Training, _: Path) -> Callable[[], bool]:
        training.before_update = store.settle
        cursor = Cursor(step=training.number, samples=training.number)
        store.save(training.engine.state(), cursor, {})
        return lambda: not store.busy

    yield save
    store.finish()
    store.close()


@contextmanager
def torch_save(_: Training, __: Path) -> Iterator[Arm]:
    """What a training script does."""

    def save(training: Training, place: Path) -> Callable[[], bool]:
        place.mkdir()
        torch.save(_state(training), place / "state.pt")
        return lambda: True

    yield save


@contextmanager
def dcp_async(
    _: Training, __: Path, *, stager: Callable[[], Any] = lambda: None, waits: bool = False
) -> Iterator[Arm]:
    """PyTorch's own, in a thread; `waits`: for its copy only when the optimizer needs it."""
    held = stager()

    def save(training: Training, place: Path) -> Callable[[], bool]:
        response: Any = dcp.async_save(
            _state(training), checkpoint_id=str(place), async_stager=held
        )
        if waits:
            training.before_update = response.staging_completion.result
        upload = getattr(response, "upload_completion", response)
        return upload.done

    yield save
    if held is not None:
        held.close()


def _stager(*, aside: bool) -> DefaultStager:
    """Keeps its memory from save to save; what else it offers needs a GPU."""
    return DefaultStager(
        StagingOptions(
            use_pinned_memory=False,
            use_shared_memory=False,
            use_async_staging=aside,
            use_non_blocking_copy=False,
        )
    )


ARMS: dict[str, Callable[[Training, Path], Any]] = {
    "ours": ours,
    "torch_save": torch_save,
    "dcp_default": dcp_async,
    "dcp_kept_memory": lambda t, p: dcp_async(t, p, stager=lambda: _stager(aside=False)),
    "dcp_copy_aside": lambda t, p: dcp_async(t, p, stager=lambda: _stager(aside=True), waits=True),
}


def _state(training: Training) -> dict[str, Any]:
    engine = training.engine
    return {
        "model": engine.model.model.state_dict(),
        "optimizer": {
            f"{key}.{name}": engine.optimizer.state[parameter][key]
            for name, parameter in engine.model.model.named_parameters()
            for key in ("exp_avg", "exp_avg_sq")
        },
        "taken_steps": 1.0,
    }


def measure(megabytes: int, rounds: int, scratch: Path) -> tuple[dict[str, Heard], int]:
    """Let the arms take turns at saving one training's state."""
    training = _train(replace(tiny_run(), model=SIZES_MB[megabytes]))
    raw = sum(
        piece.data.numel() * piece.data.element_size()
        for held in training.engine.state().tensors.values()
        for piece in held.pieces
    )
    heard = {name: Heard() for name in ARMS}
    opened = {name: arm(training, scratch / f"{megabytes}-{name}") for name, arm in ARMS.items()}
    arms: dict[str, Arm] = {name: context.__enter__() for name, context in opened.items()}
    for number in range(-1, rounds):
        order = list(arms) if number % 2 == 0 else list(arms)[::-1]
        for name in order:
            cost = _save_once(training, arms[name], scratch / f"{name}-{number}", heard[name])
            if number < 0:  # memory is allocated, libraries are imported
                heard[name] = Heard()
            else:
                print(f"{megabytes} MB round {number + 1} {name}: {cost:.4f} s", flush=True)
    for name, context in opened.items():
        context.__exit__(None, None, None)
        heard[name].bytes = max(heard[name].bytes, _size(scratch / f"{megabytes}-{name}"))
    return heard, raw


def _save_once(training: Training, arm: Arm, place: Path, heard: Heard) -> float:
    ordinary = statistics.median(training.step() for _ in range(ORDINARY_STEPS))
    began_s = time.perf_counter()
    done = arm(training, place)
    called_s = time.perf_counter() - began_s
    first = training.step()
    heard.stall_s.append(called_s + training.waited_s)
    heard.lost_s.append(time.perf_counter() - began_s - ordinary)
    heard.beside.append(first / ordinary)
    while not done():
        heard.beside.append(training.step() / ordinary)
    training.before_update = lambda: None
    heard.bytes = _size(place)
    for path in sorted(place.rglob("*"), reverse=True):
        path.unlink()
    os.sync()  # what one arm wrote must not be another's burden
    return heard.stall_s[-1]


def _size(place: Path) -> int:
    return sum(path.stat().st_size for path in place.rglob("*") if path.is_file())


def _train(run: RunSpec) -> Training:
    run = replace(run, batch=BatchSpec(global_size=2, micro_size=2, sequence=SEQUENCE))
    model = build_model(run.model, vocab=VOCAB, sequence=SEQUENCE, seed=1)
    engine = build_engine(run, model, World())
    assert isinstance(engine, TorchEngine)
    tokens = torch.randint(0, VOCAB, (2, SEQUENCE + 1))
    training = Training(engine, Batch(tokens[:, :-1], tokens[:, 1:], torch.arange(2)))
    for _ in range(WARM_STEPS):
        training.step()
    return training


def main() -> None:
    """Measure, and print the figures."""
    rounds = parse_rounds(__doc__ or "", rounds=5, quick=2)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.filterwarnings("ignore", module="torch")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    worst: dict[str, float] = {}
    raw: dict[str, Any] = {}
    for megabytes in SIZES_MB:
        with tempfile.TemporaryDirectory(prefix="tidemill-stall-") as scratch:
            heard, size = measure(megabytes, rounds, Path(scratch))
        stall = {name: statistics.median(cost.stall_s) for name, cost in heard.items()}
        rival = min(value for name, value in stall.items() if name.startswith("dcp"))
        figures = {
            "stall_vs_torch_save": stall["ours"] / stall["torch_save"],
            "stall_vs_dcp_async": stall["ours"] / rival,
            "step_while_persisting": statistics.median(heard["ours"].beside),
            "bytes_vs_raw": heard["ours"].bytes / size,
        }
        raw[str(megabytes)] = {
            "state_bytes": size,
            "stall_s": {name: cost.stall_s for name, cost in heard.items()},
            "lost_s": {name: cost.lost_s for name, cost in heard.items()},
            "beside": {name: cost.beside for name, cost in heard.items()},
            **figures,
        }
        print(f"{megabytes} MB: {stall} {figures}", flush=True)
        worst = {name: max(value, worst.get(name, value)) for name, value in figures.items()}
    dist.destroy_process_group()
    tell("checkpoint_stall", worst, rounds, raw)


if __name__ == "__main__":
    main()
