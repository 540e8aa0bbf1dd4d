"""Run a function on several ranks: fresh processes with a gloo process group on loopback.

Ranks are forked from a server that has imported already what they need, so one starts in less than
a tenth of a second, and each is still a fresh process: whatever it breaks or leaks dies with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import datetime as dt
import faulthandler
import functools
import multiprocessing
import os
import pickle
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing import connection, forkserver
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

from tidemill.spec.progress import World

PRELOADED = (
    "torch",
    "torch.distributed",
    "torch._dynamo",
    "torch.distributed.fsdp",
    "deepspeed",
    "deepspeed.module_inject.auto_ep_layer",  # these two with an engine, not with DeepSpeed
    "deepspeed.runtime.superoffload.superoffload_stage3",
    "numpy",
    "pyarrow.fs",
    "safetensors.torch",
    "pytest",
    "hypothesis",
    "tests.kit.accessors",  # and with it all engines
    "tests.kit.checkpoints",
    "tests.kit.mixed",
    "tidemill.launch.preflight",  # of doors (tests/test_bad_input.py)
    "tests.kit.warm",  # after everything else
)
GRACE_S = 0.5
DIE_WITH_PARENT = 1
"""`PR_SET_PDEATHSIG` of prctl(2)."""


class RankFailed(Exception):  # noqa: N818 - a noun, like the errors it stands beside
    """A rank raised, or died without a word.

    Attributes:
        rank: The rank that failed first.
        details: Its traceback; empty if it died without raising.
        exit_code: Its exit code, negative for a signal, None if it raised.
    """

    def __init__(self, rank: int, size: int, details: str, exit_code: int | None = None) -> None:
        cause = details.rstrip() or f"it died without a traceback, exit code {exit_code}"
        super().__init__(f"rank {rank} of {size} failed:\n{cause}")
        self.rank = rank
        self.details = details
        self.exit_code = exit_code


@dataclass(frozen=True, slots=True)
class _Birth:
    """What a rank is told before it calls the function."""

    world: World
    variables: dict[str, str]
    scratch: str
    timeout_s: float


@dataclass(frozen=True, slots=True)
class _Word:
    """The last word of a rank: its result, or its traceback and when it raised."""

    at_s: float
    result: Any = None
    details: str = ""


@dataclass(slots=True)
class _Rank:
    """A started rank; `word` stays None if it died silently."""

    process: ForkServerProcess
    inbox: connection.Connection
    word: _Word | None = None
    heard: bool = False

    def listen(self) -> None:
        """Take the rank's last word, or note that there will be none."""
        self.heard = True
        with contextlib.suppress(EOFError, ConnectionError):
            self.word = pickle.loads(self.inbox.recv_bytes())  # noqa: S301 - from our own child

    @property
    def failed(self) -> bool:
        """Whether it raised or died."""
        return self.heard and (self.word is None or bool(self.word.details))


def run_world(
    fn: Callable[..., Any],
    size: int,
    *args: Any,
    timeout_s: float = 120.0,
    env: Mapping[str, str] | None = None,
) -> list[Any]:
    """Call `fn(world, *args)` on `size` ranks and wait for all of them.

    Each rank has the default gloo process group, one torch thread, DeepSpeed on the CPU, and this
    process's environment with what launchers add to it (RANK, WORLD_SIZE, MASTER_ADDR, ...).

    Args:
        fn: A module-level function; its first argument is the rank's `World`.
        size: Number of ranks, at least 1.
        args: Passed on; must be picklable.
        timeout_s: Seconds until the ranks are killed.
        env: Environment variables to add in every rank.

    Returns:
        What each rank returned, by rank; tensors arrive as copies.

    Raises:
        RankFailed: A rank raised or died; the one that did so first is named, the rest are killed.
        TimeoutError: The time was up; says where every rank was.
    """
    context = _server()
    scratch = Path(tempfile.mkdtemp(prefix="world-"))
    ranks: list[_Rank] = []
    try:
        for rank in range(size):
            birth = _Birth(
                World(rank=rank, size=size, local_rank=rank),
                dict(os.environ) | _variables(rank, size) | dict(env or {}),
                str(scratch),
                timeout_s,
            )
            inbox, outbox = context.Pipe()
            process = context.Process(
                target=_live,
                args=(birth, outbox, fn, args),
                name=f"rank-{rank}",
                daemon=True,
            )
            process.start()
            outbox.close()
            ranks.append(_Rank(process, inbox))
        _wait(ranks, scratch, timeout_s)
        return [rank.word.result for rank in ranks if rank.word is not None]
    finally:
        for rank in ranks:
            rank.process.kill()
            rank.process.join()
            rank.process.close()
            rank.inbox.close()
        shutil.rmtree(scratch, ignore_errors=True)


