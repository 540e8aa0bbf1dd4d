"""What is for planning is told from what is for the run."""

from __future__ import annotations

from typing import Any

import pytest

from tests.test_conf import CONF
from tidemill.compose import compose
from tidemill.errors import SpecError
from tidemill.spec.doors import Format
from tidemill.spec.keys import keys_of, split
from tidemill.spec.plan import PlanSpec
from tidemill.spec.run import RunSpec


@pytest.mark.parametrize(
    ("bad", "key"),
    [
        ({"top": 0}, "top"),
        ({"efficiency": 1.5}, "efficiency"),
        ({"efficiency": -0.1}, "efficiency"),
        ({"data_gib": -1.0}, "data_gib"),
        ({"measured_s": 1.0}, "measured_on"),
        ({"measured_on": "H100"}, "measured_on"),
        ({"measured_s": 1.0, "measured_on": "H100:many"}, "measured_on"),
        ({"measured_s": 1.0, "measured_on": "H100:0"}, "measured_on"),
        ({"measured_s": 1.0, "measured_on": "H100", "efficiency": 0.4}, "efficiency"),
    ],
)
def test_planning_needs_sense(bad: dict[str, Any], key: str) -> None:
    with pytest.raises(SpecError) as caught:
        PlanSpec(**bad)
    assert caught.value.key == key


def test_the_file_says_what_the_class_says() -> None:
    assert compose([], config_name="plan", schema=PlanSpec) == PlanSpec()
    typed = ["top=2", "live=false", "format=json", "measured_s=1", "measured_on=L4:2"]
    assert compose(typed, config_name="plan", schema=PlanSpec) == PlanSpec(
        top=2, live=False, format=Format.json, measured_s=1.0, measured_on="L4:2"
    )


def test_a_command_line_is_parted() -> None:
    own, run = split(["budget.max_total_usd=5", "top=3", "--json", "deadline=1h"], PlanSpec)
    assert own == ["top=3", "--json"]
    assert run == ["budget.max_total_usd=5", "deadline=1h"]


def test_no_key_means_two_things() -> None:
    assert not set(keys_of(PlanSpec)) & set(keys_of(RunSpec))


def test_help_shows_all_keys() -> None:
    text = (CONF / "hydra" / "help" / "plan.yaml").read_text()
    shown = [part.partition("}")[0] for part in text.split("${shown:")[1:]]
    assert set(shown) == set(keys_of(PlanSpec))
