"""A rank that stands still is found, and named; one that is merely slow, or waits, is not.

Groups are played on paper: each rank goes through its phases, waits for the others where ranks
meet, and is asked now and then what it does.
"""

from __future__ import annotations

import bisect
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill.launch.health import FACTOR, FLOOR_S, READ_S, Finding, Health, Hung, Silent, Vitals
from tidemill.train.pulse import Phase, Reading

PATIENCE_S = 300.0
POLL_S = 0.25
STEPS = 40
IN_A_STEP = (
    *(Phase.data, Phase.agree, Phase.accumulate, Phase.loss, Phase.settle, Phase.update),
    *(Phase.keep, Phase.save),
)
MEETING = frozenset({Phase.agree, Phase.loss})
PART = {phase: 0.5 if phase is Phase.accumulate else 0.05 for phase in IN_A_STEP}
STEADY = sum(part for phase, part in PART.items() if phase not in {Phase.settle, Phase.save})


@dataclass
class Play:
    """What every rank does, and when.

    Attributes:
        ranks: Their number.
        step_s: Gives the length of a rank's step.
        extra_s: Seconds that a phase of a step takes longer, on every rank.
        stops: Where each rank stops for ever, if it does.
        meeting: Phases that end for all at once.
        evaluates: Steps that begin with a validation, of so many laps.
    """

    ranks: int = 3
    step_s: Callable[[], float] = lambda: 0.5
    extra_s: Mapping[tuple[int, Phase], float] = field(default_factory=dict)
    stops: Mapping[int, tuple[int, Phase]] = field(default_factory=dict)
    meeting: frozenset[Phase] = MEETING
    evaluates: Mapping[int, int] = field(default_factory=dict)
    steps: int = STEPS

    def __post_init__(self) -> None:
        self.now_s = [0.0] * self.ranks
        self.beats: list[list[tuple[float, Vitals]]] = [[] for _ in range(self.ranks)]
        self._go(-1, Phase.starting, 5.0)
        for step in range(self.steps):
            for lap in range(self.evaluates.get(step, 0)):
                self._go(step, Phase.evaluate, 0.4, lap=lap)
            lengths = [self.step_s() for _ in range(self.ranks)]
            for phase in IN_A_STEP:
                after = step + (phase in {Phase.keep, Phase.save})
                self._go(after, phase, *(PART[phase] * length for length in lengths))

    def _go(self, step: int, phase: Phase, *seconds: float, lap: int = 0) -> None:
        for rank in range(self.ranks):
            if math.isinf(self.now_s[rank]):
                continue
            said = Vitals(attempt=1, step=step, phase=phase, lap=lap, age_s=0.0)
            self.beats[rank].append((self.now_s[rank], said))
            self.now_s[rank] += seconds[rank % len(seconds)] + self.extra_s.get((step, phase), 0.0)
            if self.stops.get(rank) == (step, phase):
                self.now_s[rank] = math.inf
        if phase in self.meeting:
            self.now_s = [max(self.now_s)] * self.ranks

    @property
    def stood_still_s(self) -> float:
        """When the last beat was."""
        return max(beats[-1][0] for beats in self.beats)

    def polls(self, times_s: Iterable[float]) -> Iterator[tuple[float, dict[int, Vitals | None]]]:
        begins = [[at_s for at_s, _ in beats] for beats in self.beats]
        for now_s in times_s:
            told: dict[int, Vitals | None] = {}
            for rank, beats in enumerate(self.beats):
                at_s, said = beats[bisect.bisect_right(begins[rank], now_s) - 1]
                told[rank] = replace(said, age_s=now_s - at_s)
            yield now_s, told

    def worst_moments(self, apart_s: float) -> list[float]:
        """Times just before somebody goes on, but only so many."""
        chosen = [0.0]
        for at_s in sorted(at_s for beats in self.beats for at_s, _ in beats):
            if at_s - chosen[-1] > apart_s:
                chosen.append(at_s - 1e-6)
        return chosen


def steadily(until_s: float) -> Iterator[float]:
    return (number * POLL_S for number in range(int(until_s / POLL_S)))


def found(
    play: Play, times_s: Iterable[float], health: Health | None = None
) -> list[tuple[float, Finding]]:
    """All that is found, and when."""
    health = health or Health(0.0, PATIENCE_S)
    health.begin(0.0)
    return [
        (now_s, finding)
        for now_s, told in play.polls(times_s)
        for finding in health.feed(told, now_s)
    ]


# --- no false alarm --------------------------------------------------------------------------


PAUSES = st.floats(0.0, PATIENCE_S - 60)


