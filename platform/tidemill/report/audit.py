"""What an audit of a run's samples found: epoch by epoch, then what is wrong, then the verdict."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.text import Text

from tidemill.report.cells import make_table, make_title
from tidemill.report.history import Flaw
from tidemill.report.quantities import count_noun

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

MOST_FLAWS = 10
MOST_ROWS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochRow:
    """An epoch, or several in a row of which the same is to be said.

    Attributes:
        first: Number of the first.
        last: Number of the last.
        samples: That the history reaches of them; all there are, unless it ends or begins there.
        proven: That are known to have been used, and once.
        whole: Whether the history reaches all of them.
        first_step: Number of the first step that used some of them.
        last_step: Of the last one.
    """

    first: int
    last: int
    samples: int
    proven: int
    whole: bool
    first_step: int
    last_step: int

    @property
    def clean(self) -> bool:
        """Whether nothing is wrong with them."""
        return self.proven == self.samples


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """What became of the samples of a run.

    Attributes:
        place: The run's directory.
        clean: Whether every step that was reached is told, once, and used what it should.
        steps: Steps of its history.
        first_step: Number of the first; not 0 for a run that goes on from another one.
        origin: What that was; empty for a run that began with nothing.
        samples: Samples that the history used.
        epoch_samples: Samples per epoch.
        attempts: The newest attempt.
        taken_back: Steps that were told and are not part of the history, because of restarts.
        epochs: All that the history reaches.
        flaws: What is wrong, by step.
    """

    place: str
    clean: bool
    steps: int
    first_step: int
    origin: str
    samples: int
    epoch_samples: int
    attempts: int
    taken_back: int
    epochs: tuple[EpochRow, ...]
    flaws: tuple[Flaw, ...]


def audit_page(page: Audit) -> Iterator[RenderableType]:
    """What was looked at, a row for each epoch, what is wrong, and the verdict."""
    told = f"{count_noun(page.steps, 'step')} in {count_noun(page.attempts, 'attempt')}"
    yield make_title(page.place, f"{told}, {count_noun(page.samples, 'sample')}")
    if page.origin:
        after = f"step {page.first_step:,} of " if page.first_step else ""
        yield Text(f"goes on from {after}{page.origin}")
    if page.taken_back:
        yield Text(f"{count_noun(page.taken_back, 'step')} besides, taken back by restarts")
    yield Text()
    if page.epochs:
        yield _table(page)
        yield Text()
    for flaw in page.flaws[:MOST_FLAWS]:
        yield Text(say_flaw(flaw), "red")
    if (more := len(page.flaws) - MOST_FLAWS) > 0:
        yield Text(f"and {more:,} more; format=json names all", "red")
    yield _verdict(page)


def say_flaw(flaw: Flaw) -> str:
    """`steps 5–7 of attempt 2: used another number of samples than a step has`."""
    steps = "step" if flaw.first == flaw.last else "steps"
    whose = f" of attempt {flaw.attempt}" if flaw.attempt else ""
    return f"{steps} {_span(flaw.first, flaw.last)}{whose}: {flaw.problem}"


def _table(page: Audit) -> Table:
    table = make_table(">epoch", ">used once", ">of", ">steps", "")
    hidden = slice(MOST_ROWS - 2, max(MOST_ROWS - 2, len(page.epochs) - 2))
    for number, row in enumerate(page.epochs):
        if hidden.start <= number < hidden.stop:
            if number == hidden.start:
                table.add_row("…")
            continue
        if not row.clean:
            outcome = Text("WRONG", "bold red")
        elif row.whole:
            outcome = Text("every sample once", "green")
        else:
            so_far = ", so far" if row is page.epochs[-1] else ""
            outcome = Text(f"none twice{so_far}")
        table.add_row(
            _span(row.first, row.last),
            f"{row.proven:,}",
            f"{(row.last - row.first + 1) * page.epoch_samples:,}",
            _span(row.first_step, row.last_step),
            outcome,
        )
    return table


def _verdict(page: Audit) -> Text:
    if not page.clean:
        wrong = f"not clean: {say_flaw(page.flaws[0])}"
        return Text(wrong, "bold red")
    if not page.epochs:
        return Text("nothing to prove yet: no step was taken")
    whole = [row for row in page.epochs if row.whole]
    parts: list[str] = []
    if whole:
        epochs = sum(row.last - row.first + 1 for row in whole)
        parts.append(f"every sample of {count_noun(epochs, 'epoch')} was used exactly once")
    if rest := sum(row.samples for row in page.epochs if not row.whole):
        one = "one" if whole else "epoch"
        parts.append(f"{count_noun(rest, 'sample')} of an unfinished {one} so far, none twice")
    return Text(f"clean: {'; '.join(parts)}", "bold green")


def _span(first: int, last: int) -> str:
    return f"{first:,}" if first == last else f"{first:,}–{last:,}"
