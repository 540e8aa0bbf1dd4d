"""Blocks: a page that is shown on a terminal and kept as Markdown, written once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.text import Text

from tidemill.report.cells import make_table

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True, slots=True)
class Heading:
    """A title of a part.

    Attributes:
        text: It.
    """

    text: str


@dataclass(frozen=True, slots=True)
class Lines:
    """Sentences, each in a line of its own.

    Attributes:
        lines: They.
    """

    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Grid:
    """A table.

    Attributes:
        heads: Of its columns; one that begins with > is that of a column of numbers.
        rows: Cells, as many in each row as there are heads.
    """

    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Commands:
    """What to type in a shell.

    Attributes:
        lines: It, with comments.
    """

    lines: tuple[str, ...]


Block = Heading | Lines | Grid | Commands


def on_screen(blocks: Iterable[Block]) -> Iterator[RenderableType]:
    """Blocks for a terminal."""
    for block in blocks:
        match block:
            case Heading(text):
                yield Text(f"\n{text}", "bold")
            case Lines(lines):
                yield from map(Text, lines)
            case Grid(heads, rows):
                table = make_table(*heads)
                for row in rows:
                    table.add_row(*map(Text, row))
                yield table
            case Commands(lines):
                for line in lines:
                    style = "dim" if line.startswith("#") else ""
                    yield Text(line, style, no_wrap=True, overflow="ignore")


def as_markdown(title: str, blocks: Iterable[Block]) -> str:
    """Blocks as a file.

    Args:
        title: Of the file.
        blocks: What is in it.
    """
    return "\n".join([f"# {title}", *(line for block in blocks for line in _markdown(block)), ""])


def _markdown(block: Block) -> Iterator[str]:
    yield ""
    match block:
        case Heading(text):
            yield f"## {text}"
        case Lines(lines):
            yield from (f"- {_one_line(line)}" for line in lines)
        case Grid(heads, rows):
            yield _row(head.removeprefix(">") for head in heads)
            yield _row("---:" if head.startswith(">") else "---" for head in heads)
            yield from map(_row, rows)
        case Commands(lines):
            yield from ("```bash", *lines, "```")


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(_one_line(cell).replace('|', '&#124;') for cell in cells)} |"


def _one_line(text: str) -> str:
    """Without line breaks, which vendors' words may have and neither a list nor a table can."""
    return " ".join(text.split())
