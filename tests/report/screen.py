"""A terminal to look at: keeps what is on it, and refuses what it does not understand."""

from __future__ import annotations

import io
import re

CODES = re.compile(r"(\x1b\[[?0-9;]*[A-Za-z]|[\r\n])")


class Screen(io.StringIO):
    """Text by row and column, as tall as it must be.

    Attributes:
        cursor_shown: Whether the cursor can be seen.
        frames: What was on it whenever it had been written to.
    """

    def __init__(self) -> None:
        super().__init__()
        self._rows = [""]
        self._row = self._column = 0
        self.cursor_shown = True
        self.frames: list[list[str]] = []

    def write(self, text: str) -> int:
        for part in CODES.split(text):
            self._take(part)
        self.frames.append(self.shown)
        return len(text)

    @property
    def shown(self) -> list[str]:
        """The rows that are not blank."""
        return [row.rstrip() for row in self._rows if row.strip()]

    def _take(self, part: str) -> None:
        match part:
            case "\n":
                self._row, self._column = self._row + 1, 0
                self._rows += [""] * (self._row + 1 - len(self._rows))
            case "\r":
                self._column = 0
            case "\x1b[2K":
                self._rows[self._row] = ""
            case "\x1b[1A":
                self._row -= 1
            case "\x1b[?25l" | "\x1b[?25h":
                self.cursor_shown = part.endswith("h")
            case _ if part.startswith("\x1b"):
                assert part.endswith("m"), f"a code that moves or clears: {part!r}"
            case _:
                row = self._rows[self._row].ljust(self._column)
                end = self._column + len(part)
                self._rows[self._row] = row[: self._column] + part + row[end:]
                self._column = end
