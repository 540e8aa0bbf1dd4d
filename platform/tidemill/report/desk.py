"""Where answers about checkpoints are given: text or JSON on standard output, progress beside it.

Progress goes to standard error and only to a terminal, so an answer can be piped from the first.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, cast

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from tidemill.report.inventory import Page, Proof
from tidemill.report.pages import make_page, make_proof_line

WIDTH_OF_A_PIPE = 120


class Desk:
    """Gives one answer, in one form.

    Args:
        as_json: One JSON value instead of text.
        console: Where to; standard output by default.
        progress: Where progress is shown; standard error by default.
    """

    def __init__(
        self, *, as_json: bool, console: Console | None = None, progress: Console | None = None
    ) -> None:
        self._as_json = as_json
        self._console = console or Console(highlight=False)
        if console is None and not self._console.is_terminal and "COLUMNS" not in os.environ:
            self._console.width = WIDTH_OF_A_PIPE
        self._progress = progress or Console(stderr=True)

    def answer(self, page: Page) -> None:
        """Give the answer."""
        if self._as_json:
            plain = _finite(dataclasses.asdict(page))
            text = json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False)
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            self._console.print(make_page(page, time.time()), highlight=False, crop=False)

    def say(self, proof: Proof) -> None:
        """Tell of one checkpoint of many, as soon as it is known; JSON comes all at once."""
        if not self._as_json:
            self._console.print(make_proof_line(proof), highlight=False, soft_wrap=True)

    @contextmanager
    def reading(self, what: str, total: int) -> Generator[Callable[[int], None]]:
        """Show how far reading has come.

        Args:
            what: Is read, for people.
            total: Bytes to read.

        Yields:
            To be called with the number of bytes that were read since.
        """
        bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            console=self._progress,
            transient=True,
            disable=not self._progress.is_terminal,
            redirect_stdout=sys.stdout.isatty(),
        )
        with bar:
            task = bar.add_task(what, total=total)
            yield lambda size: bar.advance(task, size)


def _finite(value: Any) -> Any:
    """A value that JSON can hold: what is not finite is null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in cast("dict[str, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in cast("list[Any]", value)]
    return None if isinstance(value, float) and not math.isfinite(value) else value
