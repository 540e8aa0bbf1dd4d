"""Pages about the checkpoints of a run, for a terminal of any width: what matters first.

What is too long for a column, as a reason is, stands in a line of its own below its table.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from tidemill.report.audit import Audit, audit_page
from tidemill.report.cells import (
    STYLES,
    make_table,
    make_title,
    say_age,
    say_loss,
    say_origin,
    say_problem,
    say_state,
)
from tidemill.report.forecast import PlanPage, plan_page
from tidemill.report.inventory import (
    TORN,
    WHOLE,
    Anatomy,
    Differences,
    Inventory,
    Page,
    Proof,
    Pruning,
    Row,
    Verification,
)
from tidemill.report.market import OffersPage, ProvidersPage, offers_page, providers_page
from tidemill.report.quantities import count_noun, show_bytes, show_moment
from tidemill.report.sheets import anatomy_page, differences_page

NEVER_COMMITTED = "no manifest, so never committed: being written, or left behind by a kill"

Answer = Page | Audit | OffersPage | ProvidersPage | PlanPage
"""Whatever a door is asked for."""

if TYPE_CHECKING:
    from rich.table import Table


def make_page(page: Answer, now_s: float) -> RenderableType:
    """Lay out what there is to tell.

    Args:
        page: It.
        now_s: The time that ages are told by, seconds since the epoch.
    """
    return Group(*_parts(page, now_s))


def _parts(page: Answer, now_s: float) -> Iterator[RenderableType]:
    match page:
        case Inventory():
            yield from _inventory(page, now_s)
        case Anatomy():
            yield from anatomy_page(page, now_s)
        case Verification():
            yield _verification(page)
        case Pruning():
            yield from _pruning(page, now_s)
        case Differences():
            yield from differences_page(page)
        case Audit():
            yield from audit_page(page)
        case OffersPage():
            yield from offers_page(page)
        case ProvidersPage():
            yield from providers_page(page)
        case PlanPage():
            yield from plan_page(page)


def make_proof_line(proof: Proof) -> Text:
    """What came out for one checkpoint: `step-0000000150-a0001  whole    9.39 MiB in 0.2s`."""
    row = proof.checkpoint
    line = Text(f"{row.name}  ").append(f"{row.state:<7}", STYLES.get(row.state, ""))
    if row.state != WHOLE:
        return line.append(f"  {row.problem}")
    told = f"  {show_bytes(row.bytes)} in {show_moment(proof.seconds)}"
    if proof.seconds > 0:
        told += f", {show_bytes(row.bytes / proof.seconds)}/s"
    return line.append(told, "dim")


def _inventory(page: Inventory, now_s: float) -> Iterator[RenderableType]:
    rows = page.checkpoints
    if not rows:
        yield make_title(page.place, "no checkpoint yet")
        return
    total = show_bytes(sum(row.bytes for row in rows))
    yield make_title(page.place, f"{count_noun(len(rows), 'checkpoint')}, {total}")
    if origin := next((told for row in rows if (told := say_origin(row.origin))), ""):
        yield Text(f"started from {origin}")
    yield Text()
    yield _shelf(page, now_s)
    yield from _problems(rows)


def _shelf(page: Inventory, now_s: float) -> Table:
    rows = page.checkpoints
    measured = any(row.val_loss is not None for row in rows)
    several = len({row.step for row in rows}) < len(rows)
    heads = [">step", *([">attempt"] if several else []), ">loss", *([">val"] if measured else [])]
    table = make_table(*heads, "saved by", ">size", ">age", "state")
    table.columns[len(heads)].min_width = max(len(row.strategy) for row in rows)
    table.columns[-1].min_width = max(len(row.state) for row in rows) + 1
    for row in rows:
        made = f"{row.world} × {row.strategy} {row.precision}" if row.world else ""
        table.add_row(
            f"{row.step:,}",
            *([str(row.attempt)] if several else []),
            say_loss(row.loss),
            *([say_loss(row.val_loss)] if measured else []),
            made,
            show_bytes(row.bytes),
            say_age(row, now_s),
            say_state(row).append(", newest" if row.name == page.newest else ""),
            style="bold" if row.name == page.newest else "",
        )
    return table


def _problems(rows: Sequence[Row]) -> Iterator[RenderableType]:
    """Why some are not whole, below the table; of all that are torn at once."""
    damaged = [say_problem(row) for row in rows if row.problem and row.state != TORN]
    if any(row.state == TORN for row in rows):
        damaged.append(Text(f"{TORN}: {NEVER_COMMITTED}", "yellow"))
    if damaged:
        yield Text()
        yield from damaged


def _pruning(page: Pruning, now_s: float) -> Iterator[RenderableType]:
    going = page.going
    yield make_title(page.place, count_noun(len(page.fates), "checkpoint"))
    yield Text()
    table = make_table(">step", ">loss", ">size", ">age", "", "because")
    verb = "removed" if page.applied else "remove"
    for fate in page.fates:
        row = fate.checkpoint
        table.add_row(
            f"{row.step:,}",
            say_loss(row.loss),
            show_bytes(row.bytes),
            say_age(row, now_s),
            Text("keep", "green") if fate.stays else Text(verb, "red"),
            fate.why,
        )
    yield table
    yield from _problems([fate.checkpoint for fate in page.fates])
    yield Text()
    size = show_bytes(sum(fate.checkpoint.bytes for fate in going))
    told = f"{count_noun(len(going), 'checkpoint')}, {size}"
    if not going:
        yield Text("nothing to remove")
    elif page.applied:
        yield Text(f"removed {told}", "bold")
    else:
        yield Text(f"would remove {told}; apply=true does it", "bold")


def _verification(page: Verification) -> Text:
    failed = len(page.failed)
    if failed:
        told = f"{failed} of {count_noun(len(page.proofs), 'checkpoint')} "
        told += f"{'is' if failed == 1 else 'are'} not whole: training passes over such, and prune "
        return Text(f"{told}removes them once a newer one is whole", "bold red")
    whole = [proof.checkpoint for proof in page.proofs if proof.checkpoint.state == WHOLE]
    size = show_bytes(sum(row.bytes for row in whole))
    told = f"{count_noun(len(whole), 'checkpoint')}, {size}: every byte is as it was written"
    return Text(told, "bold green")
