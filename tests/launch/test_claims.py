"""Elastic runs on one cluster: each knows its share, and whoever is gone has none."""

from __future__ import annotations

from tidemill.launch.claims import STALE_S, YIELD_S, Claims
from tidemill.spec.scale import ScaleSpec


class Board:
    """Where claims are written, and a clock."""

    def __init__(self) -> None:
        self.claims: dict[str, str] = {}
        self.now_s = 1000.0

    def join(self, run: str, **scale: float) -> Claims:
        """One more run."""
        self.now_s += 1.0
        return Claims(
            run,
            ScaleSpec(**scale),  # type: ignore[arg-type]
            write=lambda text: self.claims.__setitem__(run, text),
            read=lambda: [text for text in self.claims.values() if text],
            clock=lambda: self.now_s,
        )


def test_a_run_alone_may_have_all_it_has_use_for() -> None:
    board = Board()
    run = board.join("a", workers=6, min_workers=1)
    assert run.most(slots=4, capacity=9, held=2) == 4
    assert run.most(slots=9, capacity=9, held=2) == 6


def test_spares_are_of_use_too() -> None:
    run = Board().join("a", workers=2, spares=1)
    assert run.most(slots=4, capacity=4, held=3) == 3


def test_two_runs_share_by_weight_whoever_came_first() -> None:
    board = Board()
    first = board.join("a", workers=8, min_workers=1, weight=1.0)
    assert first.most(slots=8, capacity=8, held=8) == 8
    second = board.join("b", workers=8, min_workers=1, weight=3.0)
    assert second.most(slots=0, capacity=8, held=0) == 6
    assert first.most(slots=8, capacity=8, held=8) == 8
    board.now_s += YIELD_S + 0.1
    assert first.most(slots=8, capacity=8, held=8) == 2
    assert first.most(slots=8, capacity=8, held=2) == 2
    assert second.most(slots=6, capacity=8, held=0) == 6


def test_who_starts_and_who_yields_do_not_mistake_one_another() -> None:
    """What is told and what is taken differ for a moment, one way or the other."""
    board = Board()
    first = board.join("a", workers=3, min_workers=1, weight=2.0)
    second = board.join("b", workers=3, min_workers=1)
    first.most(slots=3, capacity=3, held=3)
    second.most(slots=0, capacity=3, held=0)
    board.now_s += YIELD_S + 0.1
    first.most(slots=3, capacity=3, held=3)
    board.now_s += YIELD_S + 0.1
    assert first.most(slots=3, capacity=3, held=3) == 2
    second.hold(1)
    assert first.most(slots=3, capacity=3, held=2) == 2, "told, and not taken yet"
    assert first.most(slots=2, capacity=3, held=2) == 2
    third = board.join("c", workers=1, min_workers=1, weight=0.1)
    third.most(slots=0, capacity=3, held=0)
    assert first.most(slots=1, capacity=3, held=2) == 2, "taken, and not told yet"


def test_what_one_has_no_use_for_goes_to_the_other() -> None:
    board = Board()
    first = board.join("a", workers=2, min_workers=1)
    second = board.join("b", workers=8, min_workers=1)
    first.most(slots=8, capacity=8, held=2)
    assert second.most(slots=6, capacity=8, held=0) == 6


def test_a_run_that_does_not_fit_waits_and_the_one_that_trains_goes_on() -> None:
    board = Board()
    first = board.join("a", workers=4, min_workers=3)
    second = board.join("b", workers=4, min_workers=2)
    assert first.most(slots=4, capacity=4, held=3) == 4
    assert second.most(slots=1, capacity=4, held=0) == 0
    assert first.most(slots=4, capacity=4, held=3) >= 3


def test_a_run_that_is_gone_claims_nothing() -> None:
    board = Board()
    first = board.join("a", workers=4, min_workers=1)
    second = board.join("b", workers=4, min_workers=1)
    second.most(slots=4, capacity=4, held=2)
    assert first.most(slots=2, capacity=4, held=2) == 2
    second.close()
    assert first.most(slots=4, capacity=4, held=2) == 4
    third = board.join("c", workers=4, min_workers=1)
    third.most(slots=4, capacity=4, held=2)
    board.now_s += STALE_S + 1  # killed
    assert first.most(slots=4, capacity=4, held=2) == 4
