"""Processes that live through many groups, as a kept worker does; without Ray and without storage.

A test leads: it starts processes, has them form a group and train with the real loop, engine and
memory, kills one in the midst of a step or lets some leave, and has the others form the next group.
Each attempt runs in a thread of its own, which dismantles its engine and tells what it saw.
"""

from __future__ import annotations

import contextlib
import ctypes
import datetime as dt
import faulthandler
import functools
import gc
import hashlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import StrEnum
from multiprocessing import connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
import torch.distributed as dist

from tests.kit import accessors
from tests.kit.training import (
    SEQUENCE,
    VOCAB,
    NoSamples,
    NoStore,
    RaggedStream,
)
from tests.kit.training import Memory as Notes
from tests.kit.world import DIE_WITH_PARENT, _server, _variables
from tidemill.checkpoint.exchange import Exchange
from tidemill.checkpoint.memory import Memory
from tidemill.errors import forget_frames
from tidemill.spec.progress import Cursor, EventKind, State, World
from tidemill.spec.run import RunSpec
from tidemill.spec.strategy import DdpSpec
from tidemill.train.engine import Engine, build_engine
from tidemill.train.guard import Guard
from tidemill.train.loop import Parts, look_at, train
from tidemill.train.model import build_model
from tidemill.train.pulse import Phase, Pulse
from tidemill.train.strategy.deepspeed import DeepSpeedEngine
from tidemill.train.teardown import dismantle, find_survivors
from tidemill.train.warmup import warm_up

PATIENCE = dt.timedelta(seconds=60)
PATIENCE_S = 120.0
LOOKS = 5
SETTLE_S = 5.0
ALIKE = 10
"""Looks in a row between which nothing changed."""
OTHER_SEED = 99
Result = TypeVar("Result")


class Place(StrEnum):
    """Where in a step a rank is killed; or before it, while the engine is filled."""

    restore = "restore"
    forward = "forward"
    slots = "slots"
    before_update = "before_update"
    after_update = "after_update"
    commit = "commit"


@dataclass(frozen=True, slots=True)
class Kill:
    """A rank's death.

    Attributes:
        rank: Who dies, by SIGKILL.
        step: The step that it does not survive; the one to begin with, if it dies before that.
        place: Where in that step.
    """

    rank: int
    step: int
    place: Place


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process holds of its system between two attempts."""

    threads: int
    files: int
    sockets: int


@dataclass(frozen=True, slots=True)
class Order:
    """What a process is told of an attempt.

    Attributes:
        run: What it trains.
        world: Its place.
        until: The step after which the group ends on purpose; the run may end before.
        stays: Whether it will be in the next group.
        every: Steps between two copies in memory.
        meeting: File by which the ranks find each other.
        kill: Who dies on the way.
    """

    run: RunSpec
    world: World
    until: int
    stays: bool
    every: int
    meeting: str
    kill: Kill | None


@dataclass(slots=True)
class Story:
    """What a process tells of an attempt.

    Attributes:
        problem: What ended it before its time.
        process: Who tells it.
        began: The step it began with; -1 if it came to none.
        losses: Loss of each step that it took.
        checksums: Of all state, at the beginning and at the end.
        survivors: What is left of its engine.
        usage: What the process holds afterwards.
        resident_mb: Memory of the process that is in use then.
        seconds: How long each part took.
    """

    problem: str = ""
    process: int = field(default_factory=os.getpid)
    began: int = -1
    losses: dict[int, float] = field(default_factory=dict[int, float])
    checksums: list[str] = field(default_factory=list[str])
    survivors: list[str] = field(default_factory=list[str])
    usage: Usage = field(default_factory=lambda: Usage(0, 0, 0))
    resident_mb: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict[str, float])

    @contextlib.contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Note how long something takes."""
        began_s = time.perf_counter()
        yield
        self.seconds[part] = time.perf_counter() - began_s


# --- the side of the test ------------------------------------------------------------------------


