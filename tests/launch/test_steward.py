"""Steward: when a group forms anew, with whom, and what the run is told of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from ray.train import WorkerGroupError

from tests.kit.training import tiny_run
from tidemill.errors import TidemillError
from tidemill.launch import pool as pool_module
from tidemill.launch import steward as module
from tidemill.launch.failure import CondemnedError
from tidemill.launch.hands import Hands
from tidemill.launch.health import Vitals
from tidemill.launch.judge import Fault
from tidemill.launch.nodes import Node
from tidemill.launch.pool import Pool, Process
from tidemill.launch.steward import LOOK_S, SETTLE_S, Steward
from tidemill.spec.progress import EventKind
from tidemill.train.pulse import Phase


class Stage:
    """A run of up to three workers on made-up nodes, and a clock that the test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **scale: Any) -> None:
        self.now_s = 1000.0
        monkeypatch.setattr(module.time, "monotonic", lambda: self.now_s)
        spec = tiny_run(steps=100_000)
        scale = {"workers": 3, "min_workers": 1} | scale
        self.spec = replace(spec, scale=replace(spec.scale, **scale))
        self.nodes: dict[str, Node] = {}
        self.asked: dict[Any, bool] = {}
        self.saving: list[Any] = []
        self.told: list[tuple[EventKind, dict[str, Any]]] = []
        self.noted: list[int] = []
        self.spawned: list[str] = []
        self.pool = Pool(self._spawn, recycle_after=100)
        self.up: set[Any] = set()
        monkeypatch.setattr(pool_module, "ray", self)
        self.steward = Steward(
            self.spec,
            self.pool,
            Hands(
                look=lambda _: dict(self.nodes),
                ask_to_leave=lambda process, stays: self.asked.update({process.actor: stays}),
                ask_to_save=lambda process: self.saving.append(process.actor),
                tell=lambda _, kind, fields: self.told.append((kind, fields)),
                note_failure=lambda attempt, _: self.noted.append(attempt),
                stock=lambda _process, _node: None,
                most=lambda room, *_: min(room, self.spec.scale.workers + self.spec.scale.spares),
                hold=lambda _: None,
            ),
        )

    def _spawn(self, node: str) -> tuple[Any, Any]:
        self.spawned.append(node)
        return node, node

    def wait(self, references: list[Any], **_: Any) -> tuple[list[Any], list[Any]]:
        """In the place of `ray.wait`."""
        return [one for one in references if one in self.up], []

    def get(self, _: Any) -> str:
        """In the place of `ray.get`."""
        return "metadata"

    def kill(self, _: Any) -> None:
        """In the place of `ray.kill`."""

    def bring(self, *names: str, leaves_at_s: float | None = None) -> None:
        """Nodes that answer, each with room for one worker."""
        for name in names:
            self.nodes[name] = Node(
                id=name, address=name, port=1, slots=1, capacity=1, leaves_at_s=leaves_at_s
            )

    def park(self, *names: str) -> None:
        """Processes of an old group, ready for the next one."""
        self.pool.park([Process(name, name, None, "", joins=1) for name in names])

    def start(self) -> None:
        """A group of what the steward chooses trains."""
        chosen = self.steward.form()
        assert chosen
        self.steward.joining([Process(node, node, None, "", joins=1) for node in chosen])
        self.steward.started()
        for step in range(10):
            self.poll(step=step, after_s=1.0)

    def poll(
        self, *, step: int = 10, phase: Phase = Phase.accumulate, after_s: float = LOOK_S
    ) -> Any:
        """What the steward says to a poll that every rank answers."""
        self.now_s += after_s
        told = Vitals(attempt=1, step=step, phase=phase, age_s=0.0)
        vitals = dict.fromkeys(range(len(self.steward.group)), told)
        self.steward.vigil.follow(vitals)  # as the group does, for each poll
        return self.steward.watch(vitals)


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    """Nobody there yet."""
    return Stage(monkeypatch)


def test_a_group_waits_until_there_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch, min_workers=2)
    stage.bring("a")
    assert stage.steward.form() is None
    stage.bring("b")
    assert stage.steward.form() == {"a": 1, "b": 1}


