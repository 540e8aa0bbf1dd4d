"""Read a trace from a file, whoever recorded it.

Formats are told apart by what they hold; empty lines and those that begin with `#` are notes:

    60000,add,node1                           Bamboo: milliseconds, what happens, machine
    60000,17                                  Parcae: milliseconds, machines from then on
    [60000, "add", {"nodes": ["a", "b"]}]     Parcae: milliseconds, what happens, machines
    scheduled_at,zone-a,zone-b                SkyNomad: times, machines in each zone from then on

What happens is `add`, `remove`, `notice` (of a machine that will be removed) or `no-op`. Where only
numbers of machines are known, those that have been there longest go first.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, cast

from tidemill.errors import SpecError
from tidemill.plan.trace import Stay, Trace

KEY = "trace"
FORMATS = "lines like `60000,add,node1` or `60000,17`"


def parse_trace(text: str, source: str, *, column: str = "") -> Trace:
    """Read a trace.

    Args:
        text: The file.
        source: Its name, for the trace and for errors.
        column: Of a table with several, the one to read.

    Raises:
        SpecError: A line makes no sense; it is named.
    """
    lines = [
        _Line(source, number, line)
        for number, line in enumerate(text.splitlines(), start=1)
        if line.strip() and not line.startswith("#")
    ]
    if not lines:
        raise SpecError(KEY, f"{source} holds no events", f"name a file with {FORMATS}")
    stays = _Stays()
    end_s = 0.0
    for line, moment_s, change in _changes(lines, column):
        if moment_s < end_s:
            raise line.error("goes back in time", "sort the lines by time")
        end_s = moment_s
        _apply(stays, line, moment_s, change)
    name = f"{source} {column}".strip()
    return Trace(name=name, stays=tuple(stays.stays), duration_s=end_s)


@dataclass(frozen=True, slots=True)
class _Line:
    """A line and where it stands."""

    source: str
    number: int
    text: str

    def error(self, problem: str, remedy: str) -> SpecError:
        """What is wrong with it."""
        said = self.text if len(self.text) <= 40 else f"{self.text[:40]}…"  # noqa: PLR2004
        return SpecError(KEY, f"{self.source} line {self.number} ({said!r}) {problem}", remedy)

    def milliseconds(self, value: Any) -> float:
        """A time of the trace, in seconds."""
        try:
            found = float(value) / 1000
        except (TypeError, ValueError):
            found = math.nan
        if not 0 <= found < math.inf:
            raise self.error(f"has no time: {value!r}", "use milliseconds from 0 on")
        return found

    def count(self, value: str) -> int:
        """A number of machines."""
        if not value.strip().isdecimal():
            raise self.error(f"has no number of machines: {value!r}", "use 0 or more")
        return int(value)


Change = int | tuple[str, Sequence[str]]
"""Machines from then on; or what happens, and to which machines."""


@dataclass(slots=True)
class _Stays:
    """Stays so far, in the order they began; and where in it those are that have not ended."""

    stays: list[Stay] = field(default_factory=list[Stay])
    up: dict[str, int] = field(default_factory=dict[str, int])
    noticed: dict[str, float] = field(default_factory=dict[str, float])

    def add(self, node: str, at_s: float) -> None:
        self.up[node] = len(self.stays)
        self.stays.append(Stay(node=node, from_s=at_s))

    def remove(self, node: str, at_s: float) -> None:
        place = self.up.pop(node)
        notice_s = at_s - self.noticed.pop(node, at_s)
        self.stays[place] = replace(self.stays[place], until_s=at_s, notice_s=notice_s)

    def set_count(self, count: int, at_s: float) -> None:
        while len(self.up) < count:
            self.add(f"node{len(self.stays) + 1}", at_s)
        while len(self.up) > count:
            self.remove(next(iter(self.up)), at_s)


def _apply(stays: _Stays, line: _Line, at_s: float, change: Change) -> None:
    if isinstance(change, int):
        stays.set_count(change, at_s)
        return
    action, nodes = change
    for node in nodes:
        match action:
            case "add":
                if node in stays.up:
                    raise line.error(f"adds {node}, which is there already", "remove it before")
                stays.add(node, at_s)
            case "remove" | "notice":
                if node not in stays.up:
                    raise line.error(f"takes {node}, which is not there", "add it before")
                if action == "remove":
                    stays.remove(node, at_s)
                else:
                    stays.noticed[node] = at_s
            case _:
                raise line.error(f"says {action!r}", "use add, remove, notice or no-op")


def _changes(lines: Sequence[_Line], column: str) -> Iterator[tuple[_Line, float, Change]]:
    """What the lines say, in whatever format."""
    first = lines[0].text.strip()
    if first.startswith("["):
        yield from _json_lines(lines)
        return
    rows = [[cell.strip() for cell in row] for row in csv.reader(line.text for line in lines)]
    width = len(rows[0])
    for line, row in zip(lines, rows, strict=True):
        if len(row) != width:
            raise line.error(f"has {len(row)} fields and the first line {width}", "mend the file")
    if not rows[0][0].replace(".", "", 1).isdecimal():
        yield from _table(lines, rows, column)
    elif width == 3:  # noqa: PLR2004 - time, action, machine
        for line, (at_ms, action, node) in zip(lines, rows, strict=True):
            yield line, line.milliseconds(at_ms), (action, [node] if action != "no-op" else [])
    elif width == 2:  # noqa: PLR2004 - time, machines
        for line, (at_ms, count) in zip(lines, rows, strict=True):
            yield line, line.milliseconds(at_ms), line.count(count)
    else:
        raise lines[0].error(f"has {width} fields", f"use {FORMATS}")


def _json_lines(lines: Sequence[_Line]) -> Iterator[tuple[_Line, float, Change]]:
    for line in lines:
        try:
            at_ms, action, said = cast("list[Any]", json.loads(line.text))
            nodes = cast("list[str]", said["nodes"])
            lasts_s = line.milliseconds(said.get("duration", 0))
        except (ValueError, TypeError, KeyError) as error:
            raise line.error(
                f"is not like the others: {error}", 'use [60000, "add", {"nodes": ["a"]}]'
            ) from error
        at_s = line.milliseconds(at_ms)
        yield line, at_s, (action, [] if action == "no-op" else nodes)
        yield line, at_s + lasts_s, ("no-op", [])


def _table(
    lines: Sequence[_Line], rows: Sequence[Sequence[str]], column: str
) -> Iterator[tuple[_Line, float, Change]]:
    names = rows[0][1:]
    if len(names) == 1 and not column:
        column = names[0]
    if column not in names:
        problem = f"has no column {column!r}" if column else "has several columns"
        raise lines[0].error(problem, f"use column= with one of {', '.join(names)}")
    place = 1 + names.index(column)
    begun: datetime | None = None
    for line, row in zip(lines[1:], rows[1:], strict=True):
        try:
            moment = datetime.fromisoformat(row[0])
            begun = begun or moment
            at_s = (moment - begun).total_seconds()
        except (ValueError, TypeError) as error:
            raise line.error(
                f"has no time: {error}", "use ISO 8601, all with a zone or none"
            ) from error
        yield line, at_s, line.count(row[place])
