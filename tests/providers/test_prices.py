"""What is not a price is none, and no machine is offered at it."""

from __future__ import annotations

import pytest

from tidemill.providers.prices import believe, believe_spot


@pytest.mark.parametrize(
    "stated", [0, 0.0, "0", "0.00", "", None, -1, "-0.2", "nan", "inf", "ask"], ids=repr
)
def test_what_is_no_number_above_zero_is_missing(stated: float | str | None) -> None:
    assert believe(stated) is None
    assert believe_spot(stated, 1.0) is None


def test_a_placeholder_is_missing_but_a_large_machine_is_not() -> None:
    assert believe(700.0) is None
    assert believe(0.00001) is None
    assert believe(142.416, gpus=8) == 142.416
    assert believe("0.16") == 0.16


def test_the_full_price_again_is_no_spot_price() -> None:
    assert believe_spot(1.0, 1.0) is None
    assert believe_spot(0.985, 1.0) is None
    assert believe_spot(1.2, 1.0) is None
    assert believe_spot(0.97, 1.0) == 0.97
    assert believe_spot(0.97, None) == 0.97
