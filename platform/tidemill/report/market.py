"""Pages about machines that can be rented: a table for people, the same as JSON for programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.text import Text

from tidemill.report.cells import make_table, make_title
from tidemill.report.quantities import count_noun, show_duration

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult

TIER_STYLES = {"secure": "green", "managed": "", "community": "yellow"}
STATUS_STYLES = {"ga": "green", "at-risk": "yellow", "attach-only": "yellow", "legacy": "red"}
MOST_REASONS = 12
ROOMY = 110
"""Columns of a terminal from which on a table of offers has all of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferRow:
    """A machine that can be rented.

    Attributes:
        provider: Who rents it out.
        id: What it is called there.
        region: Where it is.
        country: Two-letter code; empty if unknown.
        gpu: Name of its GPUs.
        gpus: How many.
        gpu_mem_gib: Memory of one.
        spot: Whether it may be taken back.
        usd_per_hour: Price of the machine.
        usd_per_gpu_hour: Price of one GPU.
        effective_usd_per_gpu_hour: The same with everything that is paid besides.
        terms_usd: What that is made of, dollars for the hours that were asked about.
        tier: How far its owner can be trusted.
        reliability: Share of time that it was up; None if not stated.
        network: What connects several.
        available: How many there are; None if not stated.
        age_s: Age of the price; None if undated.
        live: Whether the provider said so just now.
        source: Where the price is from.
    """

    provider: str
    id: str
    region: str
    country: str
    gpu: str
    gpus: int
    gpu_mem_gib: float
    spot: bool
    usd_per_hour: float
    usd_per_gpu_hour: float
    effective_usd_per_gpu_hour: float
    terms_usd: dict[str, float]
    tier: str
    reliability: float | None
    network: str
    available: int | None
    age_s: float | None
    live: bool
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusalRow:
    """What is not listed.

    Attributes:
        subject: A provider, or an offer.
        reason: Why.
        remedy: What would change that; empty if nothing a person can set.
    """

    subject: str
    reason: str
    remedy: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OffersPage:
    """Machines, cheapest first.

    Attributes:
        asked: What was looked for.
        offers: Those that are shown.
        more: How many others there are.
        skipped: Providers that did not answer.
        refused: Offers that were filtered out.
    """

    asked: str
    offers: tuple[OfferRow, ...]
    more: int
    skipped: tuple[RefusalRow, ...]
    refused: tuple[RefusalRow, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderRow:
    """Who rents out machines.

    Attributes:
        name: As in `placement.providers`.
        usable: Whether it can be asked here.
        reason: Why not; empty if it can.
        remedy: What would change that.
        kind: What it rents.
        status: How far it can be counted on.
        spot: Whether it has machines that it may take back.
        notice_s: Seconds of warning before it does.
        private_network: Whether machines have a network of their own.
        billing_step_s: Seconds that it rounds up to.
        evidence: What `status` was read from.
        evidence_date: When.
        note: What to know first.
    """

    name: str
    usable: bool
    reason: str
    remedy: str
    kind: str
    status: str
    spot: bool
    notice_s: float
    private_network: bool
    billing_step_s: float
    evidence: str
    evidence_date: str
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ProvidersPage:
    """Everybody who is known.

    Attributes:
        providers: By name.
    """

    providers: tuple[ProviderRow, ...]


def offers_page(page: OffersPage) -> Iterator[RenderableType]:
    """Machines as a table, then who did not answer, then what was refused."""
    shown = len(page.offers)
    yield make_title(page.asked, count_noun(shown + page.more, "offer"))
    if page.offers:
        yield Text()
        yield _Offers(page.offers)
    if page.more:
        yield Text(f"and {page.more:,} more: top=0 shows all", "dim")
    if page.skipped:
        yield Text()
        yield Text("not asked, or no answer", "bold")
        for row in page.skipped:
            yield _refusal(row.subject, row.reason, row.remedy)
    if page.refused:
        yield Text()
        yield Text("refused", "bold")
        yield from _reasons(page.refused)


def providers_page(page: ProvidersPage) -> Iterator[RenderableType]:
    """Who is known, and how far."""
    usable = sum(row.usable for row in page.providers)
    yield make_title("providers", f"{usable} of {len(page.providers)} can be asked here")
    yield Text()
    table = make_table("name", "status", "rents", "spot", ">notice", "private net", "as of", "here")
    for row in page.providers:
        table.add_row(
            row.name,
            Text(row.status, STATUS_STYLES.get(row.status, "")),
            row.kind,
            "yes" if row.spot else "no",
            show_duration(row.notice_s) if row.notice_s else "",
            "yes" if row.private_network else "no",
            row.evidence_date,
            Text("ready", "green") if row.usable else Text(row.reason, "dim"),
        )
    yield table
    for row in page.providers:
        if row.note:
            yield Text(f"{row.name}: ").append(row.note, "dim")


class _Offers:
    """A table that leaves out what matters less where there is no room for it."""

    def __init__(self, rows: Sequence[OfferRow]) -> None:
        self._rows = rows

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        roomy = options.max_width >= ROOMY
        more = ("network", ">up") if roomy else ()
        table = make_table(">$/GPU h", ">effective", "GPUs", "offer", "tier", *more, ">age")
        table.columns[2].no_wrap = True
        for row in self._rows:
            tier = Text(row.tier, TIER_STYLES.get(row.tier, ""))
            up = "" if row.reliability is None else f"{row.reliability:.1%}"
            table.add_row(
                f"{row.usd_per_gpu_hour:.2f}",
                Text(f"{row.effective_usd_per_gpu_hour:.2f}", "bold"),
                f"{row.gpus} x {row.gpu}",
                _offer(row),
                tier,
                *((row.network, up) if roomy else ()),
                _age(row),
            )
        yield table


def _offer(row: OfferRow) -> Text:
    """Who, what, where; `spot` before it if it may be taken back."""
    line = Text()
    if row.spot:
        line.append("spot ", "cyan")
    line.append(f"{row.provider} {row.id} {row.region}".rstrip())
    if row.country and row.country not in row.region.lower():
        line.append(f" ({row.country})")
    return line


def _age(row: OfferRow) -> Text:
    if row.live:
        return Text("live", "green")
    return Text("undated" if row.age_s is None else show_duration(row.age_s), "yellow")


def _reasons(rows: Sequence[RefusalRow]) -> Iterator[Text]:
    """Reasons once each, the most frequent first."""
    counts = Counter((row.reason, row.remedy) for row in rows)
    for (reason, remedy), count in counts.most_common(MOST_REASONS):
        yield _refusal(count_noun(count, "offer"), reason, remedy)
    rest = len(counts) - MOST_REASONS
    if rest > 0:
        yield Text(f"  and {count_noun(rest, 'other reason')}: --json has all", "dim")


def _refusal(subject: str, reason: str, remedy: str) -> Text:
    line = Text(f"  {subject}: {reason}")
    return line.append(f"; {remedy}", "dim") if remedy else line
