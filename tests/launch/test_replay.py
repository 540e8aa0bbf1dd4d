"""A trace is replayed as it is, and what came of it is written down; without Ray."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.plan.test_observed import EPOCH_S, KILLED, MACHINES
from tidemill.compose import compose
from tidemill.errors import SpecError, TrainingError
from tidemill.launch import replay
from tidemill.launch.replay import Played, act, load_trace, overrides_of
from tidemill.plan.costs import MEASURED
from tidemill.plan.trace import Stay, Trace
from tidemill.spec.replay import ReplaySpec, Shrink
from tidemill.spec.run import RunSpec

# Stands in for jobs/train.py: takes steps until it is asked to stop.
DOOR = """
import json, os, signal, sys, time
asked = []
signal.signal(signal.SIGINT, lambda *_: asked.append(1))
said = dict(each.split("=", 1) for each in sys.argv[1:])
if "die" in said:
    print("no luck"); sys.exit(3)
events = os.path.join(said["storage"], said["name"], "events")
os.makedirs(events)
with open(os.path.join(events, "attempt-0001.jsonl"), "w") as log:
    def tell(kind, **fields):
        event = {"kind": kind, "at_s": time.time(), "attempt": 1, "fields": fields}
        log.write(json.dumps(event) + "\\n"); log.flush()
    tell("attempt_started", world=2, address=os.environ["RAY_ADDRESS"])
    step = 0
    while not asked:
        time.sleep(0.01)
        tell("step", step=step, seconds=0.01)
        step += 1
    tell("stopped", step=step)
