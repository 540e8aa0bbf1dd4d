"""One run, many lives: processes die, leave and join, and the loss curve is that of a calm run.

Tolerances are those of `tests/train/strategy/test_parity.py`: 2e-6 in fp32, and in low precision
what it differs from fp32 anyway. A rebuilt engine begins with other weights, so only what it is
filled with from the memory of processes can make it right.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.kit.lives import Kill, Lives, Place, Story, Usage
from tests.kit.training import STRATEGIES, in_precision, losses_of, plain_losses, tiny_run
from tests.kit.world import run_world
from tidemill.spec.run import Reproducibility, RunSpec
from tidemill.spec.training import PrecisionKind, PrecisionSpec

TOLERANCE = {"fp32": 2e-6, "bf16": 5e-3, "fp16": 1e-3}
STEPS = 9
REJOINS = 100
GROWTH_MB = 0.1  # most that a process may grow with each group, once the first ones are behind it
PLACES = [place for place in Place if place is not Place.restore]
# Where the two deaths of a run come. With four ranks a rank has but one slot, so the place between
# two slots comes second.
DEATHS = {
    "ddp": (Place.forward, Place.slots),
    "fsdp2": (Place.before_update, Place.commit),
    "deepspeed_z1": (Place.before_update, Place.after_update),
    "deepspeed_z2": (Place.commit, Place.slots),
    "deepspeed_z3": (Place.after_update, Place.forward),
}
PRECISIONS = {
    "ddp": ("fp32",),
    "fsdp2": ("fp32", "fp16"),
    "deepspeed_z1": ("fp32", "fp16"),
    "deepspeed_z2": ("fp32",),
    "deepspeed_z3": ("fp32", "bf16"),
}


@pytest.fixture(scope="module")
def undisturbed() -> Iterator[list[float]]:
    """Losses of a plain torch loop that nothing disturbs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield plain_losses(tiny_run(steps=STEPS))
    torch.set_num_threads(threads)


class Chronicle:
    """Leads a run through its lives, and looks at everybody after each."""

    def __init__(self, lives: Lives, every: int = 1) -> None:
        self.lives, self.every = lives, every
        self.usage: dict[int, Usage] = {}
        self.rebuilds: Counter[int] = Counter()

    def calm(self, size: int, until: int, stay: Sequence[int] | None = None) -> list[Story]:
        """An attempt that ends as it should."""
        stories = self._live(size, until, stay, None)
        assert len(stories) == size, stories[0]
        for story in stories:
            assert not story.problem, story
            assert max(story.losses) == until - 1
            assert story.checksums == stories[0].checksums
        return stories

    def deadly(self, size: int, kill: Kill) -> list[Story]:
        """An attempt that one rank does not survive; the others hear of it at once."""
        stories = self._live(size, self.lives.run.steps, None, kill)
        assert len(stories) == size - 1, stories[0]
        for story in stories:
            assert story.problem, story
            assert story.checksums == stories[0].checksums
            assert max(story.losses, default=kill.step - 1) in {kill.step - 1, kill.step}
        return stories

    def _live(
        self, size: int, until: int, stay: Sequence[int] | None, kill: Kill | None
    ) -> list[Story]:
        told = self.lives.train(size, until, stay=stay, kill=kill, every=self.every)
        stories = [story for story in told if story is not None]
        for story in stories:
            assert not story.survivors, story
            assert self.usage.setdefault(story.process, story.usage) == story.usage
            self.rebuilds[story.process] += 1
        return stories


def _worst(lives: Lives, reference: list[float]) -> float:
    """How far any loss is off, those of steps that were taken twice included."""
    assert sorted(lives.losses) == list(range(len(reference)))
    return max(abs(loss - reference[step]) for step in lives.losses for loss in lives.losses[step])


def _many_lives(run: RunSpec, place: Path, first: Place, second: Place) -> Lives:
    """Two ranks, two join, one dies, another dies, one leaves, and three join the last one."""
    with Lives(run, place) as lives:
        tale = Chronicle(lives)
        tale.calm(2, until=2)
        tale.deadly(4, Kill(0, 3, first))
        tale.deadly(3, Kill(2, 4, second))
        left = tale.calm(2, until=6, stay=[1])
        alone = tale.calm(1, until=7)
        tale.calm(4, until=STEPS)
    assert left[0].checksums[1] == alone[0].checksums[0]
    return lives


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_many_lives_have_one_loss_curve(
    strategy: str, tmp_path: Path, undisturbed: list[float]
) -> None:
    lives = _many_lives(tiny_run(strategy, steps=STEPS), tmp_path, *DEATHS[strategy])
    assert _worst(lives, undisturbed) <= TOLERANCE["fp32"]


