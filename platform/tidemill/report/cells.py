"""What pages are made of: titles, tables as wide as what is in them, and values in a few words."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, cast

from rich import box
from rich.table import Table
from rich.text import Text

from tidemill.report.inventory import WHOLE, Row
from tidemill.report.quantities import show_duration, show_loss

STYLES = {WHOLE: "green", "corrupt": "bold red", "torn": "yellow", "unreadable": "yellow"}


def make_title(place: str, said: str) -> Text:
    """A place, and what there is to say of it at once; left to the terminal to wrap."""
    title = Text(place, "bold", no_wrap=True, overflow="ignore")
    return title.append(f": {said}", "not bold")


def make_table(*heads: str) -> Table:
    """A table of left-aligned columns; a head that begins with > is that of a column of numbers."""
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
        header_style="dim",
    )
    for head in heads:
        numeric = head.startswith(">")
        table.add_column(
            head.removeprefix(">"),
            justify="right" if numeric else "left",
            no_wrap=numeric,
            overflow="fold",
        )
    return table


def say_state(row: Row) -> Text:
    """What it is, in its colour."""
    return Text(row.state, STYLES.get(row.state, ""))


def say_problem(row: Row) -> Text:
    """Why it is not whole, in a line of its own."""
    return Text(f"{row.name}: ").append(row.problem, STYLES.get(row.state, ""))


def say_age(row: Row, now_s: float) -> str:
    """How long ago it was saved; empty if that is unknown."""
    return show_duration(max(now_s - row.at_s, 0)) if row.at_s is not None else ""


def say_loss(value: float | None) -> str:
    """A loss; empty if it is unknown, or was not finite."""
    return show_loss(value) if value is not None and math.isfinite(value) else ""


def say_origin(origin: Mapping[str, Any]) -> str:
    """What a run started from; empty if that was nothing."""
    if "run" in origin:
        return f"step {origin.get('step', '?')} of {origin['run']}"
    return f"the weights in {origin['weights']}" if "weights" in origin else ""


def say_value(value: Any) -> str:
    """A JSON value without its brackets: `layers 4, heads 2`; a dash for none."""
    match value:
        case None | "":
            return "–"
        case str():
            return value
        case float():
            return f"{value:g}"
        case dict():
            plain = cast("dict[str, Any]", value)
            inner = ", ".join(
                f"{key} {say_value(item)}" for key, item in plain.items() if key != "variant"
            )
            return ": ".join(part for part in (plain.get("variant"), inner) if part) or "–"
        case _:
            return json.dumps(value, ensure_ascii=False)