class Lives:
    """The processes of one run, led from one group to the next.

    Args:
        run: What they train.
        place: An empty directory.
        warm: Whether newcomers warm up before they join.
    """

    def __init__(self, run: RunSpec, place: Path, *, warm: bool = False) -> None:
        self.run, self.place, self.warm = run, place, warm
        self.attempt = 0
        self.losses: dict[int, list[float]] = {}
        self._groups = 0
        self._processes: list[tuple[ForkServerProcess, connection.Connection]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end(range(len(self._processes)))

    def start_over(self, run: RunSpec) -> None:
        """Have the same processes train another run, and remember nothing of this one."""
        self.run, self.attempt, self.losses = run, 0, {}

    def train(
        self,
        size: int,
        until: int,
        *,
        stay: Sequence[int] | None = None,
        kill: Kill | None = None,
        every: int = 1,
    ) -> list[Story | None]:
        """Form a group of who is there, in their order, and of newcomers, and let it train.

        Args:
            size: Its ranks; no fewer than there are processes.
            until: The step after which it ends.
            stay: Ranks that go on after that; all of them by default.
            kill: Who dies before.
            every: Steps between two copies in memory.

        Returns:
            What each rank tells; None for the dead.
        """
        while len(self._processes) < size:
            self._processes.append(self._start())
        self.attempt += 1
        self._groups += 1
        staying = set(range(size) if stay is None else stay)
        meeting = str(self.place / f"group-{self._groups}")
        for rank, (_, ear) in enumerate(self._processes):
            world = World(rank=rank, size=size, local_rank=rank, attempt=self.attempt)
            ear.send(Order(self.run, world, until, rank in staying, every, meeting, kill))
        stories = [self._hear(rank) for rank in range(size)]
        self._end([rank for rank in range(size) if rank not in staying or not stories[rank]])
        for story in stories:
            for step, loss in story.losses.items() if story else ():
                self.losses.setdefault(step, []).append(loss)
        return stories

    def _start(self) -> tuple[ForkServerProcess, connection.Connection]:
        context = _server()
        ear, mouth = context.Pipe()
        process = context.Process(
            target=_serve,
            args=(mouth, dict(os.environ) | _variables(0, 1), self.run if self.warm else None),
            daemon=True,
        )
        process.start()
        mouth.close()
        return process, ear

    def _end(self, ranks: Sequence[int]) -> None:
        for rank in ranks:
            process, ear = self._processes[rank]
            process.kill()
            process.join()
            process.close()
            ear.close()
        self._processes = [p for rank, p in enumerate(self._processes) if rank not in set(ranks)]

    def _hear(self, rank: int) -> Story | None:
        process, ear = self._processes[rank]
        if not ear.poll(PATIENCE_S):
            for other, _ in self._processes:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(other.pid or 0, signal.SIGUSR1)
            time.sleep(1)
            raise TimeoutError(f"rank {rank} (process {process.pid}) tells nothing; see stderr")
        with contextlib.suppress(EOFError, ConnectionError):
            return ear.recv()
        return None


# --- the side of a process -----------------------------------------------------------------------


def _serve(
    mouth: connection.Connection, variables: dict[str, str], warm_for: RunSpec | None
) -> None:
    ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)
    os.environ.clear()
    os.environ.update(variables)
    faulthandler.register(signal.SIGUSR1, file=sys.stderr.fileno(), all_threads=True)
    torch.set_num_threads(1)
    if warm_for is not None:
        assert not find_survivors(warm_up(warm_for, "cpu"))
    gc.freeze()  # as `teardown.freeze` does, but what the fork server has made is no garbage
    _serve_a_store()  # the first one of a process leaves a pipe behind, of its event loop
    memory = Memory()
    while True:
        order: Order = mouth.recv()
        if order.world.attempt == 1:
            memory = Memory()
        story = Story()
        in_a_thread(functools.partial(_attempt, order, memory, story))
        story.usage, story.resident_mb = usage(), resident_mb()
        mouth.send(story)


def _attempt(order: Order, memory: Memory, story: Story) -> None:
    engines: list[Engine] = []
    failure: Exception | None = None
    try:
        _train(order, memory, story, engines)
    except Exception as error:  # noqa: BLE001 - the test judges
        failure = error
        story.problem = f"{type(error).__name__}: {error}"
    forget_frames(failure)
    with story.timed("end"):
        engine = engines.pop() if engines else None
        story.survivors = find_survivors(dismantle(engine, failed=failure is not None))


def _train(order: Order, memory: Memory, story: Story, engines: list[Engine]) -> None:
    run, world, notes, pulse = order.run, order.world, Notes(), Pulse()
    with story.timed("group"):
        form(world, order.meeting)
        exchange = Exchange(world, PATIENCE)
    with story.timed("engine"):
        # What is built anew begins with other weights: only what it is filled with makes it right.
        seed = run.seed if world.attempt == 1 else OTHER_SEED
        model: Any = build_model(run.model, vocab=VOCAB, sequence=SEQUENCE, seed=seed)
        model.seed = run.seed
        engine = build_engine(run, model, world)
        engines.append(engine)
        guard = Guard(run.precision, engine)
    kill = order.kill if order.kill is not None and order.kill.rank == world.rank else None
    if kill is not None and kill.place is Place.restore:
        exchange.trade = _die  # type: ignore[method-assign]
    with story.timed("restore"):
        cursor = _restore(memory, exchange, engine, guard, world)
    story.checksums.append(checksum(engine))
    replicated = isinstance(run.strategy, DdpSpec)

    def look() -> State:
        live = look_at(engine, guard)
        return State(engine.wanted().tensors, live.scalars) if replicated else live

    with story.timed("first copy"):
        keeper = memory.begin(
            world, look, cursor, replicated=replicated, every=order.every, patience=PATIENCE
        )
    if kill is not None:
        _arm(kill, model, engine, keeper, pulse)
    del model
    parts = Parts(
        engine=engine,
        guard=guard,
        stream=RaggedStream(),
        held_out=NoSamples(),
        byte_level=False,
        store=NoStore(),
        keeper=keeper,
        pulse=pulse,
        recorder=notes,
        stop_requested=lambda: False,
        save_requested=lambda: False,
        leave_requested=lambda: pulse.newest.step + 1 >= order.until,
    )
    story.began = cursor.step
    try:
        train(run, parts, world, cursor)
        story.checksums.append(checksum(engine))
        if pulse.newest.phase is Phase.leaving:
            with story.timed("hand over"):
                keeper.hand_over(stays=order.stays)
    finally:
        steps = notes.all(EventKind.step)
        story.losses = {step["step"]: step["loss"] for step in steps}
        if steps:
            story.seconds["first step"] = steps[0]["seconds"]
        with story.timed("keep"):
            keeper.keep()


