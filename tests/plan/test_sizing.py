"""Growing pays for itself or does not happen; runs on one cluster get what is fair."""

from __future__ import annotations

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.plan.sizing import MARGIN, Claim, fair_shares, worth_growing

seconds = st.floats(0.001, 1000.0)
slots_each = st.integers(1, 64)


@st.composite
def claims(draw: st.DrawFn) -> dict[str, Claim]:
    """What up to six runs want, by name."""
    found: dict[str, Claim] = {}
    for number in range(draw(st.integers(0, 6))):
        least = draw(st.integers(1, 6))
        found[f"run{number}"] = Claim(
            least=least,
            most=draw(st.integers(least, 12)),
            weight=draw(st.sampled_from([0.5, 1.0, 1.5, 3.0, 10.0])),
        )
    return found


# --- growing ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("remaining", "now", "then", "restart_s", "worth"),
    [
        (1000, 4, 2, 10.0, True),  # saves 1 s of every 2 s
        (19, 4, 2, 5.0, False),  # the end is too near
        (21, 4, 2, 5.0, True),
        (1000, 2, 2, 0.1, False),  # nobody would have less to do
        (1000, 2, 3, 0.1, False),
        (1000, 4, 2, 600.0, False),  # it would never come back
        (0, 4, 2, 0.0, False),
    ],
)
def test_growing_must_earn_what_it_costs(
    remaining: int, now: int, then: int, restart_s: float, worth: bool
) -> None:
    assert worth_growing(remaining, 1.0, now, then, restart_s) is worth


@given(
    step_s=seconds, now=slots_each, then=slots_each, restart_s=seconds, remaining=st.integers(0, 99)
)
def test_a_run_that_grows_ends_sooner_than_one_that_does_not(
    remaining: int, step_s: float, now: int, then: int, restart_s: float
) -> None:
    if worth_growing(remaining, step_s, now, then, restart_s):
        grown_s = remaining * step_s * then / now + MARGIN * restart_s
        assert grown_s < remaining * step_s * (1 + 1e-9)


@given(step_s=seconds, now=slots_each, then=slots_each, restart_s=seconds)
def test_once_the_end_is_too_near_it_stays_so(
    step_s: float, now: int, then: int, restart_s: float
) -> None:
    answers = [worth_growing(left, step_s, now, then, restart_s) for left in range(200)]
    assert answers == sorted(answers)
    assert not answers[0]


# --- sharing ---------------------------------------------------------------------------------


@given(slots=st.integers(0, 60), claims=claims())
def test_no_more_is_dealt_than_there_is_or_anyone_wants(
    slots: int, claims: dict[str, Claim]
) -> None:
    shares = fair_shares(slots, claims)
    assert list(shares) == list(claims)
    assert sum(shares.values()) <= slots
    for name, claim in claims.items():
        assert shares[name] == 0 or claim.least <= shares[name] <= claim.most


@given(slots=st.integers(0, 60), claims=claims())
def test_everybody_has_the_least_if_there_is_so_much(slots: int, claims: dict[str, Claim]) -> None:
    shares = fair_shares(slots, claims)
    if slots >= sum(claim.least for claim in claims.values()):
        assert all(shares[name] >= claim.least for name, claim in claims.items())
    left = slots - sum(shares.values())
    for name, claim in claims.items():
        assert shares[name] or claim.least > left, f"{name} waits for what lies idle"


@given(slots=st.integers(0, 60), claims=claims())
def test_nothing_lies_idle_that_a_run_could_use(slots: int, claims: dict[str, Claim]) -> None:
    shares = fair_shares(slots, claims)
    if sum(shares.values()) < slots:
        assert all(shares[name] in {0, claim.most} for name, claim in claims.items())


@given(slots=st.integers(0, 60), claims=claims())
def test_beyond_the_least_shares_are_proportional_to_a_worker(
    slots: int, claims: dict[str, Claim]
) -> None:
    shares = fair_shares(slots, claims)
    for rich, poor in permutations(claims, 2):
        above_least = shares[rich] > claims[rich].least
        could_have_more = 0 < shares[poor] < claims[poor].most
        if above_least and could_have_more:
            without = (shares[rich] - 1) / claims[rich].weight
            assert without <= shares[poor] / claims[poor].weight


@given(slots=st.integers(0, 60), claims=claims())
def test_who_runs_already_loses_nothing_when_the_cluster_grows(
    slots: int, claims: dict[str, Claim]
) -> None:
    shares, more = fair_shares(slots, claims), fair_shares(slots + 1, claims)
    if all(shares.values()):
        assert all(more[name] >= share for name, share in shares.items())


def test_where_there_is_too_little_the_oldest_goes_first() -> None:
    wanted = {name: Claim(least=2, most=8) for name in ("old", "mid", "new")}
    assert fair_shares(5, wanted) == {"old": 3, "mid": 2, "new": 0}
    assert fair_shares(1, wanted) == {"old": 0, "mid": 0, "new": 0}


def test_a_run_too_large_for_the_rest_lets_a_smaller_one_through() -> None:
    wanted = {
        "old": Claim(least=2, most=2),
        "big": Claim(least=4, most=8),
        "new": Claim(least=1, most=1),
    }
    assert fair_shares(4, wanted) == {"old": 2, "big": 0, "new": 1}


def test_weights_are_respected() -> None:
    wanted = {
        "heavy": Claim(least=1, most=99, weight=3.0),
        "light": Claim(least=1, most=99, weight=1.0),
    }
    assert fair_shares(40, wanted) == {"heavy": 30, "light": 10}


def test_what_one_cannot_use_goes_to_the_others() -> None:
    wanted = {"small": Claim(least=1, most=2, weight=9.0), "large": Claim(least=1, most=99)}
    assert fair_shares(12, wanted) == {"small": 2, "large": 10}