def test_a_machine_that_joins_is_started_ahead_and_taken_in_once_it_is_warm(stage: Stage) -> None:
    stage.bring("a", "b")
    stage.start()
    stage.bring("c")
    assert stage.poll() is None
    assert (stage.spawned, stage.asked) == (["c"], {})
    stage.up.add("c")
    assert stage.poll() is None
    assert stage.asked == {"a": True, "b": True}
    assert stage.poll() is None, "its last step is still under way"
    assert stage.poll(phase=Phase.parked) == {"a": 1, "b": 1, "c": 1}
    assert stage.steward.timeline.fields()["cause"] == "grow"


def test_a_spare_takes_the_place_of_a_lost_worker_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch, spares=1)
    stage.bring("a", "b", "c", "d")
    stage.start()
    assert stage.spawned == ["d"]
    stage.up.add("d")
    stage.poll(after_s=2 * SETTLE_S)
    assert stage.asked == {}, "the group is whole"
    del stage.nodes["b"]
    stage.poll()
    assert stage.pool.warm == {"d": 1}, "it is about to be needed"
    assert stage.steward.failed(_lost(1)) is None
    stage.steward.ended()
    stage.park("a", "c")
    assert stage.steward.form() == {"a": 1, "c": 1, "d": 1}


def test_a_spare_takes_the_place_of_a_worker_that_is_to_go(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch, spares=1)
    stage.bring("a", "b", "c", "d")
    stage.start()
    stage.up.add("d")
    stage.poll()
    stage.bring("b", leaves_at_s=0.0)
    stage.poll()
    assert stage.poll(phase=Phase.parked) == {"a": 1, "c": 1, "d": 1}


def test_near_the_end_nobody_joins(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch)
    stage.bring("a", "b")
    stage.start()
    stage.bring("c")
    stage.park("c")
    stage.poll(step=stage.spec.steps - 3, after_s=SETTLE_S)
    assert stage.asked == {}


def test_a_machine_that_goes_is_announced_once_and_left_at_a_boundary(stage: Stage) -> None:
    stage.bring("a", "b", "c")
    stage.start()
    stage.bring("b", leaves_at_s=0.0)
    stage.poll()
    stage.poll()
    assert [kind for kind, _ in stage.told] == [EventKind.notice]
    assert stage.told[0][1]["nodes"] == ["b"]
    assert stage.asked == {"a": True, "b": False, "c": True}
    assert stage.saving == []
    assert stage.poll(phase=Phase.parked) == {"a": 1, "c": 1}
    assert stage.steward.timeline.fields()["cause"] == "drain"


def test_a_run_that_cannot_go_on_without_it_saves_first(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch, min_workers=2)
    stage.bring("a", "b")
    stage.start()
    stage.bring("b", leaves_at_s=0.0)
    stage.poll()
    assert stage.saving == ["a", "b"]
    assert stage.asked == {}, "it trains for as long as it can"


def test_what_a_lost_machine_ran_is_not_waited_for(stage: Stage) -> None:
    stage.bring("a", "b", "c")
    stage.start()
    del stage.nodes["b"]
    assert stage.steward.failed(_lost(1)) is None
    assert stage.steward.vigil.doomed == {stage.steward.group.index(_on(stage, "b"))}
    stage.steward.ended()
    assert stage.noted == [1], "the log of the attempt says why it ended"
    stage.park("a", "c")
    assert stage.steward.form() == {"a": 1, "c": 1}
    fields = stage.steward.timeline.fields()
    assert (fields["cause"], fields["before"], fields["lost"]) == ("kill", 3, ["b"])


def test_what_fails_again_and_again_at_one_step_ends_the_run(stage: Stage) -> None:
    stage.bring("a", "b", "c")
    verdicts: list[TidemillError | None] = []
    for _ in range(3):
        stage.start()
        verdicts.append(stage.steward.failed(_lost(1)))
        stage.steward.ended()
    assert verdicts[:2] == [None, None]
    assert verdicts[2] is not None


def _lost(rank: int) -> WorkerGroupError:
    return WorkerGroupError("a worker failed", {rank: CondemnedError("is lost", Fault.kill)})


def _on(stage: Stage, node: str) -> Process:
    return next(process for process in stage.steward.group if process.node == node)
