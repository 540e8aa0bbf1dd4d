"""The purse counts what nodes say they cost, and asks for a stop while there is money for it."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import RayError

from tests.kit.training import tiny_run
from tidemill.errors import HopelessError, SpecError, TrainingError
from tidemill.launch import purse as purse_module
from tidemill.launch.prices import find_machines, price_of
from tidemill.launch.purse import LOOK_S, WRITE_S, Purse, open_purse
from tidemill.launch.stop import stop_marker
from tidemill.plan.meter import ACCOUNT, Price, Verdict
from tidemill.spec.placement import BudgetSpec
from tidemill.storage import Location, exists, locate, make_directory, publish

SECOND = 3600.0
"""Dollars an hour that are a dollar a second."""
USD, MOST, STEP = (
    f"tidemill.io/{name}" for name in ("usd-per-hour", "most-usd-per-hour", "billing-step-s")
)


def node(name: str, labels: Mapping[str, str] | None = None, **changes: Any) -> dict[str, Any]:
    """A node as `ray.nodes()` tells it."""
    return {
        "NodeID": name,
        "Alive": True,
        "NodeManagerAddress": f"10.0.0.{len(name)}",
        "Resources": {"CPU": 8.0},
        "Labels": dict(labels or {}),
        **changes,
    }


class World:
    """A cluster whose clock and nodes the test moves."""

    def __init__(self, run: Location, *nodes: dict[str, Any]) -> None:
        self.run, self.nodes, self.now_s = run, list(nodes), 1000.0
        self.said: list[str] = []
        self.broken = False

    def look(self) -> list[dict[str, Any]]:
        if self.broken:
            raise RayError("the head does not answer")
        return self.nodes

    def purse(self, budget: BudgetSpec, deadline: str = "", launch: int = 1) -> Purse:
        spec = replace(tiny_run(), budget=budget, deadline=deadline)
        return Purse(
            spec, self.run, launch, self.said.append, nodes=self.look, now_s=lambda: self.now_s
        )

    def asked(self, purse: Purse, launch: int = 1) -> bool:
        purse._asking.finish()
        return exists(stop_marker(self.run, launch))

    def account(self) -> dict[str, Any]:
        return json.loads(Path(self.run.path, ACCOUNT).read_text())


@pytest.fixture
def run(tmp_path: Path) -> Location:
    place = locate(str(tmp_path)) / "run"
    make_directory(place)
    return place


# --- prices ------------------------------------------------------------------------------------


def test_labels_say_what_a_node_costs() -> None:
    found = price_of({USD: "1.5", MOST: "4", STEP: "60"}, BudgetSpec(share=0.5))
    assert found == Price(usd_per_hour=0.75, most_usd_per_hour=2.0, step_s=60.0)
    plain = price_of({USD: "0"}, BudgetSpec(node_usd_per_hour=3.0))
    assert plain == Price(usd_per_hour=0.0, most_usd_per_hour=0.0)
    unsaid = price_of({}, BudgetSpec(node_usd_per_hour=3.0))
    assert unsaid == Price(usd_per_hour=3.0, most_usd_per_hour=3.0)
    assert price_of({}, BudgetSpec()) is None
    assert price_of({USD: "2", MOST: "1"}, BudgetSpec()) == price_of({USD: "2"}, BudgetSpec())


@pytest.mark.parametrize("text", ["free", "-1", "nan", "inf", "1,20"])
def test_a_label_that_is_no_price_is_named(text: str) -> None:
    with pytest.raises(SpecError, match=f"tidemill.io/usd-per-hour={text} of a node is no price"):
        price_of({USD: text}, BudgetSpec())


def test_the_dead_cost_nothing_and_gpus_have_their_share() -> None:
    eight = {"CPU": 8.0, "GPU": 8.0}
    found = find_machines(
        [node("a", {USD: "16"}, Resources=eight), node("b", Alive=False)], BudgetSpec(share=0.5)
    )
    assert list(found) == ["a"]
    assert found["a"].usd_per_gpu_hour == 2.0, "of the machine, whatever share the run bears"


# --- stopping ----------------------------------------------------------------------------------


def test_a_stop_is_asked_for_while_there_is_money_to_save_and_leave(run: Location) -> None:
    world = World(run, node("a", {USD: str(SECOND)}))
    purse = world.purse(BudgetSpec(max_total_usd=100.0, save_s=20.0, leave_s=30.0))
    purse.open()
    while purse.verdict is Verdict.go_on:
        assert not world.asked(purse)
        world.now_s += LOOK_S
        purse.look()
    assert world.asked(purse)
    assert purse.verdict is Verdict.money
    assert purse.spent_usd + 20 + 30 <= 100 <= purse.spent_usd + 20 + 30 + 2 * LOOK_S
    assert len(world.said) == 1
    assert "of budget.max_total_usd=100 are spent: saving a checkpoint" in world.said[0]
    purse.raise_if_overdue()


def test_prices_that_may_rise_are_taken_at_their_most(run: Location) -> None:
    world = World(run, node("a", {USD: str(SECOND), MOST: str(3 * SECOND)}))
    purse = world.purse(BudgetSpec(max_total_usd=200.0, save_s=20.0, leave_s=30.0))
    purse.open()
    world.now_s += 40
    purse.look()
    assert purse.verdict is Verdict.go_on
    world.now_s += 5
    purse.look()
    assert purse.verdict is Verdict.money, "45 are spent, and 3 x 52 s may be before all is left"


def test_a_run_that_does_not_save_in_time_is_ended(run: Location) -> None:
    world = World(run, node("a", {USD: "1"}))
    purse = world.purse(BudgetSpec(save_s=20.0), deadline="60s")
    purse.open()
    world.now_s += 45
    purse.look()
    assert purse.verdict is Verdict.time
    assert purse.reason == "0.01 h of deadline=60s have gone"
    world.now_s += 19
    purse.look()
    purse.raise_if_overdue()
    world.now_s += 2
    purse.look()
    with pytest.raises(HopelessError, match="no checkpoint was saved within 20 s"):
        purse.raise_if_overdue()


def test_what_saves_slowly_is_given_more_time(run: Location) -> None:
    world = World(run, node("a", {USD: str(SECOND)}))
    purse = world.purse(BudgetSpec(max_total_usd=100.0, save_s=1.0, leave_s=0.0))
    purse.open()
    purse.saving_takes(30.0)
    world.now_s += 45
    purse.look()
    assert purse.verdict is Verdict.money


def test_a_dear_node_ends_it(run: Location) -> None:
    gpus = {"CPU": 8.0, "GPU": 2.0}
    world = World(run, node("a", {USD: "4"}, Resources=gpus))
    purse = world.purse(BudgetSpec(max_usd_per_gpu_hour=2.0, max_usd_per_hour=7.0))
    purse.open()
    world.nodes.append(node("b", {USD: "2"}))
    purse.look()
    assert purse.verdict is Verdict.go_on
    world.nodes.append(node("c", {USD: "5"}, Resources=gpus))
    purse.look()
    assert purse.verdict is Verdict.rate
    assert purse.reason == "the cluster costs 11.00 usd an hour"


def test_a_newcomer_without_a_price_is_as_dear_as_the_dearest(run: Location) -> None:
    world = World(run, node("a", {USD: "2"}), node("bb", {USD: "5"}))
    purse = world.purse(BudgetSpec(max_total_usd=1e6))
    purse.open()
    world.nodes = [node("a", {USD: "2"}), node("ccc")]
    purse.look()
    purse.look()
    with purse:
        pass
    assert world.account()["usd_per_hour"] == 7.0


def test_a_cluster_that_does_not_answer_costs_what_it_did(run: Location) -> None:
    world = World(run, node("a", {USD: str(SECOND)}))
    purse = world.purse(BudgetSpec(max_total_usd=100.0, save_s=10.0, leave_s=10.0))
    purse.open()
    world.broken = True
    world.now_s += 50
    purse.look()
    assert purse.spent_usd == 50.0
    world.now_s += 40
    purse.look()
    assert world.asked(purse)


def test_storage_that_fails_is_tried_again(run: Location) -> None:
    world = World(run, node("a", {USD: "1"}))
    purse = world.purse(BudgetSpec(), deadline="10s")
    with pytest.raises(SpecError, match=r"^deadline: no time is left"):
        purse.open()
    purse = world.purse(BudgetSpec(save_s=1.0), deadline="1h")
    purse.open()
    control = Path(run.path) / "control"
    control.write_text("in the way")
    world.now_s += 3600
    purse.look()
    purse._asking.finish()
    assert any("cannot be asked to stop" in line for line in world.said)
    control.unlink()
    purse.look()
    assert world.asked(purse)


def test_storage_that_hangs_keeps_nobody_from_looking(
    run: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(run, node("a", {USD: str(SECOND)}))
    purse = world.purse(BudgetSpec(max_total_usd=100.0, save_s=20.0, leave_s=30.0))
    purse.open()
    answers = threading.Event()
    for name in ("publish", "request_stop"):
        monkeypatch.setattr(purse_module, name, lambda *_: answers.wait(30))
    for _ in range(40):
        world.now_s += LOOK_S
        purse.look()
    assert purse.spent_usd == 80.0
    with pytest.raises(HopelessError):
        purse.raise_if_overdue()
    answers.set()
    purse._asking.finish()
    purse._writing.finish()


# --- the account -------------------------------------------------------------------------------


def test_the_next_launch_goes_on_with_the_account(run: Location) -> None:
    world = World(run, node("a", {USD: str(SECOND)}))
    budget = BudgetSpec(max_total_usd=200.0, set_aside_usd=10.0, save_s=5.0, leave_s=20.0)
    first = world.purse(budget, deadline="1h")
    first.open()
    with first:
        world.now_s += 30
    assert first.spent_usd == 40.0
    world.now_s += 500
    second = world.purse(replace(budget, set_aside_usd=15.0), deadline="1h", launch=2)
    world.nodes = [node("b", {USD: str(SECOND)})]
    second.open()
    assert second.spent_usd == 40.0 + 5.0 + 20.0 + 1.0, "the old machine may have been there 20 s"
    world.now_s = 1000.0 + 3600 - 6
    world.nodes = []
    second.look()
    assert second.verdict is Verdict.money
    third = world.purse(BudgetSpec(max_total_usd=1e6), deadline="1h", launch=3)
    with pytest.raises(SpecError, match=r"^deadline: no time is left of 1h since the first launch"):
        third.open()


def test_a_killed_driver_leaves_an_account(run: Location) -> None:
    world = World(run, node("a", {USD: str(SECOND)}))
    purse = world.purse(BudgetSpec(max_total_usd=1e6))
    purse.open()
    for _ in range(20):
        world.now_s += LOOK_S
        purse.look()
        purse._writing.finish()
    account = world.account()
    assert purse.spent_usd - account["spent_usd"] <= WRITE_S + LOOK_S
    after = world.purse(BudgetSpec(max_total_usd=1e6), launch=2)
    after.open()
    assert after.spent_usd == purse.spent_usd, "its node is still there, and was all the time"


def test_there_is_no_use_in_beginning_without_money(run: Location) -> None:
    world = World(run, node("a", {USD: str(SECOND)}))
    with pytest.raises(SpecError, match=r"^budget.max_total_usd: .* to 422.00; set it well above"):
        world.purse(BudgetSpec(max_total_usd=50.0)).open()
    with pytest.raises(SpecError, match=r"^budget.max_usd_per_hour: the cluster costs 3,600.00"):
        world.purse(BudgetSpec(max_usd_per_hour=10.0)).open()
    world.nodes = [node("a", {USD: "8"}, Resources={"GPU": 2.0})]
    with pytest.raises(SpecError, match=r"^budget.max_usd_per_gpu_hour: .* GPUs for 4.00"):
        world.purse(BudgetSpec(max_usd_per_gpu_hour=3.0)).open()


def test_a_limit_needs_prices(run: Location) -> None:
    world = World(run, node("a", {USD: "1"}), node("bb"))
    with pytest.raises(SpecError, match=r"^budget.node_usd_per_hour: .* 10.0.0.2 does not say"):
        world.purse(BudgetSpec(max_total_usd=50.0)).open()
    world.purse(BudgetSpec(max_total_usd=50.0, node_usd_per_hour=1.0)).open()


def test_who_sets_no_limit_and_tells_no_price_is_left_alone(run: Location) -> None:
    purse = World(run, node("a")).purse(BudgetSpec())
    purse.open()
    assert not purse.of_use
    assert not exists(run / ACCOUNT)
    assert (purse.reason, purse.spent_usd) == ("", 0.0)


@pytest.mark.parametrize("text", ["", "{}x", "[]", '{"spent_usd": 1}', '{"spent_usd": "much"}'])
def test_a_damaged_account_is_not_taken_for_none(run: Location, text: str) -> None:
    publish(run / ACCOUNT, text.encode())
    with (
        pytest.raises(TrainingError, match="is damaged, so nobody knows what the run has cost"),
        open_purse(tiny_run(), run, 1, print),
    ):
        pass
