"""Replay: a trace of machines that come and go, simulated, and driven for real on this computer.

A real replay is the run that anybody would start, `jobs/train.py` in a process of its own, on a
cluster of local machines that are added, killed and drained as the trace has it. Both replays end
in the same account, so they can be held against each other.
"""

from __future__ import annotations

import contextlib
import importlib.resources
import json
import math
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

from tidemill.errors import SpecError, TrainingError
from tidemill.launch.machines import Machines, local_machines
from tidemill.plan.costs import MEASURED, Costs, costs_from_plain, rules_of
from tidemill.plan.goodput import GoodputReport
from tidemill.plan.observed import measure, observe
from tidemill.plan.simulate import simulate
from tidemill.plan.trace import Kind, Stay, Trace, TraceEvent, draw_poisson
from tidemill.plan.trace_file import parse_trace
from tidemill.report.events import read_events
from tidemill.report.replays import tabulate
from tidemill.spec.progress import Event, EventKind
from tidemill.spec.replay import POISSON, ReplaySpec, Shrink
from tidemill.spec.run import RunSpec
from tidemill.storage import Location, exists, locate, make_directory, publish, read_bytes

BROUGHT = importlib.resources.files("tidemill.plan") / "traces"
RUN = "run"
JSON = "replay.json"
ENDLESS_STEPS = 1_000_000
WARM_STEPS = 5
"""Steps after which a run is taken to go as it will."""
START_S = 300.0
STOP_S = 60.0
TICK_S = 0.05
LOG_BYTES = 4000


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """What came of a real replay.

    Attributes:
        events: Of the run.
        stays: Of its machines, in seconds since the epoch.
        from_s: When the trace began, likewise.
        until_s: When it ended.
    """

    events: list[Event]
    stays: tuple[Stay, ...]
    from_s: float
    until_s: float


def overrides_of(spec: ReplaySpec) -> list[str]:
    """What `jobs/train.py` is asked for: what to train, and what every replay is like."""
    return [
        *shlex.split(spec.train),
        f"name={RUN}",
        f"storage={Path(spec.storage).absolute() / spec.name}",
        f"steps={ENDLESS_STEPS}",
        "resume=never",
        f"scale.workers={spec.nodes}",
        f"scale.min_workers={spec.min_workers}",
        "scale.max_failures=-1",
        "report.every_steps=1",
        "report.live=false",
    ]


def act(spec: ReplaySpec, run: RunSpec, door: Path, say: Callable[[str], None]) -> Location:
    """Replay a trace, and write down what came of it.

    Args:
        spec: The replay.
        run: What `overrides_of` comes to.
        door: `jobs/train.py`.
        say: Shows one line to the person.

    Returns:
        Where the page is; the same in JSON is beside it.

    Raises:
        SpecError: The trace cannot be read, or does not fit.
        TrainingError: The run failed.
    """
    place = locate(spec.storage) / spec.name
    trace, costs, rules = load_trace(spec), _known_costs(spec), replace(rules_of(run), steps=0)
    say(f"{trace.name}: {trace.node_s / trace.duration_s:.2f} machines for {trace.duration_s:g} s")
    measured, real, machines = costs, list[GoodputReport](), list[dict[str, Any]]()
    if spec.real:
        played = _play(spec, trace, door)
        since, until, least = played.from_s, played.until_s, rules.least
        events, stays = played.events, played.stays
        real.append(observe(events, stays, source="real", from_s=since, until_s=until, least=least))
        measured = measure(events, stays, costs)
        machines = [_since(stay, since) for stay in stays]
    simulated = simulate(trace, rules, costs if spec.costs_from else measured)
    reports = [replace(simulated, source="simulated"), *real]
    table = tabulate(reports)
    plain = {
        "trace": trace.name,
        "reports": [report.to_plain() for report in reports],
        "costs": measured.to_plain(),
        "machines": machines,
    }
    make_directory(place)
    publish(place / JSON, (json.dumps(plain, indent=2) + "\n").encode())
    page = [f"# {spec.name}: {trace.name}", "", *table, ""]
    publish(place / "replay.md", "\n".join(page).encode())
    say("\n".join(table))
    return place / "replay.md"


def _since(stay: Stay, from_s: float) -> dict[str, Any]:
    """A stay in seconds since the trace began, as JSON."""
    until_s = stay.until_s - from_s if stay.until_s < math.inf else None
    return asdict(stay) | {"from_s": stay.from_s - from_s, "until_s": until_s}