def _wait(ranks: list[_Rank], scratch: Path, timeout_s: float) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not all(rank.heard for rank in ranks):
        left_s = deadline_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError(_where(ranks, scratch, timeout_s))
        _listen(ranks, left_s)
        if any(rank.failed for rank in ranks):
            # A peer may complain of a dead rank before the death itself is noticed here.
            quiet_s = time.monotonic() + GRACE_S
            while not all(rank.heard for rank in ranks) and time.monotonic() < quiet_s:
                _listen(ranks, max(quiet_s - time.monotonic(), 0.0))
            raise _first_failure(ranks)
    for rank in ranks:
        with contextlib.suppress(OSError):  # it died after its last word; its exit code tells
            rank.inbox.send_bytes(b"")
    for number, rank in enumerate(ranks):
        rank.process.join(max(deadline_s - time.monotonic(), GRACE_S))
        if rank.process.exitcode != 0:
            raise RankFailed(number, len(ranks), "", rank.process.exitcode)


def _listen(ranks: list[_Rank], timeout_s: float) -> None:
    waiting = {rank.inbox: rank for rank in ranks if not rank.heard}
    for inbox in connection.wait(list(waiting), timeout_s):
        waiting[inbox].listen()  # type: ignore[index] - only connections went in


def _first_failure(ranks: list[_Rank]) -> RankFailed:
    for number, rank in enumerate(ranks):
        if rank.heard and rank.word is None:
            rank.process.join(GRACE_S)
            return RankFailed(number, len(ranks), "", rank.process.exitcode)
    at_s, number = min(
        (rank.word.at_s, number)
        for number, rank in enumerate(ranks)
        if rank.word is not None and rank.word.details
    )
    word = ranks[number].word
    return RankFailed(number, len(ranks), word.details if word else f"raised at {at_s}")


def _where(ranks: list[_Rank], scratch: Path, timeout_s: float) -> str:
    late = [number for number, rank in enumerate(ranks) if not rank.heard]
    for number in late:
        pid = ranks[number].process.pid
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGUSR1)
    time.sleep(GRACE_S)
    lines = [f"ranks {late} of {len(ranks)} were not done after {timeout_s:g} s"]
    for number in late:
        stack = scratch / f"stack-{number}"
        lines.append(f"rank {number} was at:\n{stack.read_text() if stack.exists() else '?'}")
    return "\n".join(lines)


@functools.cache
def _server() -> ForkServerContext:
    """The context of this process's fork server, started with one thread per math library."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    path = os.pathsep.join(sys.path)  # the server drops what it cannot find
    with _environment({"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": path}):
        forkserver.ensure_running()
    return context


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _variables(rank: int, size: int) -> dict[str, str]:
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": str(rank),
        "LOCAL_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
    }


@functools.cache
def _free_port() -> int:
    """A port for libraries that insist on one; ranks meet through a file and never open it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _live(
    birth: _Birth, outbox: connection.Connection, fn: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)
    os.environ.clear()  # it is the server's, as it was when the server started
    os.environ.update(birth.variables)
    world, scratch = birth.world, Path(birth.scratch)
    stack = (scratch / f"stack-{world.rank}").open("w")
    faulthandler.register(signal.SIGUSR1, file=stack, all_threads=True)

    import torch
    import torch.distributed as dist
    from torch._C._distributed_c10d import FileStore

    try:
        torch.set_num_threads(1)
        dist.init_process_group(
            "gloo",
            store=FileStore(str(scratch / "store"), world.size),
            rank=world.rank,
            world_size=world.size,
            timeout=dt.timedelta(seconds=birth.timeout_s),
        )
        result = fn(world, *args)
        outbox.send_bytes(pickle.dumps(_Word(time.monotonic(), result)))
    except BaseException:  # noqa: BLE001 - the parent raises it, whatever it is
        outbox.send_bytes(pickle.dumps(_Word(time.monotonic(), None, traceback.format_exc())))
        os._exit(1)
    with contextlib.suppress(EOFError, ConnectionError):
        outbox.recv_bytes()  # a rank that left early would break what others still set up
    if dist.is_initialized():
        dist.destroy_process_group()