def test_many_lives_of_a_bitwise_run_have_the_same_bits(tmp_path: Path) -> None:
    run = tiny_run("ddp", steps=STEPS, reproducibility=Reproducibility.bitwise)
    lives = _many_lives(run, tmp_path, Place.after_update, Place.commit)
    assert _worst(lives, run_world(losses_of, 1, run)[0]) == 0


@pytest.mark.parametrize(("strategy", "kind"), [("fsdp2", "bf16"), ("deepspeed_z3", "fp16")])
def test_so_it_is_in_low_precision(
    strategy: str, kind: str, tmp_path: Path, undisturbed: list[float]
) -> None:
    run = tiny_run(strategy, steps=STEPS, precision=in_precision(kind))
    with Lives(run, tmp_path) as lives:
        tale = Chronicle(lives)
        tale.deadly(3, Kill(2, 2, Place.after_update))
        tale.calm(2, until=STEPS)
    assert _worst(lives, undisturbed) <= TOLERANCE[kind]


def test_steps_since_the_last_copy_are_taken_again(
    tmp_path: Path, undisturbed: list[float]
) -> None:
    with Lives(tiny_run("deepspeed_z2", steps=STEPS), tmp_path) as lives:
        tale = Chronicle(lives, every=3)
        tale.deadly(3, Kill(1, 5, Place.forward))
        (again, _) = tale.calm(2, until=7, stay=[1])
        (alone,) = tale.calm(1, until=STEPS)
    assert again.began == 3
    assert alone.began == 7  # what is handed over is the newest state, though no copy is due
    assert _worst(lives, undisturbed) <= TOLERANCE["fp32"]


@pytest.mark.parametrize("strategy", ["ddp", "deepspeed_z3"])
def test_a_death_while_engines_are_filled_costs_no_step(
    strategy: str, tmp_path: Path, undisturbed: list[float]
) -> None:
    with Lives(tiny_run(strategy, steps=STEPS), tmp_path, warm=True) as lives:
        tale = Chronicle(lives)
        tale.calm(2, until=3)
        tale.deadly(3, Kill(1, 3, Place.restore))
        (story, _) = tale.calm(2, until=STEPS)
    assert story.began == 3
    assert _worst(lives, undisturbed) <= TOLERANCE["fp32"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_group_rebuilt_at_its_size_cannot_be_told(strategy: str, tmp_path: Path) -> None:
    """Bit for bit, in fp16 with a loss scale that moves; the first run is that of new processes."""
    with Lives(tiny_run(strategy), tmp_path) as lives:
        tale = Chronicle(lives)
        for kind in PRECISIONS[strategy]:
            precision = PrecisionSpec(kind=PrecisionKind(kind), initial_scale_power=18)
            run = tiny_run(strategy, steps=6, precision=precision)
            lives.start_over(run)
            (calm, _) = tale.calm(2, until=6)
            lives.start_over(run)
            tale.calm(2, until=2)
            tale.calm(2, until=4)
            (rebuilt, _) = tale.calm(2, until=6)
            assert {step: heard[0] for step, heard in lives.losses.items()} == calm.losses
            assert rebuilt.checksums[-1] == calm.checksums[-1]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("strategy", ["ddp", "deepspeed_z3"])
def test_a_hundred_deaths_and_newcomers_leave_nothing_behind(strategy: str, tmp_path: Path) -> None:
    """Two processes see a third one die a hundred times, and a new one come."""
    run = tiny_run(strategy, steps=3 * REJOINS)
    told: list[Story] = []
    with Lives(run, tmp_path) as lives:
        tale = Chronicle(lives)
        for place in itertools.islice(itertools.cycle(PLACES), REJOINS):
            done = max(told[-1].losses) if told else -1
            told.append(tale.deadly(3, Kill(2, done + 2, place))[0])
        assert set(tale.rebuilds.values()) == {REJOINS}
    done = max(told[-1].losses)
    reference = plain_losses(replace(run, steps=done + 1))
    assert _worst(lives, reference) <= TOLERANCE["fp32"]
    growth_mb = told[-1].resident_mb - told[REJOINS // 5].resident_mb
    assert growth_mb / (REJOINS - REJOINS // 5) < GROWTH_MB
