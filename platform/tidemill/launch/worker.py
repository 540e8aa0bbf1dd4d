"""The composition root of one rank: everything the loop needs, put together from plain data.

A worker is a function of (spec, world, last state). Start, restart and resume are this one path.
"""

from __future__ import annotations

import contextlib
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ray.train
import ray.train.torch

from tidemill.checkpoint.exchange import Exchange
from tidemill.checkpoint.imports import tied_names
from tidemill.checkpoint.manifest import Header
from tidemill.checkpoint.retention import Keep
from tidemill.checkpoint.store import Store
from tidemill.data.corpus import Corpus, open_stream
from tidemill.errors import TidemillError, TrainingError
from tidemill.launch.beginning import Beginning
from tidemill.launch.failure import one_line
from tidemill.launch.metrics import MeteredRecorder
from tidemill.launch.near import NearMemory
from tidemill.launch.stop import StopWatch
from tidemill.launch.vaults import run_key
from tidemill.plan.batch import make_batch_plan
from tidemill.report.events import EventLog, next_attempt
from tidemill.spec.base import from_plain
from tidemill.spec.progress import EventKind, Recorder, World
from tidemill.spec.run import RunSpec
from tidemill.storage import Location, locate
from tidemill.train.engine import build_engine
from tidemill.train.guard import Guard
from tidemill.train.loop import Parts, train
from tidemill.train.model import build_model
from tidemill.train.ranks import from_first_rank, use_threads


@dataclass(frozen=True, slots=True)
class Quiet:
    """The recorder of every rank but the first."""

    def record(self, kind: EventKind, **fields: Any) -> None:
        """Drop the event."""


def run_worker(config: dict[str, Any]) -> None:
    """Train on this rank until the run is done or asked to stop.

    Args:
        config: `spec` and `corpus` in plain form, and `launch`, as made by `trainer.train`.
    """
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    spec = from_plain(RunSpec, config["spec"])
    run = locate(spec.storage) / spec.name
    use_threads(int(spec.scale.cpus_per_worker))
    world = _world(run)
    with (
        _told(world),
        _recording(spec, run, world) as recorder,
        _watching(run, config["launch"], world) as stop,
    ):
        corpus = Corpus(**config["corpus"])
        _train(spec, corpus, world, run=run, recorder=recorder, stop=stop)


def _train(
    spec: RunSpec,
    corpus: Corpus,
    world: World,
    *,
    run: Location,
    recorder: Recorder,
    stop: StopWatch | None,
) -> None:
    model = build_model(
        spec.model, vocab=corpus.vocab, sequence=spec.batch.sequence, seed=spec.seed
    )
    recorder.record(
        EventKind.attempt_started,
        world=world.size,
        strategy=spec.strategy.name,
        precision=spec.precision.kind.value,
        accumulate=make_batch_plan(
            spec.batch.global_size, spec.batch.micro_size, world.size
        ).accumulate,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        device=world.device,
        corpus=corpus.digest,
    )
    tied = tied_names(model)
    engine = build_engine(spec, model, world)
    header = Header(
        run=spec.name,
        digest=spec.digest(),
        identity=spec.identity(),
        corpus_digest=corpus.digest,
        strategy=spec.strategy.name,
        precision=spec.precision.kind.value,
    )
    policy = spec.checkpoint
    exchange = Exchange(world)
    store = Store(
        run,
        header=header,
        world=world,
        exchange=exchange,
        recorder=recorder,
        keep=Keep(
            last=policy.keep_last, best=policy.keep_best, every_steps=policy.keep_every_steps
        ),
        verify=policy.verify,
        retry_for_s=policy.retry_for_s,
        near=_near(spec, corpus, run, world, exchange) if policy.near_gib > 0 else None,
    )
    store.sweep()
    guard = Guard(spec.precision, engine)
    cursor = Beginning(
        spec=spec,
        engine=engine,
        tied=tied,
        guard=guard,
        store=store,
        exchange=exchange,
        recorder=recorder,
    ).find()
    store.prepare(engine.state())
    parts = Parts(
        engine=engine,
        guard=guard,
        stream=open_stream(
            spec.data, corpus, seed=spec.seed, sequence=spec.batch.sequence, split="train"
        ),
        held_out=open_stream(
            spec.data, corpus, seed=spec.seed, sequence=spec.batch.sequence, split="val"
        ),
        byte_level=corpus.byte_level,
        store=store,
        recorder=recorder,
        stop_requested=stop.requested if stop else lambda: False,
        save_requested=stop.save_requested if stop else lambda: False,
    )
    try:
        train(spec, parts, world, cursor)
    finally:
        store.close()


def _near(
    spec: RunSpec, corpus: Corpus, run: Location, world: World, exchange: Exchange
) -> NearMemory:
    """This rank's way to the memory of nodes. Collective."""
    node = ray.get_runtime_context().get_node_id()
    return NearMemory(
        run_key(run, spec, corpus.digest),
        attempt=world.attempt,
        workers=exchange.all_gather(node),
        rank=world.rank,
        budget_gib=spec.checkpoint.near_gib,
    )


def _world(run: Location) -> World:
    """This rank's place, and the attempt's number, which rank 0 decides."""
    context = ray.train.get_context()
    device = str(ray.train.torch.get_device())
    rank = context.get_world_rank()
    return World(
        rank=rank,
        size=context.get_world_size(),
        local_rank=context.get_local_rank(),
        device=device,
        attempt=from_first_rank(next_attempt(run) if rank == 0 else 0, device),
    )


@contextlib.contextmanager
def _told(world: World) -> Iterator[None]:
    """Send a failure to the driver with all of its traceback; Ray would cut it short."""
    try:
        yield
    except TidemillError:
        raise
    except Exception as error:  # noqa: BLE001 - a rank's last word, whatever it is
        summary = f"rank {world.rank} failed: {one_line(error)}"
        raise TrainingError(summary, traceback.format_exc(), world.rank) from None


@contextlib.contextmanager
def _recording(spec: RunSpec, run: Location, world: World) -> Iterator[Recorder]:
    """Rank 0's event log; of a failure the driver knows more, and writes it there."""
    if world.rank != 0:
        yield Quiet()
        return
    log = EventLog(run, world.attempt)
    try:
        yield MeteredRecorder(log, spec.name, world)
    finally:
        log.close()


@contextlib.contextmanager
def _watching(run: Location, launch: int, world: World) -> Iterator[StopWatch | None]:
    """Rank 0's watch for a stop request; the others hear of it when ranks agree on a step."""
    if world.rank != 0:
        yield None
        return
    watch = StopWatch(run, launch)
    try:
        yield watch
    finally:
        watch.close()
