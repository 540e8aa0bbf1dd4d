"""The fleet door's keys."""

from __future__ import annotations

from typing import Any

import pytest

from tidemill.errors import SpecError
from tidemill.spec.fleet import FleetAction, FleetSpec


@pytest.mark.parametrize(
    ("wrong", "key"),
    [
        ({"gpus": 0}, "gpus"),
        ({"hours": 0.0}, "hours"),
        ({"min_reliability": 2.0}, "min_reliability"),
        ({"data_gib": -1.0}, "data_gib"),
        ({"top": -1}, "top"),
    ],
)
def test_what_cannot_be_names_its_key(wrong: dict[str, Any], key: str) -> None:
    with pytest.raises(SpecError) as told:
        FleetSpec(action=FleetAction.offers, **wrong)
    assert told.value.key == key