@settings(max_examples=25)
@given(
    chance=st.randoms(use_true_random=True),
    median_s=st.floats(0.05, 15.0),
    sigma=st.floats(0.0, 0.6),
    ranks=st.integers(1, 4),
    pauses=st.tuples(PAUSES, PAUSES, PAUSES),
)
def test_slow_noisy_and_pausing_is_not_hanging(
    *,
    chance: random.Random,
    median_s: float,
    sigma: float,
    ranks: int,
    pauses: tuple[float, float, float],
) -> None:
    play = Play(
        ranks=ranks,
        step_s=lambda: median_s * chance.lognormvariate(0.0, sigma),
        extra_s=dict(
            zip([(0, Phase.accumulate), (20, Phase.save), (25, Phase.settle)], pauses, strict=True)
        ),
        evaluates={10: 50, 30: 200},
    )
    assert found(play, play.worst_moments(median_s / 3)) == []


def test_many_noisy_steps_raise_no_alarm() -> None:
    chance = random.Random(7)
    play = Play(step_s=lambda: 12.0 * chance.lognormvariate(0.0, 0.5), steps=500)
    assert found(play, play.worst_moments(4.0)) == []


# --- who, where, when ------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("phase", [phase for phase in IN_A_STEP if phase not in MEETING])
def test_the_rank_that_stops_is_named(phase: Phase, rank: int) -> None:
    place = (30, phase)
    play = Play(stops={rank: place})
    bound_s = {Phase.data: READ_S, Phase.settle: PATIENCE_S, Phase.save: PATIENCE_S}.get(
        phase, FLOOR_S
    )
    ((at_s, finding),) = found(play, steadily(400.0))
    assert isinstance(finding, Hung)
    assert (finding.ranks, (finding.step, finding.phase)) == ((rank,), place)
    assert bound_s < at_s - play.stood_still_s <= bound_s + 2 * POLL_S
    assert finding.after_s >= at_s - play.stood_still_s


def test_a_lap_of_a_validation_tells_who_stopped() -> None:
    said = Vitals(attempt=1, step=20, phase=Phase.evaluate, age_s=PATIENCE_S + 1)
    told: dict[int, Vitals | None] = {
        rank: replace(said, lap=lap) for rank, lap in enumerate((8, 2, 8))
    }
    assert Health(0.0, PATIENCE_S).feed(told, 0.0) == [
        Hung((1,), 20, Phase.evaluate, PATIENCE_S + 1)
    ]


def test_two_that_stop_are_both_named() -> None:
    play = Play(ranks=4, stops=dict.fromkeys((1, 3), (30, Phase.keep)))
    ((_, finding),) = found(play, steadily(100.0))
    assert isinstance(finding, Hung)
    assert finding.ranks == (1, 3)
    assert str(finding).startswith("ranks hang in step 30 (keep), 1")


def test_where_all_are_equally_far_all_are_named() -> None:
    play = Play(stops={1: (30, Phase.loss)})
    ((_, finding),) = found(play, steadily(100.0))
    assert isinstance(finding, Hung)
    assert finding.ranks == (0, 1, 2)


def test_a_hang_on_the_way_to_the_first_step_is_found_too() -> None:
    play = Play(stops={1: (-1, Phase.starting)}, meeting=MEETING | {Phase.starting})
    ((at_s, finding),) = found(play, steadily(2 * PATIENCE_S))
    assert PATIENCE_S < at_s <= PATIENCE_S + 6
    assert str(finding).startswith("ranks hang in starting, 300.")


def test_a_hang_in_the_first_steps_is_found_late() -> None:
    play = Play(stops={1: (2, Phase.accumulate)})
    ((at_s, _),) = found(play, steadily(2 * PATIENCE_S))
    assert PATIENCE_S < at_s - play.stood_still_s <= PATIENCE_S + 2 * POLL_S


def test_slow_steps_are_given_more_time() -> None:
    play = Play(step_s=lambda: 8.0, stops={1: (30, Phase.update)})
    health = Health(0.0, PATIENCE_S)
    ((at_s, _),) = found(play, steadily(1000.0), health)
    assert health.step_s == pytest.approx(8.0 * STEADY, rel=0.05)
    assert at_s - play.stood_still_s == pytest.approx(FACTOR * 8.0 * STEADY, rel=0.05)


def test_validations_and_saves_do_not_make_a_step_longer() -> None:
    often = range(6, STEPS, 3)
    play = Play(
        step_s=lambda: 4.0,
        evaluates=dict.fromkeys(often, 40),
        extra_s={(step, Phase.save): 30.0 for step in often},
    )
    health = Health(0.0, PATIENCE_S)
    assert found(play, steadily(play.stood_still_s), health) == []
    assert health.step_s == pytest.approx(4.0 * STEADY, rel=0.1)
    assert health.bound_s(Phase.update) == pytest.approx(FACTOR * 4.0 * STEADY, rel=0.1)


def test_a_person_may_say_how_long() -> None:
    play = Play(stops={1: (30, Phase.data)})
    ((at_s, _),) = found(play, steadily(100.0), Health(2.0, PATIENCE_S))
    assert 2.0 < at_s - play.stood_still_s <= 2.0 + 2 * POLL_S
    # But not where no step foretells it.
    play = Play(extra_s={(-1, Phase.starting): 60.0, (20, Phase.save): 60.0})
    assert found(play, steadily(play.stood_still_s), Health(2.0, PATIENCE_S)) == []


