"""Sealed JSON: no bit of it changes unnoticed, and every complaint names file and key."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.checkpoint.sealed import Reader, require_json, seal, unseal
from tidemill.errors import CheckpointError, CorruptCheckpoint

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=10,
)


@given(plain)
def test_what_is_sealed_comes_back_and_is_json_for_others(value: Any) -> None:
    sealed = seal(value)
    assert unseal(sealed, "m") == value
    assert json.loads(sealed)["manifest"] == value


def test_every_flipped_bit_is_found() -> None:
    sealed = seal({"step": 3, "name": "tide", "list": [1.5, None]})
    for bit in range(8 * len(sealed)):
        changed = bytearray(sealed)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptCheckpoint, match=r"^m "):
            unseal(bytes(changed), "m")


def test_every_shorter_or_longer_version_is_found() -> None:
    sealed = seal({"step": 3})
    for size in range(len(sealed)):
        with pytest.raises(CorruptCheckpoint):
            unseal(sealed[:size], "m")
    with pytest.raises(CorruptCheckpoint):
        unseal(sealed + b"}\n", "m")


def test_the_reason_says_what_is_wrong() -> None:
    sealed = seal({"step": 3})
    with pytest.raises(CorruptCheckpoint, match=r"^m is no manifest \(0 bytes\)$"):
        unseal(b"", "m")
    with pytest.raises(CorruptCheckpoint, match=r"^m is cut short"):
        unseal(sealed[:-5], "m")
    with pytest.raises(CorruptCheckpoint, match=r"^m does not match its own checksum$"):
        unseal(sealed.replace(b"3", b"4"), "m")


def test_a_reader_names_the_missing_key_and_the_wrong_type() -> None:
    read = Reader("m")
    assert read.take({"a": 1}, "a", int) == 1
    with pytest.raises(CorruptCheckpoint, match=r"^m: outer\.a is missing$"):
        read.take({}, "a", int, "outer")
    with pytest.raises(CorruptCheckpoint, match=r"^m: a cannot be 'x'$"):
        read.take({"a": "x"}, "a", int)
    with pytest.raises(CorruptCheckpoint, match=r"^m: a cannot be True$"):
        read.take({"a": True}, "a", int)
    with pytest.raises(CorruptCheckpoint, match=r"^m: sizes\.w cannot be 3$"):
        read.each({"sizes": {"w": 3}}, "sizes", lambda path, _: path)


@pytest.mark.parametrize("value", [(1, 2), {1: 2}, float("nan"), float("inf"), b"x", object()])
def test_a_scalar_that_json_would_change_is_refused(value: Any) -> None:
    with pytest.raises(CheckpointError, match=r"^scalar betas: "):
        require_json("betas", value)


@given(plain)
def test_a_scalar_that_json_keeps_is_taken(value: Any) -> None:
    require_json("any", value)