def load_trace(spec: ReplaySpec) -> Trace:
    """The trace as it will be replayed.

    Raises:
        SpecError: It cannot be read, or nothing of it is left.
    """
    if spec.trace == POISSON:
        trace = draw_poisson(
            nodes=spec.nodes,
            mean_s=spec.mean_s,
            replace_s=spec.replace_s,
            duration_s=spec.start_s + spec.duration_s,
            seed=spec.seed,
            least=spec.min_workers,
        )
    else:
        trace = parse_trace(_read_trace(spec.trace), spec.trace, column=spec.column)
    left_s = trace.duration_s - spec.start_s
    if left_s <= 0:
        raise SpecError(
            "start_s", f"{spec.start_s:g} is not before the trace ends", f"it is {left_s:g} s long"
        )
    length_s = min(spec.duration_s, left_s) if spec.duration_s else left_s
    trace = trace.clipped(spec.nodes) if spec.shrink is Shrink.clip else trace.thinned(spec.nodes)
    trace = trace.window(spec.start_s, length_s).scaled(spec.speed)
    return trace.with_notice(spec.notice_s) if spec.notice_s else trace


def _read_trace(name: str) -> str:
    brought = BROUGHT / f"{name}.csv"
    try:
        return (brought if brought.is_file() else Path(name)).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        names = sorted(entry.name.removesuffix(".csv") for entry in BROUGHT.iterdir())
        raise SpecError(
            "trace", f"cannot read {name}: {error}", f"name a file, {', '.join(names)} or {POISSON}"
        ) from error


def _known_costs(spec: ReplaySpec) -> Costs:
    costs = MEASURED
    if spec.costs_from:
        there = locate(spec.storage) / spec.costs_from / JSON
        if not exists(there):
            raise SpecError("costs_from", f"there is no {there}", "name a replay with real=true")
        costs = costs_from_plain(json.loads(read_bytes(there))["costs"])
    return replace(costs, step_s={spec.nodes: spec.step_s}) if spec.step_s else costs


# --- for real ------------------------------------------------------------------------------------


def _play(spec: ReplaySpec, trace: Trace, door: Path) -> Played:
    run = locate(spec.storage) / spec.name / RUN
    if exists(run):
        raise SpecError("name", f"{run} is there already", "use another name=, or remove it")
    if (up := trace.up_at(0)) < spec.min_workers:
        raise SpecError(
            "start_s",
            f"the trace has {up} machines at {spec.start_s:g} s, and a run needs "
            f"min_workers={spec.min_workers}",
            "begin at another moment of it",
        )
    early = [event for event in trace.events if event.at_s == 0]
    with local_machines() as machines:
        for event in early:
            _apply(machines, event)
        with _training(door, overrides_of(spec), machines.address) as process:
            _wait_until_warm(run, process)
            from_s = time.time()
            for event in trace.events[len(early) :]:
                _wait(from_s + event.at_s, machines, process)
                _apply(machines, event)
            until_s = from_s + trace.duration_s
            _wait(until_s, machines, process)
        stays = machines.stays
    return Played(events=list(read_events(run)), stays=stays, from_s=from_s, until_s=until_s)


def _apply(machines: Machines, event: TraceEvent) -> None:
    if event.kind is Kind.join:
        machines.add(event.node)
    elif event.node in machines.ids:
        if event.kind is Kind.kill:
            machines.kill(event.node)
        else:
            machines.drain(event.node, event.deadline_s)


def _wait(until_s: float, machines: Machines, process: Process) -> None:
    """Let the run go on until a moment, taking care of machines."""
    while True:
        machines.look()
        process.check()
        if (left_s := until_s - time.time()) <= 0:
            return
        time.sleep(min(TICK_S, left_s))


def _wait_until_warm(run: Location, process: Process) -> None:
    until_s = time.monotonic() + START_S
    while time.monotonic() < until_s:
        process.check()
        steps = sum(event.kind is EventKind.step for event in read_events(run))
        if steps >= WARM_STEPS:
            return
        time.sleep(1.0)
    raise TrainingError(f"the run has taken no steps in {START_S:g} s", process.said())


class Process:
    """A run in a process of its own.

    Args:
        popen: It.
        log: Where it writes.
    """

    def __init__(self, popen: subprocess.Popen[bytes], log: IO[bytes]) -> None:
        self._popen = popen
        self._log = log

    def check(self) -> None:
        """Raise `TrainingError` if it has ended."""
        if self._popen.poll() is not None:
            code = self._popen.returncode
            raise TrainingError(f"the run has ended with exit code {code}", self.said())

    def said(self) -> str:
        """The end of what it wrote."""
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - LOG_BYTES))
        return self._log.read().decode(errors="replace")

    def stop(self) -> None:
        """Ask it to stop, and end it if it does not."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.send_signal(signal.SIGINT)
            self._popen.wait(STOP_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._popen.pid, signal.SIGKILL)
        self._popen.wait()


@contextlib.contextmanager
def _training(door: Path, overrides: Sequence[str], address: str) -> Iterator[Process]:
    with tempfile.TemporaryFile() as log:
        popen = subprocess.Popen(  # noqa: S603 - what a person would start
            [sys.executable, str(door), *overrides],
            env=os.environ | {"RAY_ADDRESS": address},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        process = Process(popen, log)
        try:
            yield process
        finally:
            process.stop()