def _restore(
    memory: Memory, exchange: Exchange, engine: Engine, guard: Guard, world: World
) -> Cursor:
    found = memory.find(exchange)
    if found is None:
        assert world.attempt == 1, "the state is lost"
        return Cursor()
    wanted = engine.wanted()
    memory.fill(found, wanted, world)
    engine.restore(wanted)
    guard.restore(wanted.scalars["guard"])
    return found.cursor


def _arm(kill: Kill, model: Any, engine: Any, keeper: Any, pulse: Pulse) -> None:
    """Have this process die where `kill` says."""
    inner = engine.zero.optimizer if isinstance(engine, DeepSpeedEngine) else engine.optimizer
    at = kill.step

    def deadly(work: Callable[..., Any], *, call: int = 1, after: bool = False) -> Any:
        calls = 0

        def doomed(*args: Any, **options: Any) -> Any:
            nonlocal calls
            calls += pulse.newest.step == at
            if calls == call and not after:
                _die()
            result = work(*args, **options)
            if calls == call:
                _die()
            return result

        return doomed

    match kill.place:
        case Place.forward:
            model.blocks[1].register_forward_pre_hook(deadly(lambda *_: None))
        case Place.slots:
            engine.accumulate = deadly(engine.accumulate, call=2)
        case Place.before_update:
            inner.step = deadly(inner.step)
        case Place.after_update:
            inner.step = deadly(inner.step, after=True)
        case Place.commit:
            at = kill.step + 1  # the step is taken by then
            trader = getattr(keeper, "_exchange")  # noqa: B009 - private, and no part of a protocol
            trader.trade = deadly(trader.trade)  # what is replicated is not traded
            keeper.commit = deadly(keeper.commit, after=True)


def _die(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


# --- what both sides use -------------------------------------------------------------------------


def in_a_thread(work: Callable[[], Result]) -> Result:
    """Do `work` in a thread of its own, as a kept worker does each attempt."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


def form(world: World, meeting: str) -> None:
    """Form a gloo group as Ray does: rank 0 has the store; the file `meeting` tells its port."""
    if dist.is_initialized():
        dist.barrier()  # a rank that destroys it at once would break what others still connect
        dist.destroy_process_group()
    told = dist.FileStore(meeting, world.size)
    if world.rank == 0:
        store = _serve_a_store()
        told.set("port", str(store.port))
    else:
        store = dist.TCPStore("127.0.0.1", int(told.get("port")), timeout=PATIENCE)
    dist.init_process_group(
        "gloo", store=store, rank=world.rank, world_size=world.size, timeout=PATIENCE
    )


def _serve_a_store() -> dist.TCPStore:
    return dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def checksum(engine: Engine) -> str:
    """Of every master, moment, buffer and scalar, whole; collective."""
    digest = hashlib.sha256()
    for name, tensor in sorted(accessors.everything(engine).items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def usage() -> Usage:
    """What this process holds: the least of a few looks, as a dead thread is listed for a while."""
    return min((_look_around() for _ in range(LOOKS)), key=lambda seen: seen.threads)


def resident_mb() -> float:
    """Memory of this process that is in use."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _look_around() -> Usage:
    """What is held once nothing changes any more: a thread that was told to end takes a moment."""
    seen, same = _look(), 0
    until_s = time.monotonic() + SETTLE_S
    while same < ALIKE and time.monotonic() < until_s:
        time.sleep(0.01)
        again = _look()
        same = same + 1 if again == seen else 0
        seen = again
    return seen


def _look() -> Usage:
    files = [file.readlink().name for file in Path("/proc/self/fd").iterdir() if file.is_symlink()]
    sockets = sum(name.startswith("socket:") for name in files)
    return Usage(len(list(Path("/proc/self/task").iterdir())), len(files), sockets)
