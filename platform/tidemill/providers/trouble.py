"""Trouble: what can be wrong with a vendor's answer, and what a person can do about it."""

from __future__ import annotations

import re
from enum import StrEnum
from http import HTTPStatus

from tidemill.errors import TidemillError


class Trouble(StrEnum):
    """What can be wrong with a vendor's answer."""

    unauthorized = "key refused"
    forbidden = "not allowed"
    missing = "not found"
    throttled = "too many requests"
    refused = "request refused"
    down = "server error"
    unreachable = "no connection"
    slow = "no answer in time"
    unreadable = "unreadable answer"


REMEDIES = {
    Trouble.unauthorized: "check its key",
    Trouble.forbidden: "give the key the rights to read, or check the account",
    Trouble.missing: "its interface has changed, or its address is wrong",
    Trouble.throttled: "try again in a minute",
    Trouble.refused: "its interface has changed",
    Trouble.down: "try again later",
    Trouble.unreachable: "check the network",
    Trouble.slow: "try again later",
    Trouble.unreadable: "try again, or check what stands between: a proxy, a log-in page",
}


TROUBLES = {
    301: Trouble.unreadable,
    302: Trouble.unreadable,
    401: Trouble.unauthorized,
    403: Trouble.forbidden,
    404: Trouble.missing,
    405: Trouble.missing,
    410: Trouble.missing,
    429: Trouble.throttled,
}


class ProviderError(TidemillError):
    """A vendor did not answer, or not in its own words.

    Args:
        provider: Its name.
        trouble: What kind of thing went wrong.
        detail: What exactly, without secrets.
    """

    def __init__(self, provider: str, trouble: Trouble, detail: str) -> None:
        super().__init__(f"{provider}: {trouble} ({detail}); {REMEDIES[trouble]}")
        self.provider = provider
        self.trouble = trouble
        self.detail = detail
        self.reason = f"{trouble} ({detail})"
        self.remedy = REMEDIES[trouble]


def trouble_of(code: int, said: str) -> Trouble:
    """What is meant by a status code, or if that is a good one, by the vendor's words."""
    if code < HTTPStatus.MULTIPLE_CHOICES:
        inner = re.search(r"\b[45]\d\d\b", said)
        frequent = re.search(r"too (many|frequent)", said, re.IGNORECASE)
        code = HTTPStatus.TOO_MANY_REQUESTS if frequent else int(inner[0]) if inner else 0
    if code >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return Trouble.down
    return TROUBLES.get(code, Trouble.refused)
