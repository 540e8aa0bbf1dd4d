"""SIGKILL at random instants of saving, 2,000 times: what is lost, torn, left over or not noticed.

Victims save as fast as they can, on a local disk (one rank, or two of which one or both die) and in
a bucket on loopback; they are forks of this process, so a life takes a tenth of a second. After
each death another fork starts as the next attempt would, and looks.

    kills                victims killed
    lost                 starts that found less than the newest step reported as committed
    torn                 starts that took a state which is not, bit for bit, that of its step
    leftover             starts after whose sweep something lay there that no checkpoint lists
    undetected_flips     bits flipped in the newest checkpoint that a start did not notice
"""

from __future__ import annotations

import contextlib
import json
import logging
import mmap
import os
import random
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[2] / "platform")]
os.environ["OMP_NUM_THREADS"] = "1"

import torch
import torch.distributed as dist

from tests.bench.contract import parse_rounds, tell
from tests.checkpoint.states import make_store
from tests.kit.bucket import serve_bucket
from tidemill import storage
from tidemill.checkpoint import persist, snapshot
from tidemill.checkpoint.manifest import CHECKPOINTS, MANIFEST, committed, read_manifest
from tidemill.checkpoint.retention import Keep
from tidemill.checkpoint.shelf import Shelf
from tidemill.checkpoint.store import Store
from tidemill.errors import TidemillError
from tidemill.spec.progress import Cursor, EventKind, Fragment, Piece, State, World
from tidemill.storage import locate

ELEMENTS = 600_000
TENSORS = 3
LONGEST_LIFE_S = 60.0
PHASES = ("start", "idle", "snapshot", "write", "commit", "prune")


@dataclass(kw_only=True)
class Habitat:
    """Where victims live.

    Attributes:
        uri: Of the run that they save.
        ranks: How many a victim consists of.
        share: Of all victims.
        reach_s: Seconds of saving within which one is killed: about two saves.
        newest: The newest step that a start found there.
    """

    uri: str
    ranks: int = 1
    share: float
    reach_s: float
    newest: int = -1


class Board:
    """Memory that outlives its writer: the phase a victim is in, and its newest commit."""

    LAYOUT = struct.Struct("qq")

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, self.LAYOUT.size)

    def clear(self) -> None:
        """Forget."""
        self.put("start", -1)

    def put(self, phase: str, committed_step: int) -> None:
        """Write both."""
        self.LAYOUT.pack_into(self._memory, 0, PHASES.index(phase), committed_step)

    def phase(self, phase: str) -> None:
        """Write the phase."""
        self.put(phase, self.committed)

    def commit(self, step: int) -> None:
        """Write the newest commit."""
        self.put(self.at, step)

    @property
    def at(self) -> str:
        """The phase."""
        return PHASES[self.LAYOUT.unpack_from(self._memory)[0]]

    @property
    def committed(self) -> int:
        """The newest commit's step; -1 for none."""
        return self.LAYOUT.unpack_from(self._memory)[1]


class Reporter:
    """A recorder that notes commits on the board."""

    def __init__(self, board: Board) -> None:
        self._board = board

    def record(self, kind: EventKind, **fields: Any) -> None:
        """See `Recorder.record`."""
        if kind is EventKind.checkpoint_saved:
            self._board.commit(fields["step"])

    def flush(self) -> None:
        """See `Recorder.flush`."""


def content_of(step: int, number: int) -> torch.Tensor:
    """What tensor `number` holds after `step` steps; every element depends on both."""
    first = (step * TENSORS + number) * 1_000_003
    return torch.arange(first, first + ELEMENTS, dtype=torch.int64).to(torch.int32)


