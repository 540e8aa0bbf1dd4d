"""Tokens per second of the worker loop over a bare loop with the same model, precision and batch.

`ddp`: fp32, against DistributedDataParallel in ten lines. `deepspeed`: ZeRO-2 in bf16, against
DeepSpeed's own loop with its own accumulation. Both arms of a figure live in one process of one
rank, run blocks of steps in turn, and must end a block with losses that agree.
"""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[2] / "platform")]
os.environ |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "LOCAL_SIZE": "1"}
os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_

from tests.bench.contract import alternate, parse_rounds, ratio, tell
from tests.kit.training import NoKeeper, NoSamples, NoStore
from tidemill.compose import compose
from tidemill.data.corpus import open_stream, prepare_corpus
from tidemill.launch.stop import StopWatch
from tidemill.plan.batch import Slot
from tidemill.report.events import EventLog, read_events
from tidemill.spec.progress import Cursor, EventKind, World
from tidemill.spec.run import RunSpec
from tidemill.spec.strategy import DeepSpeedSpec
from tidemill.storage import Location, locate
from tidemill.train.engine import LossModel, build_engine
from tidemill.train.guard import Guard
from tidemill.train.loop import Parts, train
from tidemill.train.model import build_model
from tidemill.train.optim import lr_at, make_optimizer
from tidemill.train.pulse import Pulse
from tidemill.train.strategy.deepspeed_setup import make_config

BLOCK_STEPS = 2  # short, so that both arms see the same weather on a shared machine
SAME_LOSS = 5e-2


def ours(spec: RunSpec, place: Location) -> Generator[float]:
    """Blocks of the real loop, with its event log and its watch for a stop; yields losses."""
    corpus = prepare_corpus(spec.data, place)
    model = build_model(
        spec.model, vocab=corpus.vocab, sequence=spec.batch.sequence, seed=spec.seed
    )
    world, cursor, run = World(), Cursor(), place / spec.name
    log, watch = EventLog(run, 1), StopWatch(run, 1)
    engine = build_engine(spec, model, world)
    parts = Parts(
        engine=engine,
        guard=Guard(spec.precision, engine),
        stream=open_stream(
            spec.data, corpus, seed=spec.seed, sequence=spec.batch.sequence, split="train"
        ),
        held_out=NoSamples(),
        byte_level=True,
        store=NoStore(),
        keeper=NoKeeper(),
        pulse=Pulse(),
        recorder=log,
        stop_requested=watch.requested,
        save_requested=lambda: False,
        leave_requested=lambda: False,
    )
    try:
        while True:
            cursor = train(replace(spec, steps=cursor.step + BLOCK_STEPS), parts, world, cursor)
            yield time.perf_counter()
    finally:
        watch.close()
        log.close()


def bare(spec: RunSpec, place: Location, losses: list[float]) -> Generator[float]:
    """Blocks of a loop as one writes it without a platform: data in memory, losses to a list."""
    corpus = prepare_corpus(spec.data, place)
    stream = open_stream(
        spec.data, corpus, seed=spec.seed, sequence=spec.batch.sequence, split="train"
    )
    model = LossModel(
        build_model(spec.model, vocab=corpus.vocab, sequence=spec.batch.sequence, seed=spec.seed)
    )
    step_of = _deepspeed_step if isinstance(spec.strategy, DeepSpeedSpec) else _ddp_step
    take_step = step_of(spec, model)
    size, micro, step = spec.batch.global_size, spec.batch.micro_size, 0
    while True:
        batches = [
            [
                [torch.from_numpy(a) for a in (s.inputs, s.targets, s.keys)]
                for first in range(0, size, micro)
                for s in [stream.take(number * size, Slot(start=first, size=micro))]
            ]
            for number in range(step, step + BLOCK_STEPS)
        ]
        yield -1.0
        for batch in batches:
            losses.append(take_step(batch, lr_at(spec.optim, step)))
            step += 1
        yield time.perf_counter()


def _ddp_step(spec: RunSpec, model: LossModel) -> Callable[..., float]:
    wrapped = DistributedDataParallel(model)
    optimizer = make_optimizer(spec.optim, model.named_parameters())
    weight = 1.0 / (spec.batch.global_size * spec.batch.sequence)

    def step(batches: list[list[torch.Tensor]], lr: float) -> float:
        total = 0.0
        for number, batch in enumerate(batches, start=1):
            wrapped.require_backward_grad_sync = number == len(batches)
            loss = wrapped(*batch) * weight
            loss.backward()
            total += loss.item()
        clip_grad_norm_(model.parameters(), spec.optim.clip)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        optimizer.zero_grad()
        return total

    return step


def _deepspeed_step(spec: RunSpec, model: LossModel) -> Callable[..., float]:
    deepspeed: Any = importlib.import_module("deepspeed")

    slots = spec.batch.global_size // spec.batch.micro_size
    assert isinstance(spec.strategy, DeepSpeedSpec)
    config = make_config(spec, spec.strategy, model, averages=False)
    config |= {"gradient_accumulation_steps": slots, "managed_gradient_accumulation": True}
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=make_optimizer(spec.optim, model.named_parameters()),
        config=config,
        dist_init_required=False,
    )
    weight = slots / (spec.batch.global_size * spec.batch.sequence)

    def step(batches: list[list[torch.Tensor]], lr: float) -> float:
        total = 0.0
        for group in engine.optimizer.param_groups:
            group["lr"] = lr
        for batch in batches:
            loss = engine(*batch) * weight
            engine.backward(loss)
            engine.step()
            total += loss.item() / slots
        return total

    return step


def measure(strategy: str, precision: str, rounds: int) -> tuple[float | None, object]:
    """Tokens per second of our loop over the bare one; None if their losses part."""
    spec = compose(
        [f"strategy={strategy}", f"precision={precision}", "report.eval_every_steps=0"],
        config_name="config",
        schema=RunSpec,
    )
    spec = replace(spec, name=strategy)
    with tempfile.TemporaryDirectory() as scratch:
        place = locate(scratch)
        bare_losses: list[float] = []
        mine, theirs = ours(spec, place), bare(spec, place, bare_losses)

        def run_ours() -> float:
            began_s = time.perf_counter()
            return next(mine) - began_s

        def run_bare() -> float:
            next(theirs)
            began_s = time.perf_counter()
            return next(theirs) - began_s

        run_ours()
        run_bare()
        seconds = alternate({"ours": run_ours, "bare": run_bare}, rounds)
        mine.close()
        losses = [
            event.fields["loss"]
            for event in read_events(place / spec.name)
            if event.kind is EventKind.step
        ]
    worst = max(abs(a - b) for a, b in zip(losses, bare_losses, strict=True))
    print(f"{strategy}: losses differ by at most {worst:.2e} over {len(losses)} steps")
    figure = ratio(seconds["bare"], seconds["ours"]) if worst <= SAME_LOSS else None
    return figure, seconds


@contextmanager
def one_rank() -> Iterator[None]:
    """A process group of one."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def main() -> None:
    """Measure both figures."""
    rounds = parse_rounds(__doc__ or "", rounds=40, quick=8)
    with one_rank():
        ddp, ddp_raw = measure("ddp", "fp32", rounds)
        deepspeed, deepspeed_raw = measure("deepspeed_z2", "bf16", rounds)
    tell(
        "loop_tax",
        {"ddp": ddp, "deepspeed": deepspeed},
        rounds,
        {"ddp": ddp_raw, "deepspeed": deepspeed_raw},
    )


if __name__ == "__main__":
    main()
