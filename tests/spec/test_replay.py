"""A replay that cannot work is refused by key."""

from __future__ import annotations

from typing import Any

import pytest

from tidemill.errors import SpecError
from tidemill.spec.replay import ReplaySpec


@pytest.mark.parametrize(
    ("chosen", "key"),
    [
        ({"name": "a/b"}, "name"),
        ({"costs_from": "../a"}, "costs_from"),
        ({"trace": ""}, "trace"),
        ({"nodes": 0}, "nodes"),
        ({"min_workers": 0}, "min_workers"),
        ({"nodes": 2, "min_workers": 3}, "min_workers"),
        ({"start_s": -1.0}, "start_s"),
        ({"speed": 0.0}, "speed"),
        ({"mean_s": 0.0}, "mean_s"),
        ({"notice_s": -1.0}, "notice_s"),
        ({"trace": "poisson"}, "duration_s"),
        ({"storage": ""}, "storage"),
        ({"storage": "s3://bucket/replays", "real": True}, "storage"),
    ],
)
def test_what_cannot_work_is_refused(chosen: dict[str, Any], key: str) -> None:
    with pytest.raises(SpecError) as caught:
        ReplaySpec(**chosen)
    assert caught.value.key == key


def test_a_simulation_may_be_anywhere() -> None:
    assert ReplaySpec(storage="s3://bucket/replays").storage == "s3://bucket/replays"
