"""The page of a plan: what a run will need, what it will cost, and what to type."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tidemill.report.blocks import Block, Commands, Grid, Heading, Lines, as_markdown, on_screen
from tidemill.report.cells import make_title
from tidemill.report.market import RefusalRow
from tidemill.report.quantities import count_noun, show_count, show_duration

if TYPE_CHECKING:
    from rich.console import RenderableType

HOUR_S = 3600.0
MOST_REASONS = 8
SHORT_S = 0.1
"""Seconds below which a step is told in thousandths."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldRow:
    """A run at one number of workers.

    Attributes:
        workers: It.
        samples: Most that one of them takes per step.
        micro_batches: In how many pieces.
        micro_size: Samples of the largest piece.
        need_gib: Memory that it needs of its GPU.
        need_terms_gib: What that is made of.
        moment: When it needs that.
    """

    workers: int
    samples: int
    micro_batches: int
    micro_size: int
    need_gib: float
    need_terms_gib: Mapping[str, float]
    moment: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuRow:
    """A run on one kind of GPU.

    Attributes:
        gpu: Its name.
        memory_gib: Its memory.
        fits_from: Fewest workers with which the run fits; None if it does with none.
        workers: For which the rest is told.
        step_s: Seconds of a step, likely.
        low_s: The same, if everything goes well.
        high_s: The same, if nothing does.
        tokens_per_s: Of all workers, likely.
        hours: Of the whole run, likely.
        remedy: What would make it fit; empty if it does, or nothing would.
    """

    gpu: str
    memory_gib: float
    fits_from: int | None
    workers: int
    step_s: float | None
    low_s: float | None
    high_s: float | None
    tokens_per_s: float | None
    hours: float | None
    remedy: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChoiceRow:
    """Machines for a run.

    Attributes:
        machines: Which, and how many.
        workers: Ranks.
        usd_per_hour: Of all of them.
        hours: From the first machine to the last step, likely.
        low_hours: The same, if everything goes well.
        high_hours: The same, if nothing does.
        usd: Likely cost, with everything.
        terms_usd: What that is made of; adds up to the cent.
        losses: Machines that can be expected to go.
        why: What it costs more than the first, and why.
    """

    machines: str
    workers: int
    usd_per_hour: float
    hours: float
    low_hours: float
    high_hours: float
    usd: float
    terms_usd: Mapping[str, float]
    losses: float
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanPage:
    """A plan.

    Attributes:
        name: Of the run.
        facts: What it is, by what is said of it.
        worlds: By number of workers.
        gpus: By kind of GPU.
        choices: Machines, cheapest first.
        more: Choices that are not shown.
        decision: What to do now where there is a deadline; empty if there is none.
        refused: Offers that may not or cannot be used.
        skipped: Providers that did not answer.
        notes: What to know of all that.
        commands: What to type.
    """

    name: str
    facts: Mapping[str, str]
    worlds: tuple[WorldRow, ...]
    gpus: tuple[GpuRow, ...]
    choices: tuple[ChoiceRow, ...]
    more: int
    decision: str
    refused: tuple[RefusalRow, ...]
    skipped: tuple[RefusalRow, ...]
    notes: tuple[str, ...]
    commands: tuple[str, ...]


def plan_page(page: PlanPage) -> Iterator[RenderableType]:
    """A plan for a terminal."""
    best = page.choices[0] if page.choices else None
    said = "no machines for it" if best is None else f"{_usd(best.usd)} and {_hours(best.hours)}"
    yield make_title(f"plan of {page.name}", said)
    yield from on_screen(_blocks(page))


def plan_markdown(page: PlanPage) -> str:
    """A plan as a file."""
    return as_markdown(f"Plan of {page.name}", _blocks(page))


