"""Costs and rules follow from a run's spec and from what was measured."""

from __future__ import annotations

import json
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.spec.test_run import RUN
from tidemill.plan.costs import MEASURED, Pace, Rules, Stages, costs_from_plain, rules_of
from tidemill.spec.checkpoint import CheckpointSpec
from tidemill.spec.run import Reproducibility
from tidemill.spec.scale import ScaleSpec
from tidemill.spec.strategy import Fsdp2Spec

RULES = Rules(most=6, global_size=60, micro_size=10, save_every_steps=100)

paces = st.builds(
    Pace,
    step_s=st.sampled_from([0.25, 1.0, 3.0]),
    between_s=st.sampled_from([0.0, 0.125]),
    save_s=st.sampled_from([0.0, 0.5, 10.0]),
    every=st.integers(0, 5),
)


def test_stages_add_up_to_a_restart_but_for_the_detection() -> None:
    each = Stages(**{stage.name: 2.0**n for n, stage in enumerate(fields(Stages))})
    assert each.restart_s == sum(2.0**n for n in range(1, len(fields(Stages))))


def test_costs_survive_json() -> None:
    costs = replace(MEASURED, step_s={2: 0.5, 4: 0.25}, save_s=0.1)
    assert costs_from_plain(json.loads(json.dumps(costs.to_plain()))) == costs


def test_a_larger_group_has_smaller_slots() -> None:
    # Slots per worker are 6 3 2 2 2 1, but those of five workers are smaller than those of three.
    assert [RULES.load_at(world) for world in range(1, 7)] == [60, 30, 20, 15, 12, 10]
    fixed = replace(RULES, fixed=True)
    assert [fixed.load_at(world) for world in range(1, 7)] == [60, 30, 20, 20, 20, 10]


def test_a_step_of_a_size_that_was_not_measured_follows_from_the_nearest() -> None:
    costs = replace(MEASURED, step_s={2: 3.0, 6: 1.5})
    assert [costs.pace(RULES, world).step_s for world in (1, 2, 3, 5, 6)] == [
        6.0,
        3.0,
        2.0,
        pytest.approx(1.8),
        1.5,
    ]
    assert costs.pace(RULES, 4).step_s == 1.5  # as near to both: the smaller one
    assert costs.pace(RULES, 2).every == 100


@given(pace=paces, first=st.integers(0, 20), seconds=st.integers(0, 400).map(lambda n: n / 8))
def test_steps_are_those_that_there_is_time_for(pace: Pace, first: int, seconds: float) -> None:
    steps = pace.steps(first, seconds)
    assert pace.seconds(first, steps) <= seconds < pace.seconds(first, steps + 1)


@given(pace=paces, first=st.integers(0, 20), steps=st.integers(0, 30))
def test_a_save_stops_the_step_after_which_it_is_due(pace: Pace, first: int, steps: int) -> None:
    spent_s = 0.0
    for step in range(first, first + steps):
        spent_s += pace.step_s + pace.between_s
        if pace.every and (step + 1) % pace.every == 0:
            spent_s += pace.save_s
    assert pace.seconds(first, steps) == pytest.approx(spent_s)


def test_rules_are_those_of_the_run() -> None:
    elastic = replace(
        RUN,
        scale=ScaleSpec(workers=4, min_workers=2, copy_every_steps=3),
        checkpoint=CheckpointSpec(every_steps=50, near_gib=1, near_every_steps=5),
    )
    rules = Rules(
        least=2,
        most=4,
        global_size=8,
        micro_size=2,
        steps=10,
        copy_every_steps=3,
        near_every_steps=5,
        save_every_steps=50,
    )
    assert rules_of(elastic) == rules
    assert rules_of(RUN).least == RUN.scale.workers
    assert not rules_of(replace(elastic, strategy=Fsdp2Spec())).replicated
    assert rules_of(replace(elastic, reproducibility=Reproducibility.bitwise)).fixed
