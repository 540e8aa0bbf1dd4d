"""Every step leaves a line that says which samples were used, by all ranks together."""

from __future__ import annotations

from typing import Any

from tests.kit.training import RaggedStream, run_tiny, tiny_run
from tests.kit.world import run_world
from tidemill.plan.batch import Slot
from tidemill.spec.progress import World
from tidemill.spec.run import ReportSpec
from tidemill.spec.training import BatchSpec, GptSpec
from tidemill.train.loop import tally

STEPS, SIZE = 5, 4
HUGE = 2**62 + 1


def _told(world: World) -> list[tuple[str, dict[str, Any]]]:
    """What this rank records of a run with more ranks than samples."""
    run = tiny_run(
        steps=STEPS,
        model=GptSpec(layers=1, heads=1, width=8),
        batch=BatchSpec(global_size=SIZE, micro_size=1, sequence=24),
        report=ReportSpec(every_steps=3),
    )
    take = RaggedStream.take

    def marked(self: RaggedStream, first: int, slot: Slot) -> Any:
        samples = take(self, first, slot)
        samples.marks[:] += HUGE  # so that sums wrap around
        return samples

    RaggedStream.take = marked  # type: ignore[method-assign]
    heard, _ = run_tiny(world, run)
    return [(kind.value, fields) for kind, fields in heard.heard]


def test_each_step_is_told_with_the_samples_of_all_ranks() -> None:
    first, second, third = run_world(_told, 3)
    assert [kind for kind, _ in first] == ["step", "used", "used", "step", "step", "finished"]
    ledger = ("step", "samples", "count", "digest")
    for told in (first, second, third):
        assert [tuple(fields.get(key) for key in ledger) for _, fields in told[:-1]] == [
            (
                step,
                (step + 1) * SIZE,
                SIZE,
                f"{sum(step * SIZE + n + HUGE for n in range(SIZE)) % 2**64:016x}",
            )
            for step in range(STEPS)
        ]
    kinds = {kind: set(fields) for kind, fields in first}
    assert kinds["used"] == {"step", "samples", "count", "digest"}
    assert kinds["used"] < kinds["step"]


def test_a_tally_leaves_out_dummies_and_wraps_around() -> None:
    stream = RaggedStream()
    taken = [stream.take(8, Slot(start=start, size=size)) for start, size in ((0, 2), (2, 0))]
    assert tally(taken) == (2, 8 + 9)
    assert tally(taken[1:]) == (0, 0)
    taken[0].marks[:] = [2**63 - 1, 2]
    count, digest = tally(taken)
    assert (count, digest) == (2, -(2**63) + 1)
