"""One way to speak to every vendor: patient where that helps, strict about what comes back.

A vendor's answer is decoded into a typed model or refused with one line that names the vendor, what
went wrong and what to do. Secrets are known to the client, and cut out of whatever leaves it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import random
import re
import ssl
import threading
import time
from collections.abc import Callable, Collection, Mapping
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from tidemill import __version__
from tidemill.providers.trouble import ProviderError, Trouble, trouble_of

TRIES = 4
PAUSE_S = 0.4
"""Mean pause before the second try; each further one is twice as long."""
PATIENCE_S = 20.0
"""Seconds that a question may take with all its tries."""
CONNECT_S = 5.0
SILENCE_S = 8.0
"""Seconds in which some byte has to come."""
MOST_BYTES = 64 * 2**20
AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
HIDDEN = "[hidden]"
SHORTEST_SECRET = 6
LONGEST_QUOTE = 160

log = logging.getLogger(__name__)

M = TypeVar("M")


class Wire(BaseModel):
    """Base of what vendors send: what is not named is ignored, what is named must be right."""

    model_config = ConfigDict(extra="ignore", frozen=True, populate_by_name=True)


class Pace:
    """Keeps a distance between requests to one endpoint, also across threads.

    Args:
        apart_s: Seconds from one request to the next.
    """

    def __init__(self, apart_s: float) -> None:
        self._apart_s = apart_s
        self._next_s = 0.0
        self._lock = threading.Lock()

    def turn(self, now_s: float) -> float:
        """Take a turn; seconds to wait for it."""
        with self._lock:
            at_s = max(now_s, self._next_s)
            self._next_s = at_s + self._apart_s
        return at_s - now_s


class Api:
    """A vendor's HTTP interface.

    Args:
        provider: Name of the vendor, for errors.
        url: What all paths are below.
        headers: Sent with every request.
        secrets: Texts that must not leave this object except in requests.
        apart_s: Seconds between requests by the beginning of their path; the longest that fits.
        refusal: Finds the vendor's own words for an error in a decoded answer, also in one that
            came with a good status; None if it is not one.
        transport: Where requests go instead of the network.
        trust: Whom to believe that they are the vendor; None for the usual authorities.
    """

    def __init__(
        self,
        provider: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        secrets: Collection[str] = (),
        apart_s: Mapping[str, float] | None = None,
        refusal: Callable[[Any], str | None] = lambda _: None,
        transport: httpx.BaseTransport | None = None,
        trust: ssl.SSLContext | None = None,
    ) -> None:
        self.provider = provider
        self._secrets = tuple(secret for secret in secrets if len(secret) >= SHORTEST_SECRET)
        self._paces = {path: Pace(apart) for path, apart in (apart_s or {}).items()}
        self._refusal = refusal
        self._url = url.rstrip("/")
        agent = {"User-Agent": f"tidemill/{__version__}", "Accept": "application/json"}
        self._client = httpx.Client(
            headers=agent | dict(headers or {}),
            timeout=httpx.Timeout(SILENCE_S, connect=CONNECT_S),
            transport=transport,
            verify=trust or True,
            follow_redirects=False,  # a key would go along to wherever that leads
            trust_env=transport is None,
        )

    def get(self, path: str, model: type[M], **params: Any) -> M:
        """Ask with GET. See `ask`."""
        return self.ask("GET", path, model, params=params)

    def ask(
        self,
        method: str,
        path: str,
        model: type[M],
        *,
        params: Mapping[str, Any] | None = None,
        body: Any = None,
    ) -> M:
        """Ask a question that changes nothing, as often as it takes.

        Args:
            method: HTTP's.
            path: Below the vendor's URL.
            model: What the answer is decoded into.
            params: Of the query; None values are left out.
            body: Sent as JSON.

        Raises:
            ProviderError: No usable answer came.
        """
        until_s = time.monotonic() + PATIENCE_S
        for number in range(1, TRIES + 1):
            try:
                answer, text = self._exchange(method, path, params, body, until_s)
                return self._decode(answer, text, f"{method} {path}", model)
            except _AgainError as error:
                pause_s = self._pause(number, error.after_s)
                if number == TRIES or time.monotonic() + pause_s >= until_s:
                    raise error.told from None
                log.info("%s; again in %.1f s", error.told, pause_s)
                time.sleep(pause_s)
        raise AssertionError

    def close(self) -> None:
        """Close its connections."""
        self._client.close()

    def hide(self, text: str) -> str:
        """`text` without secrets."""
        for secret in self._secrets:
            text = text.replace(secret, HIDDEN)
        return text

    # --- one try ---------------------------------------------------------------------------------

    def _exchange(
        self,
        method: str,
        path: str,
        params: Mapping[str, Any] | None,
        body: Any,
        until_s: float,
    ) -> tuple[httpx.Response, str]:
        self._wait_turn(path, until_s)
        wanted = {key: value for key, value in (params or {}).items() if value is not None}
        try:
            with self._client.stream(
                method, f"{self._url}{path}", params=wanted, json=body
            ) as answer:
                return answer, self._read(answer, path, until_s)
        except httpx.TimeoutException as error:
            raise _AgainError(self._error(Trouble.slow, f"{method} {path}")) from error
        except httpx.TransportError as error:
            detail = f"{method} {path}: {error or type(error).__name__}"
            raise _AgainError(self._error(Trouble.unreachable, detail)) from error
        except httpx.HTTPError as error:
            raise self._error(Trouble.unreadable, f"{method} {path}: {error}") from None

    def _wait_turn(self, path: str, until_s: float) -> None:
        fits = [start for start in self._paces if path.startswith(start)]
        if not fits:
            return
        now_s = time.monotonic()
        wait_s = self._paces[max(fits, key=len)].turn(now_s)
        if now_s + wait_s >= until_s:
            raise self._error(Trouble.throttled, f"{path}: others of this process come first")
        time.sleep(wait_s)

    def _read(self, answer: httpx.Response, path: str, until_s: float) -> str:
        """A server that sends one byte a second is as good as silent."""
        parts: list[bytes] = []
        size = 0
        for part in answer.iter_bytes():
            parts.append(part)
            size += len(part)
            if size > MOST_BYTES:
                raise self._error(Trouble.unreadable, f"{path}: more than {MOST_BYTES:,} bytes")
            if time.monotonic() > until_s:
                raise self._error(Trouble.slow, f"{path}: {size:,} bytes and no end")
        return b"".join(parts).decode(answer.encoding or "utf-8", errors="replace")

    def _decode(self, answer: httpx.Response, text: str, asked: str, model: type[M]) -> M:
        plain: Any = None
        with contextlib.suppress(ValueError):
            plain = json.loads(text)
        said = self._refusal(plain) if plain is not None else None
        if not answer.is_success or said:
            raise self._failure(answer, said or _quote(text), asked)
        if plain is None:
            kind = answer.headers.get("content-type", "no content type")
            raise _AgainError(
                self._error(Trouble.unreadable, f"{asked}: {kind}, not JSON: {_quote(text)}")
            )
        try:
            return TypeAdapter(model).validate_python(plain)
        except ValidationError as error:
            wrong = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, wrong["loc"]))
            detail = f"{asked}: {where or 'answer'}: {wrong['msg']}"
            raise self._error(Trouble.unreadable, detail) from None

    def _failure(self, answer: httpx.Response, said: str, asked: str) -> Exception:
        code = answer.status_code
        trouble = trouble_of(code, said)
        error = self._error(trouble, f"{asked}: {code} {said}".strip())
        if code in AGAIN or (answer.is_success and trouble is Trouble.throttled):
            return _AgainError(error, _retry_after(answer.headers.get("retry-after", "")))
        return error

    def _error(self, trouble: Trouble, detail: str) -> ProviderError:
        return ProviderError(self.provider, trouble, self.hide(detail))

    @staticmethod
    def _pause(number: int, after_s: float | None) -> float:
        """What the vendor asks for, or twice as long each time; never all clients at once."""
        jitter = random.uniform(0.5, 1.5)
        return (
            after_s + 0.1 * jitter if after_s is not None else PAUSE_S * 2 ** (number - 1) * jitter
        )


class _AgainError(Exception):
    """A try failed in a way that may pass."""

    def __init__(self, told: ProviderError, after_s: float | None = None) -> None:
        super().__init__(str(told))
        self.told = told
        self.after_s = after_s


def _retry_after(value: str) -> float | None:
    """Seconds, whether given as such or as a date; None if there is nothing sensible."""
    with contextlib.suppress(ValueError):
        return max(0.0, float(value))
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    return None


def _quote(text: str) -> str:
    """The beginning of what came, on one line, without markup."""
    bare = re.sub(r"<[^>]*>", " ", text)
    short = " ".join(bare.split())
    return short[:LONGEST_QUOTE] + ("..." if len(short) > LONGEST_QUOTE else "")
