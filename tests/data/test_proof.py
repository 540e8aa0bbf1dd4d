"""Steps that used other samples than they should are named, with the reason."""

from __future__ import annotations

from array import array
from typing import Any

import pytest

from tidemill.data import proof
from tidemill.data.places import digest_steps
from tidemill.data.proof import Doubt, Order, find_doubts

ORDER = Order(seed=3, count=4, size=50)
STEPS = 30


def ledger() -> dict[str, Any]:
    """What steps tell that used what they should."""
    firsts = array("q", range(0, STEPS * 4, 4))
    return {
        "firsts": firsts,
        "samples": array("q", [first + 4 for first in firsts]),
        "counts": array("q", [4] * STEPS),
        "digests": array("Q", digest_steps(firsts, 4, 50, 3).tolist()),
    }


def doubts(told: dict[str, Any], order: Order = ORDER) -> list[tuple[int, Doubt]]:
    return find_doubts(*told.values(), order=order)


@pytest.mark.parametrize("chunk", [1, 7, 2**16])
def test_all_is_well(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(proof, "CHUNK_SAMPLES", chunk)
    seen: list[int] = []
    assert find_doubts(*ledger().values(), order=ORDER, advance=seen.append) == []
    assert sum(seen) == STEPS * 4


def test_no_steps_no_doubts() -> None:
    empty = {name: held[:0] for name, held in ledger().items()}
    assert doubts(empty) == []


@pytest.mark.parametrize("chunk", [1, 7, 2**16])
def test_each_wrong_step_is_named(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(proof, "CHUNK_SAMPLES", chunk)
    told = ledger()
    told["digests"][3] ^= 1 << 63
    told["counts"][11] = 3
    told["samples"][12] += 1
    told["counts"][29] = -1
    assert doubts(told) == [
        (3, Doubt.strange),
        (11, Doubt.miscounted),
        (12, Doubt.displaced),
        (29, Doubt.silent),
    ]


def test_steps_that_swapped_their_samples_are_both_wrong() -> None:
    told = ledger()
    digests = told["digests"]
    digests[4], digests[5] = digests[5], digests[4]
    assert doubts(told) == [(4, Doubt.strange), (5, Doubt.strange)]


@pytest.mark.parametrize(
    "order",
    [Order(seed=4, count=4, size=50), Order(seed=3, count=4, size=80)],
    ids=["seed", "size"],
)
def test_another_order_is_wrong_everywhere(order: Order) -> None:
    assert doubts(ledger(), order) == [(step, Doubt.strange) for step in range(STEPS)]