def test_a_hang_is_told_once_in_a_group_and_anew_in_the_next() -> None:
    play, health = Play(stops={1: (30, Phase.data)}), Health(0.0, PATIENCE_S)
    assert len(found(play, steadily(400.0), health)) == 1
    assert len(found(play, steadily(400.0), health)) == 1


def test_ranks_that_are_done_hold_up_nobody() -> None:
    health = Health(0.0, PATIENCE_S)
    told: dict[int, Vitals | None] = {
        rank: Vitals(attempt=1, step=9, phase=phase, age_s=1000.0, ended_s=ended_s)
        for rank, (phase, ended_s) in enumerate(
            [(Phase.parked, 0.0), (Phase.data, 1000.0), (Phase.save, 1000.0)]
        )
    }
    assert health.feed(told, 1000.0) == []


def test_the_rank_that_is_last_to_end_is_named() -> None:
    health = Health(0.0, PATIENCE_S)
    done = Vitals(attempt=1, step=9, phase=Phase.save, age_s=400.0, ended_s=390.0)
    stuck = Vitals(attempt=1, step=9, phase=Phase.save, age_s=400.0)
    (finding,) = health.feed({0: done, 1: stuck}, 400.0)
    assert finding == Hung((1,), 9, Phase.save, 400.0)
    assert str(finding) == "rank 1 hangs in step 9 (save), 400.0 s without progress"


# --- silence ---------------------------------------------------------------------------------


def silenced(
    play: Play, rank: int, from_s: float, *, unreachable: bool, for_s: float = math.inf
) -> list[tuple[float, Finding]]:
    health = Health(0.0, PATIENCE_S)
    health.begin(0.0)
    all_found: list[tuple[float, Finding]] = []
    for now_s, told in play.polls(steadily(100.0)):
        mute = from_s <= now_s < from_s + for_s
        if mute:
            told[rank] = None
        cut_off = [rank] if mute and unreachable else []
        all_found += [(now_s, finding) for finding in health.feed(told, now_s, cut_off)]
    return all_found


@pytest.mark.parametrize(("unreachable", "bound_s"), [(True, 3.0), (False, 15.0)])
def test_a_rank_that_does_not_answer_is_gone(unreachable: bool, bound_s: float) -> None:
    play = Play(steps=400)
    ((at_s, finding),) = silenced(play, 1, 30.0, unreachable=unreachable)
    assert isinstance(finding, Silent)
    assert finding.rank == 1
    assert 30.0 + bound_s - POLL_S <= at_s <= 30.0 + bound_s + 2 * POLL_S
    assert str(finding) == f"rank 1 has not answered for {finding.after_s:.1f} s"


def test_a_worker_that_compiles_may_be_silent_for_longer() -> None:
    play = Play(extra_s={(0, Phase.accumulate): 1000.0})
    ((at_s, finding),) = silenced(play, 1, 1.0, unreachable=False)
    assert isinstance(finding, Silent)
    assert at_s > 60.0


@pytest.mark.parametrize("unreachable", [True, False])
def test_a_short_silence_is_nothing(unreachable: bool) -> None:
    assert silenced(Play(steps=400), 1, 30.0, unreachable=unreachable, for_s=2.9) == []


def test_a_rank_that_never_answered_is_gone_too() -> None:
    health = Health(0.0, PATIENCE_S, silent_s=1.0)
    health.begin(50.0)
    assert health.feed({0: None}, 50.9, [0]) == []
    (finding,) = health.feed({0: None}, 51.5, [0])
    assert finding == Silent(0, 1.5)


def test_a_hang_is_found_though_a_poll_is_missed_now_and_then() -> None:
    chance = random.Random(3)
    play, health = Play(stops={1: (30, Phase.update)}), Health(0.0, PATIENCE_S)
    all_found: list[Finding] = []
    for now_s, told in play.polls(steadily(60.0)):
        told[chance.randrange(3)] = None
        all_found += health.feed(told, now_s)
    (finding,) = all_found
    assert isinstance(finding, Hung)
    assert finding.ranks == (1,)


def test_readings_are_compared() -> None:
    health = Health(0.0, PATIENCE_S)
    told: list[Finding] = []
    for number in range(1, 30):
        vitals = {
            rank: Vitals(
                attempt=1,
                step=number,
                phase=Phase.data,
                age_s=0.0,
                reading=Reading(number=number, compute_s=seconds, data_s=0.0),
            )
            for rank, seconds in enumerate((0.001, 0.003, 0.001))
        }
        told += health.feed(vitals, float(number))
    ((rank, slowdown),) = [(one.rank, one.slowdown) for one in told if hasattr(one, "slowdown")]  # pyright: ignore[reportAttributeAccessIssue]
    assert (rank, slowdown) == (1, pytest.approx(3.0))
