"""A page on one checkpoint, all that its manifest says; and one on two, all that differs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from tidemill.report.cells import (
    make_table,
    make_title,
    say_age,
    say_loss,
    say_origin,
    say_problem,
    say_value,
)
from tidemill.report.inventory import Anatomy, Change, Differences
from tidemill.report.quantities import count_noun, show_bytes, show_count

if TYPE_CHECKING:
    from rich.console import RenderableType

MOST_NAMES = 8
DIGEST = 16
"""Digits of a checksum that are worth showing to people."""

RNG = {"keyed": "each follows from the seed and the number of its sample"}


def anatomy_page(page: Anatomy, now_s: float) -> Iterator[RenderableType]:
    """Facts, configuration, tensors by kind, files."""
    row = page.checkpoint
    yield make_title(f"{page.place}/checkpoints/{row.name}", row.state)
    if row.problem:
        yield say_problem(row)
    yield Text()
    yield _pairs(_facts(page, now_s))
    yield Text()
    yield _pairs((key, say_value(value)) for key, value in page.identity.items())
    yield Text()
    tensors = make_table("tensors", ">count", ">elements", ">size", "type")
    for kind in page.kinds:
        cells = (f"{kind.tensors:,}", f"{kind.elements:,}", show_bytes(kind.bytes))
        tensors.add_row(kind.kind, *cells, ", ".join(kind.dtypes))
    yield tensors
    yield Text()
    files = make_table("file", ">size", ">of tensors", "sha256 of its block checksums")
    for file in page.files:
        sizes = (show_bytes(file.bytes), f"{file.data:,} bytes")
        files.add_row(file.name, *sizes, Text(f"{file.sha256[:DIGEST]}…", "dim"))
    yield files


def _facts(page: Anatomy, now_s: float) -> Iterator[tuple[str, str]]:
    row, scalars = page.checkpoint, dict(page.scalars)
    yield "cursor", f"step {row.step:,}, {page.samples:,} samples"
    if row.at_s is not None:
        moment = f"{datetime.fromtimestamp(row.at_s, UTC):%Y-%m-%d %H:%M:%S} UTC"
        yield "saved", f"{moment}, {say_age(row, now_s)} ago, by attempt {row.attempt}"
    yield "world", f"{count_noun(row.world or 0, 'rank')}, {row.strategy}, {row.precision}"
    held_out = f", held-out {say_loss(row.val_loss)}" if say_loss(row.val_loss) else ""
    yield "loss", f"{say_loss(row.loss) or 'not known'}{held_out}"
    if "taken_steps" in scalars:
        yield "optimizer", f"{say_value(scalars.pop('taken_steps'))} steps taken"
    if isinstance(scalars.get("loss_scale"), dict):
        yield "loss scale", _scale(scalars.pop("loss_scale"))
    if isinstance(scalars.get("guard"), dict):
        yield "guard", _guard(scalars.pop("guard"))
    for name, value in sorted(scalars.items()):
        yield name, say_value(value)
    yield "random", RNG.get(page.rng, page.rng)
    yield "origin", say_origin(row.origin) or "its own first step"
    yield "digest", f"{page.digest[:DIGEST]}…, of the corpus {page.corpus_digest[:DIGEST]}…"


def _scale(scale: Mapping[str, Any]) -> str:
    good = int(scale.get("good_steps") or 0)
    since = f", {count_noun(good, 'good step')} since it changed" if good else ""
    return f"{say_value(scale.get('value'))}{since}"


def _guard(guard: Mapping[str, Any]) -> str:
    skipped, in_a_row = guard.get("skipped", 0), guard.get("in_a_row", 0)
    newest = f", the newest {in_a_row} in a row" if in_a_row else ""
    return f"{count_noun(skipped, 'step')} skipped{newest}" if skipped else "no step skipped"


def differences_page(page: Differences) -> Iterator[RenderableType]:
    """What differs beside the tensors, then the tensors, the worst first, then the outcome."""
    yield _pairs((("left", page.left_place), ("right", page.right_place)))
    yield Text()
    if changes := (*page.facts, *page.identity):
        yield _changes("", changes)
    else:
        yield Text("the same configuration, cursor and scalars")
    yield Text()
    for names, where in ((page.only_left, "left"), (page.only_right, "right")):
        if names:
            more = f" and {len(names) - MOST_NAMES:,} more" if len(names) > MOST_NAMES else ""
            told = Text(f"{count_noun(len(names), 'tensor')} on the {where} only: ", "red")
            yield told.append(f"{', '.join(names[:MOST_NAMES])}{more}", "default")
    if page.unlike:
        yield _changes("tensor", page.unlike)
        yield Text()
    if page.worst:
        yield _kinds(page)
        yield Text()
        yield _worst(page)
        yield Text()
    yield _outcome(page)


def _kinds(page: Differences) -> Table:
    table = make_table("tensors", ">count", ">differ", ">max diff", ">relative")
    for kind in page.kinds:
        largest, relative = _measures(kind.largest, kind.relative)
        table.add_row(kind.kind, f"{kind.tensors:,}", f"{kind.differing:,}", largest, relative)
    return table


def _measures(largest: float, relative: float) -> tuple[str, str]:
    return f"{largest:.3g}", f"{relative:.2g}"


def _worst(page: Differences) -> Table:
    table = make_table("tensor", ">elements", ">differ", ">max diff", ">relative")
    for change in page.worst:
        share = change.differing / change.elements
        table.add_row(
            change.name,
            f"{change.elements:,}",
            "all" if share == 1 else f"{change.differing:,}",
            *_measures(change.largest, change.relative),
        )
    return table


def _outcome(page: Differences) -> Text:
    tensors, elements = count_noun(page.tensors, "tensor"), show_count(page.elements)
    if page.bit_equal:
        return Text(f"bit-equal: {tensors}, {elements} elements", "bold green")
    if not page.tensors:
        return Text("not equal: no tensor is in both in the same shape and type", "bold red")
    if not page.differing:
        told = f"not equal, but what both have is bit-equal: {tensors}, {elements} elements"
        return Text(told, "bold yellow")
    told = f"not equal: {page.differing:,} of {tensors} differ, in "
    told += f"{show_count(page.differing_elements)} of {elements} elements"
    told += "; top=0 names all" if page.differing > len(page.worst) else ""
    return Text(told, "bold red")


def _changes(head: str, changes: Iterable[Change]) -> Table:
    table = make_table(head, "left", "right")
    for change in changes:
        left, right = say_value(change.left), say_value(change.right)
        if left == right:  # they differ in digits that are not worth showing otherwise
            left, right = repr(change.left), repr(change.right)
        table.add_row(change.key, left, right)
    return table


def _pairs(pairs: Iterable[tuple[str, str]]) -> Table:
    """Names and values, the values side by side."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in pairs:
        grid.add_row(name, value)
    return grid