def state_of(step: int, world: World) -> State:
    """One rank's share of the state."""
    share = -(-ELEMENTS // world.size)
    begin, end = world.rank * share, min(ELEMENTS, (world.rank + 1) * share)
    return State(
        {
            f"param.{number}": Fragment(
                (ELEMENTS,), "int32", (Piece(begin, content_of(step, number)[begin:end].clone()),)
            )
            for number in range(TENSORS)
        },
        {"step": step},
    )


def open_store(uri: str, world: World, board: Board) -> Store:
    """A store as an attempt would open it."""
    return make_store(world, uri, keep=Keep(last=2), recorder=Reporter(board), retry_for_s=5.0)


def live(uri: str, world: World, board: Board) -> None:
    """A victim: start as an attempt does, then save every step."""
    with _told(board):
        store = open_store(uri, world, board)
        store.sweep()
        found = store.load(state_of(0, world), lambda *_: None)
        step = found.cursor.step if found else 0
        board.phase("idle")
        while True:
            step += 1
            store.save(state_of(step, world), Cursor(step=step, samples=step), {"loss": 1.0})
            store.settle()


@contextlib.contextmanager
def _told(board: Board) -> Iterator[None]:
    """Have the stages of a save say on the board that they begin."""

    def telling(phase: str, inner: Callable[..., Any]) -> Callable[..., Any]:
        def told(*arguments: Any) -> Any:
            board.phase(phase)
            try:
                return inner(*arguments)
            finally:
                board.phase("idle")

        return told

    stages = (
        (snapshot.Snapshot, "take", "snapshot"),
        (persist, "write", "write"),
        (Shelf, "commit", "commit"),
        (Shelf, "prune", "prune"),
    )
    for owner, name, phase in stages:
        setattr(owner, name, telling(phase, getattr(owner, name)))
    yield


def inspect(uri: str, attempt: int, board: Board, draw: random.Random) -> dict[str, Any]:
    """Start as the next attempt does; say what was found."""
    world = World(attempt=attempt)
    store = open_store(uri, world, board)
    store.sweep()
    run = locate(uri)
    verdict: dict[str, Any] = {"step": -1, "torn": 0, "leftover": _leftovers(run), "undetected": 0}
    state = state_of(0, world)
    found = store.load(state, lambda *_: None)
    if found is None:
        return verdict
    assert found.manifest is not None
    verdict["step"] = step = found.cursor.step
    verdict["torn"] = int(not _is_that_of(state, step))
    if run.is_local:
        verdict["undetected"] = int(not _notices_a_flip(uri, found.manifest.name, board, draw))
    return verdict


def _is_that_of(state: State, step: int) -> bool:
    return state.scalars["step"] == step and all(
        torch.equal(held.pieces[0].data, content_of(step, int(name.removeprefix("param."))))
        for name, held in state.tensors.items()
    )


def _leftovers(run: storage.Location) -> int:
    """Entries that neither are checkpoints nor belong to one."""
    whole = {place.name: place for place in committed(run)}
    count = sum(entry.location.name != CHECKPOINTS for entry in storage.children(run))
    for entry in storage.children(run / CHECKPOINTS):
        place = whole.get(entry.location.name)
        if place is None:
            count += 1
            continue
        listed = {*read_manifest(place).files, MANIFEST}
        count += sum(held.location.name not in listed for held in storage.children(place))
    return count


def _notices_a_flip(uri: str, name: str, board: Board, draw: random.Random) -> bool:
    """Flip one bit anywhere in a checkpoint, load, and flip it back."""
    place = Path(uri) / CHECKPOINTS / name
    path = draw.choice(sorted(place.iterdir()))
    if draw.random() < 0.5:  # otherwise the one big file would get nearly all flips
        path = place / MANIFEST
    position, bit = draw.randrange(path.stat().st_size), 1 << draw.randrange(8)
    _flip(path, position, bit)
    refused: list[str] = []
    try:
        store = open_store(uri, World(attempt=10**6), board)
        store.load(state_of(0, World()), lambda held, _: refused.append(held.name))
    except TidemillError:
        pass
    finally:
        _flip(path, position, bit)
    return name in refused


def _flip(path: Path, position: int, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        (value,) = file.read(1)
        file.seek(position)
        file.write(bytes([value ^ bit]))


def fork(work: Callable[[], Any], to: int | None = None) -> int:
    """Do `work` in a copy of this process; send what it returns as JSON to the descriptor `to`."""
    child = os.fork()
    if child == 0:
        _be_child(work, to)
    return child


def _be_child(work: Callable[[], Any], to: int | None) -> NoReturn:
    code = 1
    try:
        signal.alarm(int(LONGEST_LIFE_S))
        result = work()
        if to is not None:
            os.write(to, json.dumps(result).encode())
        code = 0
    except BaseException:  # noqa: BLE001 - of a rank whose neighbour was killed, it is expected
        if to is not None:
            traceback.print_exc()
    finally:
        os._exit(code)


def ask(work: Callable[[], Any]) -> Any:
    """What `work` returns in a fork; raises if it dies."""
    reader, writer = os.pipe()
    child = fork(work, writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as answer:
        said = answer.read()
    os.waitpid(child, 0)
    return json.loads(said)


def begin(habitat: Habitat, attempt: int, board: Board) -> list[int]:
    """Fork a victim; give the processes of its ranks."""
    size = habitat.ranks

    def rank(number: int) -> None:
        if size > 1:
            meeting = dist.FileStore(f"{habitat.uri}-meeting-{attempt}", size)
            dist.init_process_group("gloo", store=meeting, rank=number, world_size=size)
        live(habitat.uri, World(rank=number, size=size, attempt=attempt), board)

    return [fork(lambda number=number: rank(number)) for number in range(size)]


@contextlib.contextmanager
def bucket_elsewhere() -> Iterator[str]:
    """A bucket served by another process: this one has to fork, and must not have threads."""
    endpoint_reader, endpoint_writer = os.pipe()
    end_reader, end_writer = os.pipe()

    def serve() -> None:
        signal.alarm(0)
        with serve_bucket("tide") as endpoint:
            os.write(endpoint_writer, endpoint.encode())
            os.read(end_reader, 1)

    server = fork(serve)
    try:
        endpoint = os.read(endpoint_reader, 100).decode()
        os.environ |= {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "secret"}
        yield f"s3://tide/run?endpoint_override={endpoint}&scheme=http"
    finally:
        os.write(end_writer, b".")
        os.waitpid(server, 0)


def kill_once(habitat: Habitat, attempt: int, board: Board, draw: random.Random) -> dict[str, Any]:
    """One victim's life and death, and what the next start finds."""
    board.clear()
    victims = begin(habitat, attempt, board)
    deadline = time.monotonic() + LONGEST_LIFE_S
    while board.at == "start":
        if time.monotonic() > deadline:
            raise RuntimeError(f"no victim in {habitat.uri} began to save")
        time.sleep(0.0005)
    time.sleep(draw.uniform(0, habitat.reach_s))
    doomed = draw.choice([victims, *([victim] for victim in victims)])
    for victim in doomed:
        os.kill(victim, signal.SIGKILL)
    phase = board.at
    time.sleep(0.02 if len(doomed) < len(victims) else 0)  # a survivor notices, or is noticed
    for victim in victims:
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
        os.waitpid(victim, 0)
    least = max(board.committed, habitat.newest)
    flips = random.Random(draw.random())
    verdict = ask(lambda: inspect(habitat.uri, attempt + 1, board, flips))
    habitat.newest = verdict["step"]
    return verdict | {"phase": phase, "lost": int(verdict["step"] < least)}


def main() -> None:
    """Kill, look, and print the figures."""
    kills = parse_rounds(__doc__ or "", rounds=2000, quick=60)
    logging.disable()  # a refused checkpoint is what is looked for
    torch.set_num_threads(1)
    draw = random.Random(2000)
    board = Board()
    figures = {"kills": 0, "lost": 0, "torn": 0, "leftover": 0, "undetected_flips": 0}
    phases: Counter[str] = Counter()
    with (
        tempfile.TemporaryDirectory(prefix="tidemill-kill-") as directory,
        bucket_elsewhere() as bucket,
    ):
        habitats = {
            "disk": Habitat(uri=f"{directory}/one", share=0.65, reach_s=0.10),
            "two ranks": Habitat(uri=f"{directory}/two", ranks=2, share=0.25, reach_s=0.15),
            "bucket": Habitat(uri=bucket, share=0.10, reach_s=0.60),
        }
        shares = [habitat.share for habitat in habitats.values()]
        for number in range(kills):
            (kind,) = draw.choices(list(habitats), shares)
            found = kill_once(habitats[kind], 2 * number + 1, board, draw)
            figures["kills"] += 1
            figures["undetected_flips"] += found["undetected"]
            for name in ("lost", "torn", "leftover"):
                figures[name] += found[name]
            phases[f"{kind}: {found['phase']}"] += 1
            if (number + 1) % 50 == 0:
                print(f"{number + 1}: {figures} {dict(phases)}", flush=True)
    tell("checkpoint_kill", figures, kills, {"phases": dict(phases)})


if __name__ == "__main__":
    main()
