"""Specs become plain data and come back the same, and their checks name the key."""

from __future__ import annotations

import json
import math
from dataclasses import field
from enum import StrEnum
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.errors import SpecError
from tidemill.spec.base import (
    Spec,
    canonical_json,
    differences,
    digest_of,
    from_plain,
    spec,
    to_plain,
)


class Colour(StrEnum):
    red = "red"
    blue = "blue"


@spec
class PartSpec(Spec):
    GROUP: ClassVar[str] = "part"


@spec
class WheelSpec(PartSpec):
    kind: str = "round"  # a field may be called like anything but `variant`
    radius: float = 1.0


@spec
class SpokedWheelSpec(WheelSpec):
    spokes: int = 32


@spec
class CartSpec(Spec):
    name: str
    part: PartSpec
    colour: Colour = Colour.red
    load: float | None = None
    tags: list[str] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.require_at_least(0, *(["load"] if self.load is not None else []))


CARTS = st.builds(
    CartSpec,
    name=st.text(),
    part=st.one_of(
        st.builds(WheelSpec, kind=st.text(), radius=st.floats(allow_nan=False)),
        st.builds(SpokedWheelSpec, spokes=st.integers()),
    ),
    colour=st.sampled_from(Colour),
    load=st.none() | st.floats(0, 1e9),
    tags=st.lists(st.text()),
    options=st.dictionaries(st.text(), st.integers() | st.lists(st.booleans()) | st.none()),
)


@given(CARTS)
def test_json_gives_back_the_same_spec(cart: CartSpec) -> None:
    again = from_plain(CartSpec, json.loads(json.dumps(to_plain(cart))))
    assert again == cart
    assert type(again.part) is type(cart.part)
    assert type(again.colour) is Colour
    assert digest_of(to_plain(again)) == digest_of(to_plain(cart))


def test_only_variants_say_what_they_are() -> None:
    plain = to_plain(CartSpec(name="a", part=SpokedWheelSpec()))
    assert "variant" not in plain
    assert plain["part"]["variant"] == "SpokedWheelSpec"


def test_whole_numbers_come_back_as_the_floats_they_were() -> None:
    part = from_plain(WheelSpec, {"radius": 2})
    assert isinstance(part.radius, float)


@pytest.mark.parametrize(
    ("plain", "told"),
    [
        ({"radiu": 1.0}, "radiu: WheelSpec has no such key; use the version that wrote it"),
        ({"variant": "SailSpec"}, "variant: SailSpec is no WheelSpec; use the version that wrote"),
        ({"variant": "CartSpec"}, "variant: CartSpec is no WheelSpec"),
    ],
)
def test_what_another_version_wrote_is_refused(plain: dict[str, Any], told: str) -> None:
    with pytest.raises(SpecError) as caught:
        from_plain(WheelSpec, plain)
    assert str(caught.value).startswith(told)


def test_checks_name_group_and_field() -> None:
    with pytest.raises(SpecError) as caught:
        WheelSpec(radius=-1.0).require_at_least(0, "radius")
    assert str(caught.value) == "part.radius: -1.0 is too small; use 0 or more"
    assert caught.value.key == "part.radius"
    with pytest.raises(SpecError, match=r"^part.radius: 3.0 is out of range; use 0 to 2$"):
        WheelSpec(radius=3.0).require_between(0, 2, "radius")
    with pytest.raises(SpecError, match=r"^load: -1.0 is too small"):
        CartSpec(name="a", part=WheelSpec(), load=-1.0)


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_checks_want_finite_numbers(value: float) -> None:
    with pytest.raises(SpecError, match="is not finite"):
        WheelSpec(radius=value).require_at_least(0, "radius")
    with pytest.raises(SpecError, match="is out of range"):
        WheelSpec(radius=value).require_between(0, 1, "radius")


def test_checks_let_the_bounds_pass() -> None:
    WheelSpec(radius=2.0).require_at_least(2, "radius")
    WheelSpec(radius=2.0).require_between(2, 3, "radius")
    WheelSpec(radius=3.0).require_between(2, 3, "radius")


def test_canonical_json_does_not_depend_on_order() -> None:
    assert canonical_json({"b": 1, "a": [1.5, "é"]}) == '{"a":[1.5,"é"],"b":1}'
    assert digest_of({"b": 1, "a": 2}) == digest_of({"a": 2, "b": 1})
    assert digest_of({"a": 2}) != digest_of({"a": 3})


def test_differences_are_told_by_key() -> None:
    old = {"a": 1, "b": {"c": 1, "d": [1]}, "gone": 0}
    new = {"a": 1, "b": {"c": 2, "d": [2]}, "new": None}
    assert differences(old, new) == [
        ("b.c", 1, 2),
        ("b.d", [1], [2]),
        ("gone", 0, None),
    ]
    assert differences(old, old) == []
