"""A driver that died is replaced, unless that is no use; pauses grow while nothing comes of it."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoint.commits import commit
from tests.kit.doors import ROOT
from tidemill.compose import compose
from tidemill.errors import SpecError, StorageError
from tidemill.launch import jobs
from tidemill.launch import supervisor as module
from tidemill.launch.drivers import Ending
from tidemill.launch.supervisor import Progress, Signals, Supervisor
from tidemill.report.events import EventLog
from tidemill.spec.progress import EventKind
from tidemill.spec.run import RunSpec
from tidemill.spec.supervise import SuperviseSpec
from tidemill.storage import Location, locate

KILLED = Ending(-9, "was ended by SIGKILL")
CRASHED = Ending(1, "failed with exit code 1")
LOST = Ending(None, "is out of reach")
FINISHED = Ending(0, "finished")


class Script:
    """Drivers that end as written; each may come so far first, and may see a signal."""

    def __init__(
        self, *endings: tuple[Ending, int], during: Callable[[], None] | None = None
    ) -> None:
        self.endings = list(endings)
        self.during = during
        self.reached = 0
        self.started = 0
        self.sent: list[int] = []
        self.others: list[str | None] = []

    def progress(self) -> int:
        return self.reached

    def busy(self) -> str | None:
        return self.others.pop(0) if self.others else None

    def start(self) -> Script:
        self.started += 1
        self.looks = 0
        return self

    @property
    def name(self) -> str:
        return f"process {self.started}"

    def ended(self) -> Ending | None:
        self.looks += 1
        if self.looks == 1:
            if self.during:
                self.during()
            return None
        ending, self.reached = self.endings[self.started - 1]
        return ending

    def send(self, number: int) -> None:
        self.sent.append(number)


class Pauses(Signals):
    """Signals whose pauses take no time."""

    def __init__(self) -> None:
        super().__init__()
        self.pauses_s: list[float] = []

    def pause(self, seconds: float) -> None:
        self.pauses_s.append(seconds)


def supervised(
    script: Script, chance: float = 1.0, **keys: float
) -> tuple[int, list[str], list[float]]:
    said: list[str] = []
    with Pauses() as signals:
        spec = SuperviseSpec(**keys)  # pyright: ignore[reportArgumentType]
        supervisor = Supervisor(
            script, script.progress, spec, said.append, signals=signals, chance=lambda: chance
        )
        return supervisor.run(), said, signals.pauses_s


# --- whether there is another driver ---------------------------------------------------------


@pytest.mark.parametrize("death", [KILLED, CRASHED, LOST, Ending(-6, "was ended by SIGABRT")])
def test_a_driver_that_died_is_replaced(death: Ending) -> None:
    script = Script((death, 5), (FINISHED, 9))
    code, said, pauses_s = supervised(script)
    assert (code, script.started, pauses_s) == (0, 2, [1.0])
    assert said == [
        "driver 1 is process 1",
        f"driver 1 {death.told} at step 5; the next one starts in 1.0 s",
        "driver 2 is process 2",
        "driver 2 finished at step 9",
    ]


@pytest.mark.parametrize(
    ("code", "shown"), [(0, 0), (3, 3), (130, 130), (143, 143), (-2, 130), (-15, 143), (2, 2)]
)
def test_an_end_that_is_final_is_passed_on(code: int, shown: int) -> None:
    script = Script((Ending(code, "ended"), 0))
    assert supervised(script)[0] == shown
    assert script.started == 1


def test_what_is_refused_after_progress_may_pass() -> None:
    """A bucket out of reach is refused like a wrong key, but not what began well."""
    script = Script((KILLED, 5), (Ending(2, "failed with exit code 2"), 5), (FINISHED, 9))
    assert supervised(script)[0] == 0
    script = Script((KILLED, 0), (Ending(2, "failed with exit code 2"), 0))
    assert supervised(script)[0] == 2


# --- how often, and how soon -----------------------------------------------------------------


def test_without_progress_it_gives_up() -> None:
    script = Script((KILLED, 7), *[(KILLED, 7)] * 9)
    script.reached = 7
    code, said, pauses_s = supervised(script, tries=4, first_pause_s=2.0)
    assert (code, script.started) == (137, 4)
    assert pauses_s == [4.0, 8.0, 16.0]
    assert said[-1] == (
        "driver 4 was ended by SIGKILL at step 7, the last of 4 in a row that came no further"
    )


def test_nobody_knows_is_a_failure() -> None:
    assert supervised(Script((LOST, 0)), tries=1)[0] == 1


def test_progress_begins_the_count_anew() -> None:
    endings = [(KILLED, step) for step in (1, 1, 1, 2, 2, 1, 3)]
    script = Script(*endings, (FINISHED, 9))
    code, _, pauses_s = supervised(script, tries=3)
    assert (code, script.started) == (0, 8)
    assert pauses_s == [1.0, 2.0, 4.0, 1.0, 2.0, 4.0, 1.0]


def test_a_pause_is_no_longer_than_the_longest() -> None:
    script = Script(*[(KILLED, 0)] * 20)
    *_, pauses_s = supervised(script, tries=20, first_pause_s=1.0, most_pause_s=10.0)
    assert pauses_s == [2.0, 4.0, 8.0] + [10.0] * 16


@pytest.mark.parametrize(("chance", "pause_s"), [(0.0, 1.0), (0.5, 1.5), (1.0, 2.0)])
def test_a_pause_is_drawn(chance: float, pause_s: float) -> None:
    *_, pauses_s = supervised(Script((KILLED, 0), (FINISHED, 0)), chance=chance)
    assert pauses_s == [pause_s]


# --- signals ---------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("ending", [Ending(143, "stopped"), FINISHED, KILLED])
def test_a_signal_is_passed_on_and_the_end_is_awaited(
    number: signal.Signals, ending: Ending
) -> None:
    script = Script((ending, 3), during=lambda: signal.raise_signal(number))
    code, _, _ = supervised(script)
    assert script.sent == [number]
    assert script.started == 1
    assert code == {143: 143, 0: 0, -9: 137}[ending.code or 0]


def test_a_wish_to_save_stops_nothing() -> None:
    script = Script((KILLED, 3), (FINISHED, 9), during=lambda: signal.raise_signal(signal.SIGUSR1))
    assert supervised(script)[0] == 0
    assert script.sent == [signal.SIGUSR1] * 2


def test_a_signal_cuts_a_pause_short() -> None:
    script, said = Script(*[(KILLED, 0)] * 3), list[str]()
    spec = SuperviseSpec(first_pause_s=60.0, most_pause_s=60.0)
    before_s = time.monotonic()
    with Signals() as signals:
        soon = threading.Timer(0.2, lambda: signal.pthread_kill(main, signal.SIGTERM))
        main = threading.main_thread().ident or 0
        soon.start()
        code = Supervisor(script, script.progress, spec, said.append, signals=signals).run()
        soon.join()
    assert (code, script.started) == (143, 1)
    assert said[-1] == "stopped for SIGTERM between two drivers"
    assert time.monotonic() - before_s < 30


def test_signals_are_given_back() -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = [signal.getsignal(number) for number in numbers]
    with Signals() as signals:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        assert signals.stopping == signal.SIGTERM
        assert signals.take() == [signal.SIGTERM, signal.SIGINT]
        assert signals.take() == []
    assert [signal.getsignal(number) for number in numbers] == before


# --- other drivers ---------------------------------------------------------------------------


def test_a_driver_that_is_left_over_is_waited_for() -> None:
    script = Script((FINISHED, 9))
    script.others = ["process 7 on mill"] * 3
    code, said, pauses_s = supervised(script)
    assert (code, pauses_s) == (0, [1.0] * 3)
    assert said[0] == "process 7 on mill drives this run; waiting for it to stop"


def test_a_driver_that_stays_is_left_alone() -> None:
    script = Script((FINISHED, 9))
    script.others = ["process 7 on mill"] * 1000
    with pytest.raises(SpecError, match="still being trained, by process 7 on mill") as caught:
        supervised(script)
    assert caught.value.key == "name"
    assert script.started == 0


# --- where -----------------------------------------------------------------------------------


@pytest.fixture
def cast(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """Who was chosen, with what; nobody is started."""
    chosen: list[tuple[str, Any]] = []
    monkeypatch.setattr(module, "LocalDrivers", lambda *told: chosen.append(("here", told)))
    monkeypatch.setattr(jobs, "JobDrivers", lambda *told: chosen.append(("there", told)))
    monkeypatch.setattr(jobs, "connect", lambda address: f"client of {address}")
    monkeypatch.setattr(Supervisor, "run", lambda _: 7)
    return chosen


def supervise_parity(spec: SuperviseSpec, storage: str) -> int:
    typed = ["experiment=parity", f"storage={storage}"]
    run = compose(typed, config_name="config", schema=RunSpec)
    return module.supervise(spec, run, ROOT / "jobs" / "train.py", typed, pytest.fail)


def test_drivers_run_here_unless_said_otherwise(
    cast: list[tuple[str, Any]], tmp_path: Path
) -> None:
    assert supervise_parity(SuperviseSpec(), str(tmp_path)) == 7
    ((where, (command, place)),) = cast
    assert where == "here"
    door = str(ROOT / "jobs" / "train.py")
    assert command == [sys.executable, door, "experiment=parity", f"storage={tmp_path}"]
    assert place == locate(str(tmp_path / "parity"))


def test_drivers_become_jobs_of_the_cluster_that_is_named(
    cast: list[tuple[str, Any]], tmp_path: Path
) -> None:
    spec = SuperviseSpec(submit_to="http://head:8265", python="/opt/python")
    assert supervise_parity(spec, str(tmp_path)) == 7
    ((where, (connect, command, environment, place, _)),) = cast
    assert where == "there"
    assert connect() == "client of http://head:8265"
    assert command[:3] == ["/opt/python", "jobs/train.py", "experiment=parity"]
    assert environment["working_dir"] == str(ROOT)
    assert place == locate(str(tmp_path / "parity"))


def test_a_job_needs_a_place_that_it_can_find(cast: list[tuple[str, Any]]) -> None:
    spec = SuperviseSpec(submit_to="http://head:8265")
    with pytest.raises(SpecError, match="'runs' is relative") as caught:
        supervise_parity(spec, "runs")
    assert caught.value.key == "storage"
    assert cast == []


# --- how far ---------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path) -> Location:
    return locate(str(tmp_path / "mill"))


def leave_log(run: Location, attempt: int, steps: Iterable[int]) -> None:
    log = EventLog(run, attempt)
    for step in steps:
        log.record(EventKind.used if step % 2 else EventKind.step, step=step)
    log.close()


def test_a_run_that_is_not_there_has_taken_no_step(run: Location) -> None:
    assert Progress(run)() == 0


def test_steps_in_the_log_are_progress(run: Location) -> None:
    progress = Progress(run)
    leave_log(run, 1, range(4))
    assert progress() == 4
    leave_log(run, 2, range(2, 3))  # it has gone on from an older state
    assert progress() == 4
    leave_log(run, 3, range(3, 8))
    leave_log(run, 4, range(7, 8))
    assert progress() == 8


def test_a_checkpoint_is_progress(run: Location) -> None:
    commit(Path(run.path), 30)
    commit(Path(run.path), 20)
    assert Progress(run)() == 30


def test_old_logs_are_not_read_again(run: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def note(place: Location) -> bytes:
        read.append(place.name)
        return Path(place.path).read_bytes()

    for attempt in (1, 2):
        leave_log(run, attempt, range(attempt))
    monkeypatch.setattr(module, "read_bytes", note)
    progress = Progress(run)
    progress()
    leave_log(run, 3, range(3))
    progress()
    assert read == ["attempt-0002.jsonl", "attempt-0002.jsonl", "attempt-0003.jsonl"]


def test_storage_that_falters_is_no_progress(
    run: Location, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    progress = Progress(run)
    leave_log(run, 1, range(4))
    progress()

    def refuse(place: Location) -> list[Location]:
        raise StorageError(f"cannot list {place}: no connection")

    monkeypatch.setattr(module, "committed", refuse)
    assert progress() == 4
    assert "cannot see how far the run is: cannot list" in caplog.text
