"""The composition root of one rank: everything the loop needs, put together from plain data.

A worker is a function of (spec, world, last state). Start, restart and resume are this one path.
"""

from __future__ import annotations

import datetime as dt
import time
import warnings
from typing import Any

import ray.train
import ray.train.torch

from tidemill.checkpoint.exchange import Exchange
from tidemill.checkpoint.imports import tied_names
from tidemill.checkpoint.manifest import Header
from tidemill.checkpoint.retention import Keep
from tidemill.checkpoint.store import CLOSE_WAIT_S, Store
from tidemill.data.corpus import Corpus, open_stream
from tidemill.errors import forget_frames
from tidemill.launch.beginning import Beginning
from tidemill.launch.kept import KEPT, Announced
from tidemill.launch.metrics import MeteredRecorder
from tidemill.launch.near import NearMemory
from tidemill.launch.stop import StopWatch
from tidemill.launch.surroundings import event_log, last_words, stop_watch
from tidemill.launch.vaults import run_key
from tidemill.plan.batch import make_batch_plan
from tidemill.report.events import EventLog, next_attempt
from tidemill.report.tail import Remembering, catch_up
from tidemill.spec.base import from_plain
from tidemill.spec.progress import EventKind, State, World
from tidemill.spec.run import RunSpec
from tidemill.spec.strategy import DdpSpec
from tidemill.storage import Location, locate
from tidemill.train.engine import Engine, build_engine
from tidemill.train.guard import Guard
from tidemill.train.loop import Parts, look_at, train
from tidemill.train.meeting import form_group
from tidemill.train.model import build_model
from tidemill.train.pulse import Phase
from tidemill.train.ranks import highest, use_threads
from tidemill.train.teardown import dismantle, find_survivors


def run_worker(config: dict[str, Any]) -> None:
    """Train on this rank until the run is done or asked to stop.

    Args:
        config: `spec` and `corpus` in plain form, and `launch`, as made by `trainer.train`.
    """
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    spec = from_plain(RunSpec, config["spec"])
    use_threads(int(spec.scale.cpus_per_worker))
    engines: list[Engine] = []
    left, failure = False, None
    try:
        left = _live(spec, config, engines)
    except BaseException as error:  # noqa: BLE001 - it is raised again, once nothing hangs on it
        failure = error
    forget_frames(failure)
    if left or failure is not None:
        KEPT.spoilt = True  # unless what follows shows that nothing is left
        engine = engines.pop() if engines else None
        traces = dismantle(engine, failed=failure is not None)
        del engine
        KEPT.spoilt = bool(find_survivors(traces))
        KEPT.ended_s = time.monotonic()
    if failure is not None:
        raise failure
    if left:
        KEPT.pulse.beat(KEPT.reached, Phase.parked)
        KEPT.released.wait()


def _live(spec: RunSpec, config: dict[str, Any], engines: list[Engine]) -> bool:
    """One group's life, on this rank; whether it ended for another group's sake."""
    began_s = time.monotonic()
    run = locate(spec.storage) / spec.name
    context = ray.train.get_context()
    form_group(
        context.get_world_rank(),
        context.get_world_size(),
        KEPT.rejoin["meeting"],
        KEPT.take_meeting(),
        KEPT.leaving.is_set,
    )
    world = _world(run)
    with (
        last_words(world),
        event_log(run, world) as log,
        stop_watch(run, config["launch"], world) as stop,
    ):
        corpus = Corpus(**config["corpus"])
        return _train(
            spec,
            corpus,
            world,
            run=run,
            log=log,
            stop=stop,
            engines=engines,
            began_s=began_s,
        )


def _train(
    spec: RunSpec,
    corpus: Corpus,
    world: World,
    *,
    run: Location,
    log: EventLog | None,
    stop: StopWatch | None,
    engines: list[Engine],
    began_s: float,
) -> bool:
    recorder = Remembering(
        KEPT.tail, world.attempt, MeteredRecorder(log, spec.name, world) if log else None
    )
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
    engines.append(engine)
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
    catch_up(KEPT.tail, world.attempt, log, exchange.all_gather)
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
        memory=KEPT.memory,
        overtaken=lambda: next_attempt(run) > world.attempt + 1,
    )
    store.sweep()
    replicated = isinstance(spec.strategy, DdpSpec)
    guard = Guard(spec.precision, engine)
    cursor = Beginning(
        spec=spec,
        engine=engine,
        tied=tied,
        guard=guard,
        store=store,
        exchange=exchange,
        recorder=recorder,
        replicated=replicated,
    ).find()
    store.prepare(engine.state())

    def look() -> State:
        state = look_at(engine, guard)
        return State(engine.wanted().tensors, state.scalars) if replicated else state

    keeper = KEPT.memory.begin(
        world,
        look,
        cursor,
        replicated=replicated,
        every=spec.scale.copy_every_steps,
        node=ray.get_runtime_context().get_node_id(),
        patience=dt.timedelta(seconds=spec.scale.collective_timeout_s),
    )
    KEPT.attempt, KEPT.recorder = world.attempt, recorder
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
        keeper=Announced(keeper, recorder, began_s, cursor),
        pulse=KEPT.pulse,
        recorder=recorder,
        stop_requested=stop.requested if stop else lambda: False,
        save_requested=lambda: KEPT.take_saving() or bool(stop and stop.save_requested()),
        leave_requested=KEPT.leaving.is_set,
    )
    left, failed = False, True
    try:
        train(spec, parts, world, cursor)
        left = KEPT.pulse.newest.phase is Phase.leaving
        if left:
            keeper.hand_over(stays=KEPT.stays)
        else:
            keeper.tear()  # the run is over: nobody will ask for it
        failed = False
    finally:
        KEPT.recorder = None
        keeper.keep()
        # Of a group that broke, nothing in flight can be committed any more.
        store.close(wait_s=0.0 if failed else CLOSE_WAIT_S)
    return left


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
        labels=spec.scale.labels,
    )


def _world(run: Location) -> World:
    """This rank's place, and the attempt's number: one more than any rank or log knows of.

    A group that was lost before its first line was written has left no log.
    """
    context = ray.train.get_context()
    device = str(ray.train.torch.get_device())
    rank = context.get_world_rank()
    attempt = highest(max(KEPT.lived + 1, next_attempt(run) if rank == 0 else 0), device)
    KEPT.lived = attempt
    return World(
        rank=rank,
        size=context.get_world_size(),
        local_rank=context.get_local_rank(),
        device=device,
        attempt=attempt,
    )