def _blocks(page: PlanPage) -> Iterator[Block]:
    yield Grid(("run", ""), tuple(page.facts.items()))
    yield Heading("workers")
    yield _worlds(page)
    if page.gpus:
        yield Heading(f"GPUs, {page.gpus[0].workers} of them in one machine or as close as can be")
        yield _gpus(page)
    if page.choices:
        yield Heading("machines, by what the run costs on them")
        yield _choices(page)
        if page.more:
            yield Lines((f"and {page.more:,} more: top={len(page.choices) + page.more}",))
        yield Heading("bill of the first")
        yield _bill(page.choices[0])
    if page.decision:
        yield Heading("with a deadline")
        yield Lines((page.decision,))
    if page.notes:
        yield Heading("to know")
        yield Lines(page.notes)
    if page.skipped:
        yield Heading("not asked, or no answer")
        yield Lines(tuple(f"{row.subject}: {row.reason}; {row.remedy}" for row in page.skipped))
    if page.refused:
        yield Heading(f"refused: {count_noun(len(page.refused), 'offer')}")
        yield Lines(tuple(_reasons(page.refused)))
    if page.commands:
        yield Heading("to run it on the first")
        yield Commands(page.commands)


def _worlds(page: PlanPage) -> Grid:
    heads = (">workers", ">samples each", ">micro-batches", ">of at most", ">GPU memory", "when")
    rows = tuple(
        (
            str(row.workers),
            str(row.samples),
            str(row.micro_batches),
            str(row.micro_size),
            f"{row.need_gib:.1f} GiB",
            f"{row.moment}: {_largest(row.need_terms_gib)}",
        )
        for row in page.worlds
    )
    return Grid(heads, rows)


def _largest(terms_gib: Mapping[str, float]) -> str:
    """The largest terms in a few words."""
    largest = sorted(terms_gib.items(), key=lambda term: -term[1])[:3]
    return ", ".join(f"{name} {gib:.1f}" for name, gib in largest if gib >= 0.05)  # noqa: PLR2004


def _gpus(page: PlanPage) -> Grid:
    heads = ("GPU", ">GiB", "fits", ">step", "from–to", ">tokens/s", ">run")
    rows: list[tuple[str, ...]] = []
    for row in page.gpus:
        fits = "no" if row.fits_from is None else f"from {count_noun(row.fits_from, 'worker')}"
        if row.fits_from is not None and row.fits_from <= page.worlds[0].workers:
            fits = "yes"
        if row.remedy:
            fits += f", with {row.remedy}" if fits == "no" else ""
        if row.step_s is None or row.low_s is None or row.high_s is None:
            told = ("", "", "", "")
        else:
            told = (
                _seconds(row.step_s),
                f"{_seconds(row.low_s)}–{_seconds(row.high_s)}",
                show_count(row.tokens_per_s or 0.0),
                _hours(row.hours or 0.0),
            )
        rows.append((row.gpu, f"{row.memory_gib:g}", fits, *told))
    return Grid(heads, tuple(rows))


def _choices(page: PlanPage) -> Grid:
    heads = (">cost", ">time", "from–to", ">$/h", ">lost", "machines", "why not first")
    rows = tuple(
        (
            _usd(row.usd),
            _hours(row.hours),
            f"{_hours(row.low_hours)}–{_hours(row.high_hours)}",
            f"{row.usd_per_hour:,.2f}",
            f"{row.losses:.2f}",
            row.machines,
            row.why,
        )
        for row in page.choices
    )
    return Grid(heads, rows)


def _bill(choice: ChoiceRow) -> Grid:
    terms = [(name.replace("_", " "), _usd(usd)) for name, usd in choice.terms_usd.items() if usd]
    return Grid(("for", ">cost"), (*terms, ("in all", _usd(choice.usd))))


def _reasons(rows: tuple[RefusalRow, ...]) -> Iterator[str]:
    counts = Counter((row.reason, row.remedy) for row in rows)
    for (reason, remedy), count in counts.most_common(MOST_REASONS):
        yield f"{count:,}: {reason}" + (f"; {remedy}" if remedy else "")
    if len(counts) > MOST_REASONS:
        yield f"and {count_noun(len(counts) - MOST_REASONS, 'other reason')}: --json has all"


def _usd(usd: float) -> str:
    return f"${usd:,.2f}"


def _hours(hours: float) -> str:
    return show_duration(hours * HOUR_S)


def _seconds(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= SHORT_S else f"{1000 * seconds:.3g} ms"
