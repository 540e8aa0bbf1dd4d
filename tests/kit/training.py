"""A tiny run of the real loop without Ray or storage, and a plain torch loop to compare it with.

The reference shares the model's code and nothing else: one process, the whole batch at once, loss
sum over valid targets divided by their number, torch's own clipping and AdamW.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from torch.nn.utils import clip_grad_norm_

from tidemill.plan.batch import Slot
from tidemill.spec.base import from_plain, to_plain
from tidemill.spec.checkpoint import CheckpointSpec
from tidemill.spec.progress import Cursor, EventKind, State, World
from tidemill.spec.run import ReportSpec, Resume, RunSpec
from tidemill.spec.scale import ScaleSpec
from tidemill.spec.strategy import DdpSpec, DeepSpeedSpec, Fsdp2Spec, MemorySpec, StrategySpec
from tidemill.spec.training import (
    AdamWSpec,
    BatchSpec,
    GptSpec,
    PrecisionKind,
    PrecisionSpec,
    SyntheticSpec,
)
from tidemill.train.engine import IGNORE, Engine, build_engine
from tidemill.train.guard import Guard
from tidemill.train.loop import Parts, train
from tidemill.train.model import build_model
from tidemill.train.optim import lr_at, make_optimizer
from tidemill.train.pulse import Pulse

VOCAB = 61
SEQUENCE = 24
STRATEGIES: dict[str, StrategySpec] = {
    "ddp": DdpSpec(),
    "fsdp2": Fsdp2Spec(),
    "deepspeed_z1": DeepSpeedSpec(stage=1),
    "deepspeed_z2": DeepSpeedSpec(stage=2),
    "deepspeed_z3": DeepSpeedSpec(stage=3),
}


def tiny_run(strategy: str = "ddp", **changes: Any) -> RunSpec:
    """A run of 30 steps with clipping that bites, dropout, and a new learning rate every step."""
    run = RunSpec(
        name="tiny",
        seed=7,
        steps=30,
        storage="unused",
        resume=Resume.auto,
        model=GptSpec(layers=2, heads=4, width=48, dropout=0.1),
        data=SyntheticSpec(vocab=VOCAB),
        optim=AdamWSpec(lr=3e-3, warmup_steps=5, decay_steps=30, weight_decay=0.1, clip=1.0),
        strategy=STRATEGIES[strategy],
        precision=PrecisionSpec(),
        batch=BatchSpec(global_size=8, micro_size=2, sequence=SEQUENCE),
        memory=MemorySpec(),
        checkpoint=CheckpointSpec(every_steps=0),
        scale=ScaleSpec(workers=1),
        report=ReportSpec(),
    )
    return replace(run, **changes)


@dataclass(frozen=True, slots=True)
class ArraySamples:
    """A slot's samples."""

    inputs: np.ndarray
    targets: np.ndarray
    keys: np.ndarray
    marks: np.ndarray


class RaggedStream:
    """Random tokens; every fourth sample has no valid target at all, others a masked tail."""

    samples = 1_000_000

    def take(self, first: int, slot: Slot) -> ArraySamples:
        """See `tidemill.train.loop.Stream`."""
        numbers = range(first + slot.start, first + slot.start + slot.size) or range(
            first, first + 1
        )
        rows = [self._sample(number) for number in numbers]
        inputs = np.stack([tokens[:-1] for tokens, _ in rows])
        targets = np.stack([tokens[1:] for tokens, _ in rows])
        for row, (_, valid) in enumerate(rows):
            targets[row, valid if slot.size else 0 :] = IGNORE
        keys = np.asarray(numbers, dtype=np.int64)
        return ArraySamples(inputs, targets, keys, marks=keys[: slot.size])

    @staticmethod
    def _sample(number: int) -> tuple[np.ndarray, int]:
        random = np.random.default_rng([11, number])
        tokens = random.integers(0, VOCAB, SEQUENCE + 1, dtype=np.int64)
        tokens[::2] = tokens[0]
        return tokens, 0 if number % 4 == 1 else int(random.integers(1, SEQUENCE + 1))


class NoSamples:
    """An empty held-out split."""

    samples = 0

    def take(self, first: int, slot: Slot) -> ArraySamples:
        """Never called."""
        raise AssertionError(first, slot)


