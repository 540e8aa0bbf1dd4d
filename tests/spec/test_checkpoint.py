"""What a policy for checkpoints cannot say, each refusal naming the key."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tidemill.errors import SpecError
from tidemill.spec.checkpoint import CheckpointSpec


@pytest.mark.parametrize(
    ("fields", "key"),
    [
        ({"every_steps": -1}, "every_steps"),
        ({"every_s": -0.5}, "every_s"),
        ({"every_s": math.inf}, "every_s"),
        ({"keep_last": 0}, "keep_last"),
        ({"keep_best": -1}, "keep_best"),
        ({"keep_every_steps": -1}, "keep_every_steps"),
        ({"retry_for_s": -1.0}, "retry_for_s"),
        ({"near_gib": -1.0}, "near_gib"),
        ({"near_gib": math.nan}, "near_gib"),
        ({"near_gib": 1.0, "near_every_steps": -1}, "near_every_steps"),
        ({"near_every_steps": 5}, "near_every_steps"),
        ({"init_from": "weights", "from_run": "hello"}, "init_from"),
        ({"from_step": 3}, "from_step"),
        ({"from_run": "hello", "from_step": -3}, "from_step"),
        ({"from_run": "../hello"}, "from_run"),
    ],
)
def test_what_cannot_work_is_refused(fields: dict[str, Any], key: str) -> None:
    with pytest.raises(SpecError) as error:
        CheckpointSpec(**fields)
    assert error.value.key == f"checkpoint.{key}"
    assert error.value.remedy


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"every_steps": 0, "every_s": 600.0},
        {"near_gib": 16.0, "near_every_steps": 20},
        {"from_run": "hello", "from_step": 100},
        {"init_from": "s3://bucket/weights"},
    ],
)
def test_what_can_work_is_not(fields: dict[str, Any]) -> None:
    assert CheckpointSpec(**fields).keep_last == 2
