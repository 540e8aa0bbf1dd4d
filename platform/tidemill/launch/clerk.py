"""A clerk speaks with storage for somebody who has to look at the clock and cannot wait."""

from __future__ import annotations

import threading
from collections.abc import Callable

FINISH_S = 30.0
"""Seconds that the last thing may take."""


class Clerk:
    """Does one thing at a time, in a thread."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None

    def do(self, work: Callable[[], None]) -> bool:
        """Begin with it, unless something is being done; whether it was begun."""
        if self._thread is not None and self._thread.is_alive():
            return False
        self._thread = threading.Thread(target=work, name="purse-clerk", daemon=True)
        self._thread.start()
        return True

    def finish(self) -> None:
        """Wait a while for what is being done."""
        if self._thread is not None:
            self._thread.join(FINISH_S)
