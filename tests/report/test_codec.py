"""A line is JSON for everybody, and what comes back is what went in."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.report.codec import decode_events, encode_fields, encode_line
from tidemill.spec.progress import Event, EventKind

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
VALUES = st.recursive(
    SCALARS | st.sampled_from(["NaN", "Infinity", "-Infinity"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


def encode(at_s: float = 1.5, **fields: Any) -> bytes:
    return encode_line(EventKind.step, at_s, 3, encode_fields(fields)).encode()


def round_trip(**fields: Any) -> dict[str, Any]:
    (event,) = decode_events(encode(**fields))
    return event.fields


def spelled(value: Any) -> bool:
    """Whether a value holds a text that stands for a number elsewhere."""
    if isinstance(value, list):
        return any(spelled(item) for item in value)
    if isinstance(value, dict):
        return any(spelled(item) for item in value.values())
    return value in {"NaN", "Infinity", "-Infinity"}


def infinite(value: Any) -> bool:
    if isinstance(value, list):
        return any(infinite(item) for item in value)
    if isinstance(value, dict):
        return any(infinite(item) for item in value.values())
    return isinstance(value, float) and math.isinf(value)


@given(st.dictionaries(st.text(), VALUES, max_size=3), st.floats(0, 1e11))
def test_what_goes_in_comes_out(fields: dict[str, Any], at_s: float) -> None:
    # In one field, a text that reads like a number cannot be told from the number.
    fields = {k: v for k, v in fields.items() if not (infinite(v) and spelled(v))}
    line = encode_line(EventKind.step, at_s, 3, encode_fields(fields))
    assert line.index("\n") == len(line) - 1
    expected = Event(kind=EventKind.step, at_s=at_s, attempt=3, fields=fields)
    assert decode_events(line.encode()) == [expected]


def test_a_line_is_what_the_documentation_shows() -> None:
    fields = {"step": 12, "loss": 2.0794415416798357, "grad_norm": math.nan, "applied": False}
    assert encode(1767225600.25, **fields).decode() == (
        '{"kind":"step","at_s":1767225600.25,"attempt":3,"fields":{"step":12,'
        '"loss":2.0794415416798357,"grad_norm":"NaN","applied":false},'
        '"non_finite":["grad_norm"]}\n'
    )


@pytest.mark.parametrize(
    "value", [{"a": {"b": math.inf}}, {"a": [{"b": -math.inf}]}, [[math.inf], 1], -math.inf]
)
def test_numbers_json_cannot_spell_come_back_from_any_depth(value: Any) -> None:
    line = encode(deep=value)

    def refuse(constant: str) -> None:
        pytest.fail(f"{constant} is no JSON")

    assert json.loads(line, parse_constant=refuse)["non_finite"] == ["deep"]
    assert round_trip(deep=value, text="Infinity") == {"deep": value, "text": "Infinity"}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float32(0.1), 0.10000000149011612),
        (np.float64(0.1), 0.1),
        (np.int64(2**62), 2**62),
        (np.bool_(False), False),
        (np.array(7), 7),
        (np.array([7]), "[7]"),
        (np.array([1, 2]), "[1 2]"),
        (np.longdouble(0.5), str(np.longdouble(0.5))),
        ((1, 2), [1, 2]),
        (EventKind.step, "step"),
        ({3: "three"}, {"3": "three"}),
        (b"bytes", "b'bytes'"),
    ],
)
def test_foreign_values_never_stop_training(value: Any, expected: Any) -> None:
    found = round_trip(value=value, also=math.inf)
    assert found == {"value": expected, "also": math.inf}
    assert type(found["value"]) is type(expected)


@pytest.mark.parametrize(
    "line",
    [
        b'{"kind":"step","at_s":1.0,"attempt":1,"fields":{"step":',
        b'{"kind":"step","at_s":1.0,"attempt":1,"fields":[1]}',
        b'{"kind":"step","at_s":null,"attempt":1,"fields":{}}',
        b'{"kind":"step","at_s":1.0,"attempt":Infinity,"fields":{}}',
        b'{"kind":"step","at_s":1.0,"attempt":1,"fields":{},"non_finite":["lost"]}',
        b'{"kind":"step","at_s":1.0,"attempt":1,"fields":{},"non_finite":7}',
        b'{"kind":"of tomorrow","at_s":1.0,"attempt":1,"fields":{}}',
        b'{"at_s":1.0,"attempt":1,"fields":{}}',
        b"[" * 100_000,
        b"null",
        b"\xff\xfe",
        b"\x00" * 512,
        b"",
    ],
)
def test_a_line_that_makes_no_sense_costs_itself_alone(line: bytes) -> None:
    found = decode_events(encode(step=1) + line + b"\n" + encode(step=2))
    assert [event.fields["step"] for event in found] == [1, 2]