@dataclass(slots=True)
class Memory:
    """A recorder that keeps what it hears."""

    heard: list[tuple[EventKind, dict[str, Any]]] = field(default_factory=list)

    def record(self, kind: EventKind, **fields: Any) -> None:
        """See `Recorder.record`."""
        self.heard.append((kind, fields))

    def flush(self) -> None:
        """See `Recorder.flush`."""

    def all(self, kind: EventKind) -> list[dict[str, Any]]:
        """The fields of every event of one kind."""
        return [fields for heard, fields in self.heard if heard is kind]


class NoStore:
    """A store that commits nothing."""

    busy = False

    def save(
        self, state: State, cursor: Cursor, metrics: Mapping[str, Any], *, commit: bool = True
    ) -> None:
        """See `CheckpointStore.save`."""

    def settle(self) -> None:
        """See `CheckpointStore.settle`."""

    def finish(self) -> None:
        """See `CheckpointStore.finish`."""


class NoKeeper:
    """A keeper that keeps nothing."""

    def tear(self) -> None:
        """See `Keeper.tear`."""

    def commit(self, cursor: Cursor) -> None:
        """See `Keeper.commit`."""


def run_tiny(
    world: World,
    run: RunSpec,
    spoil: Callable[[Engine, World], None] | None = None,
) -> tuple[Memory, Engine]:
    """Train `run` on this rank with the real loop; `spoil` may tamper with the engine first."""
    engine = build_engine(
        run, build_model(run.model, vocab=VOCAB, sequence=SEQUENCE, seed=run.seed), world
    )
    if spoil is not None:
        spoil(engine, world)
    return train_tiny(world, run, engine, Cursor()), engine


def train_tiny(world: World, run: RunSpec, engine: Engine, cursor: Cursor) -> Memory:
    """Go on with `run` from `cursor` to its end, saving nothing; give what was recorded."""
    memory = Memory()
    parts = Parts(
        engine=engine,
        guard=Guard(run.precision, engine),
        stream=RaggedStream(),
        held_out=NoSamples(),
        byte_level=False,
        store=NoStore(),
        keeper=NoKeeper(),
        pulse=Pulse(),
        recorder=memory,
        stop_requested=lambda: False,
        save_requested=lambda: False,
        leave_requested=lambda: False,
    )
    train(run, parts, world, cursor)
    return memory


def losses_of(world: World, run: RunSpec) -> list[float]:
    """The loss of every step, from the real loop."""
    memory, _ = run_tiny(world, run)
    return [step["loss"] for step in memory.all(EventKind.step)]


def plain_losses(run: RunSpec, skipped: frozenset[int] = frozenset()) -> list[float]:
    """The loss of every step of a plain fp32 torch loop on the whole batch, in one thread.

    Args:
        run: What to train; its strategy, precision and micro-batch are ignored.
        skipped: Steps whose update is not applied.
    """
    alike = replace(
        run,
        strategy=DdpSpec(),
        precision=PrecisionSpec(),
        memory=MemorySpec(),
        batch=replace(run.batch, micro_size=1),
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    losses = _plain_losses(json.dumps(to_plain(alike), sort_keys=True), skipped)
    torch.set_num_threads(threads)
    return list(losses)


@functools.cache
def _plain_losses(told: str, skipped: frozenset[int]) -> tuple[float, ...]:
    run = from_plain(RunSpec, json.loads(told))
    model = build_model(run.model, vocab=VOCAB, sequence=SEQUENCE, seed=run.seed)
    optimizer = make_optimizer(run.optim, model.named_parameters())
    losses: list[float] = []
    size = run.batch.global_size
    for step in range(run.steps):
        samples = RaggedStream().take(step * size, Slot(start=0, size=size))
        targets = torch.from_numpy(samples.targets).flatten()
        logits = model(torch.from_numpy(samples.inputs), keys_B=torch.from_numpy(samples.keys))
        total = functional.cross_entropy(
            logits.flatten(0, 1), targets, ignore_index=IGNORE, reduction="sum"
        )
        loss = total / max(int((targets != IGNORE).sum()), 1)
        losses.append(float(loss.detach()))
        loss.backward()
        clip_grad_norm_(model.parameters(), run.optim.clip)
        for group in optimizer.param_groups:
            group["lr"] = lr_at(run.optim, step)
        if step not in skipped:
            optimizer.step()
        optimizer.zero_grad()
    return tuple(losses)


def in_precision(kind: str) -> PrecisionSpec:
    """A precision; fp16 with a fixed scale, because a dynamic one may skip steps."""
    return PrecisionSpec(kind=PrecisionKind(kind), loss_scale=1024.0 if kind == "fp16" else 0.0)