"""


@pytest.fixture
def spec(tmp_path: Path) -> ReplaySpec:
    """A quarter of an hour of the trace that is brought along."""
    return ReplaySpec(start_s=3000, duration_s=900, nodes=4, storage=str(tmp_path), name="tide")


def changed(spec: ReplaySpec, **changes: object) -> ReplaySpec:
    return ReplaySpec(**{**vars(spec), **changes})


def run_of(spec: ReplaySpec) -> RunSpec:
    return compose(overrides_of(spec), config_name="config", schema=RunSpec)


# --- the trace -------------------------------------------------------------------------------


def test_a_trace_is_brought_along() -> None:
    whole = load_trace(ReplaySpec(nodes=32))
    assert whole.duration_s == 40920
    assert len(whole.stays) == 177
    assert whole.up_at(5000) == 32


def test_a_trace_is_cut_clipped_and_scaled(spec: ReplaySpec) -> None:
    part = load_trace(changed(spec, duration_s=600, speed=10, notice_s=2))
    assert part.duration_s == 60
    assert part.up_at(0) == 4
    kinds = {(event.kind.value, event.deadline_s) for event in part.events if event.at_s}
    assert kinds == {("drain", 2)}
    assert [part.up_at(second) for second in (0, 41, 43, 55)] == [4, 4, 3, 2]
    clipped = load_trace(changed(spec, duration_s=600, shrink=Shrink.clip))
    assert [clipped.up_at(second) for second in (0, 200, 400, 590)] == [4, 4, 4, 4]


def test_a_trace_is_drawn(spec: ReplaySpec) -> None:
    def draw(**changes: object) -> Trace:
        return load_trace(changed(spec, trace="poisson", mean_s=30, replace_s=7, **changes))

    assert draw() == draw()
    assert draw(seed=2) != draw()
    later = draw(start_s=3450, duration_s=450)
    assert [stay.until_s for stay in later.stays] == pytest.approx(
        [stay.until_s for stay in draw().window(450, 450).stays]
    )
    assert min(draw(min_workers=3).up_at(second) for second in range(900)) == 3


def test_a_trace_is_read_from_a_file(spec: ReplaySpec, tmp_path: Path) -> None:
    file = tmp_path / "mine.csv"
    file.write_text("0,add,a\n9000,remove,a\n")
    trace = load_trace(changed(spec, trace=str(file), start_s=0, duration_s=0))
    assert trace.stays == (Stay(node="a", from_s=0, until_s=9),)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"trace": "nowhere.csv"}, "trace: cannot read nowhere.csv: .* name a file, p3 or poisson"),
        ({"start_s": 1e6}, "start_s: 1e+06 is not before the trace ends"),
        ({"costs_from": "nobody"}, "costs_from: there is no .*nobody/replay.json"),
    ],
)
def test_what_is_not_there_is_refused(
    changes: dict[str, object], told: str, spec: ReplaySpec, tmp_path: Path
) -> None:
    wrong = changed(spec, **changes)
    with pytest.raises(SpecError, match=told.replace("+", r"\+")):
        act(wrong, run_of(spec), tmp_path, lambda _: None)


# --- what is trained -------------------------------------------------------------------------


def test_what_is_trained_is_tiny_unless_told_otherwise(spec: ReplaySpec) -> None:
    run = run_of(spec)
    assert (run.scale.least, run.scale.workers, run.scale.max_failures) == (1, 4, -1)
    assert (run.report.every_steps, run.strategy.name) == (1, "ddp")
    assert all(run.batch.global_size % world == 0 for world in range(1, 9))
    other = run_of(changed(spec, train="strategy=fsdp2 'batch.global_size=48'", min_workers=2))
    assert (other.strategy.name, other.batch.global_size, other.scale.least) == ("fsdp2", 48, 2)
    assert other.steps == run.steps > 100_000


# --- simulated -------------------------------------------------------------------------------


def test_a_simulation_is_shown_and_written_down(spec: ReplaySpec, tmp_path: Path) -> None:
    said: list[str] = []
    page = act(spec, run_of(spec), tmp_path, said.append)
    text = Path(page.path).read_text()
    assert said[0] == "p3: 3.07 machines for 900 s"
    assert said[1] in text
    plain = json.loads((tmp_path / "tide" / "replay.json").read_text())
    (report,) = plain["reports"]
    assert report["source"] == "simulated"
    assert 0.9 < report["goodput"] <= 1
    assert report["goodput"] + sum(report["lost"].values()) == pytest.approx(1)
    assert plain["costs"]["ahead_s"] == MEASURED.ahead_s


def test_costs_may_be_those_of_another_replay(spec: ReplaySpec, tmp_path: Path) -> None:
    run = run_of(spec)
    act(spec, run, tmp_path, lambda _: None)
    file = tmp_path / "tide" / "replay.json"
    plain = json.loads(file.read_text())
    file.write_text(json.dumps({**plain, "costs": {**plain["costs"], "kill": {"detect_s": 60.0}}}))
    slow = changed(spec, costs_from="tide", name="slow", step_s=0.5)
    act(slow, run, tmp_path, lambda _: None)
    found = json.loads((tmp_path / "slow" / "replay.json").read_text())
    assert found["costs"]["step_s"] == {"4": 0.5}
    lost = [each["reports"][0]["lost"]["detect"] for each in (plain, found)]
    assert lost[1] > 30 * lost[0] > 0


# --- for real --------------------------------------------------------------------------------


@dataclass
class Pretended:
    """Machines that are only said to be."""

    address: str = "local:1"
    ids: dict[str, str] = field(default_factory=dict[str, str])
    done: list[tuple[str, str, float]] = field(default_factory=list[tuple[str, str, float]])
    looks: int = 0
    stays: tuple[Stay, ...] = (Stay(node="a", from_s=0), Stay(node="b", from_s=0))

    def _note(self, what: str, name: str) -> None:
        self.done.append((what, name, time.time()))

    def add(self, name: str) -> None:
        self.ids[name] = name
        self._note("add", name)

    def kill(self, name: str) -> None:
        del self.ids[name]
        self._note("kill", name)

    def drain(self, name: str, deadline_s: float) -> None:
        self._note(f"drain {deadline_s:g}", name)

    def look(self) -> None:
        self.looks += 1


@pytest.fixture
def machines(monkeypatch: pytest.MonkeyPatch) -> Pretended:
    """What `local_machines` gives."""
    pretended = Pretended()

    @contextlib.contextmanager
    def give() -> Iterator[Pretended]:
        yield pretended

    monkeypatch.setattr(replay, "local_machines", give)
    return pretended


@pytest.fixture
def door(tmp_path: Path) -> Path:
    """What stands in for the door of a run."""
    path = tmp_path / "door.py"
    path.write_text(DOOR)
    return path


def test_a_run_is_driven_through_the_trace(
    spec: ReplaySpec, machines: Pretended, door: Path, tmp_path: Path
) -> None:
    file = tmp_path / "mine.csv"
    file.write_text("0,add,a\n0,add,b\n300,add,c\n500,remove,a\n700,notice,b\n900,remove,b\n")
    spec = changed(spec, real=True, trace=str(file), start_s=0, duration_s=0)
    act(spec, run_of(spec), door, lambda _: None)
    assert [(what, name) for what, name, _ in machines.done] == [
        ("add", "a"),
        ("add", "b"),
        ("add", "c"),
        ("kill", "a"),
        ("drain 0.2", "b"),
    ]
    (_, (_, _, began), (_, _, added), (_, _, killed), (_, _, drained)) = machines.done
    assert added - began > 0.3  # the trace begins once the run goes
    assert killed - added == pytest.approx(0.2, abs=0.15)
    assert drained - killed == pytest.approx(0.2, abs=0.15)
    assert machines.looks > 5
    simulated, real = json.loads((tmp_path / "tide" / "replay.json").read_text())["reports"]
    assert (simulated["source"], real["source"]) == ("simulated", "real")
    assert real["duration_s"] == pytest.approx(0.9)
    assert real["steps"] > 5
    (log,) = (tmp_path / "tide" / "run" / "events").iterdir()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert lines[0]["fields"]["address"] == "local:1"
    assert lines[-1]["kind"] == "stopped"


def test_what_was_measured_is_what_is_simulated(
    spec: ReplaySpec, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    played = Played(events=KILLED, stays=tuple(MACHINES), from_s=EPOCH_S, until_s=EPOCH_S + 40)
    monkeypatch.setattr(replay, "_play", lambda *_: played)
    said: list[str] = []
    act(changed(spec, real=True), run_of(spec), tmp_path, said.append)
    assert "points apart" in said[-1]
    plain = json.loads((tmp_path / "tide" / "replay.json").read_text())
    assert plain["costs"]["kill"]["detect_s"] == 1.5
    assert plain["reports"][1]["steps"] == 10
    assert plain["machines"][2:] == [
        {"node": "c", "from_s": -5, "until_s": 9.5, "notice_s": 0},
        {"node": "d", "from_s": 12, "until_s": None, "notice_s": 0},
    ]


def refused(error: type[Exception], act_it: Callable[[], object]) -> Exception:
    with pytest.raises(error) as caught:
        act_it()
    return caught.value


def test_a_run_that_ends_too_early_is_told_with_what_it_said(
    spec: ReplaySpec, machines: Pretended, door: Path
) -> None:
    door.write_text(DOOR.replace('"die" in said', "True"))
    real = changed(spec, real=True)
    error = refused(TrainingError, lambda: act(real, run_of(spec), door, lambda _: None))
    assert str(error) == "the run has ended with exit code 3"
    assert "no luck" in getattr(error, "details", "")


def test_a_replay_neither_resumes_nor_begins_without_machines(
    spec: ReplaySpec, machines: Pretended, door: Path, tmp_path: Path
) -> None:
    (tmp_path / "tide" / "run").mkdir(parents=True)
    real = changed(spec, real=True)
    error = refused(SpecError, lambda: act(real, run_of(spec), door, lambda _: None))
    assert "run is there already; use another name=" in str(error)
    file = tmp_path / "late.csv"
    file.write_text("0,0\n5000,4\n9000,4\n")
    late = changed(real, name="late", trace=str(file), start_s=0, duration_s=0)
    error = refused(SpecError, lambda: act(late, run_of(spec), door, lambda _: None))
    assert str(error).startswith("start_s: the trace has 0 machines at 0 s, and a run needs min_")
    assert machines.done == []
