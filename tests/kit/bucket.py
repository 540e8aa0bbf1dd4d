"""S3 buckets on loopback, steady or faulty, for tests of what happens on object storage.

They are moto's server in threads, behind a gate that fails requests as real services do. Where moto
is not installed, `HAVE_BUCKET` is false and the tests that want a bucket do not exist.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import random
import socket
import struct
import threading
import time
import urllib.request
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from unittest import mock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

HAVE_BUCKET = importlib.util.find_spec("moto") is not None

THROTTLED = (503, "SlowDown")
BROKEN = (500, "InternalError")
RESET = "reset"  # the connection breaks before the request is carried out
CUT = "cut"  # the request is carried out, and the connection breaks amid the answer
FAULTS = (THROTTLED, BROKEN, RESET, CUT)


@dataclass
class Bucket:
    """A bucket and the faults of its server; all may be changed at any time, from any thread.

    Attributes:
        name: What it is called.
        endpoint: Host and port.
        seed: Of the draw of which requests fail, and how.
        rate: The share of requests that fail, by one of `faults` drawn at random.
        faults: A status with S3's code for it, `RESET` or `CUT`.
        upcoming: What becomes of the next requests, the first of them first; None is no fault.
        refusal: Status and code with which every request is answered; None to carry them out.
        vanished: Every connection is reset, as if the service were gone.
        delay_s: How long every request waits before it is looked at; also those waiting already.
        asked: How many requests there were, by method.
        failed: How many of them failed, by fault.
    """

    name: str
    endpoint: str = ""
    rate: float = 0.0
    faults: tuple[tuple[int, str] | str, ...] = FAULTS
    upcoming: list[tuple[int, str] | str | None] = field(default_factory=list)
    refusal: tuple[int, str] | None = None
    vanished: bool = False
    delay_s: float = 0.0
    seed: int = 0
    random: random.Random = field(init=False)
    asked: Counter[str] = field(default_factory=Counter)
    failed: Counter[tuple[int, str] | str] = field(default_factory=Counter)
    stopped: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)

    def uri(self, path: str = "", options: str = "") -> str:
        """What `locate` takes for `path` in this bucket, with further options if need be."""
        return f"s3://{self.name}/{path}?endpoint_override={self.endpoint}&scheme=http{options}"

    def heal(self) -> None:
        """End all faults, count and draw anew."""
        self.random.seed(self.seed)
        self.rate, self.faults, self.refusal, self.vanished, self.delay_s = (
            0,
            FAULTS,
            None,
            False,
            0,
        )
        for record in (self.upcoming, self.asked, self.failed):
            record.clear()

    def keys(self) -> list[str]:
        """The objects in it; looks into the server's memory, whatever the faults."""
        return sorted(self._contents().keys)

    def uploads(self) -> list[str]:
        """The objects of which parts were uploaded and that were not completed."""
        return sorted(upload.key_name for upload in self._contents().multiparts.values())

    def remove(self) -> None:
        """Remove it with all it holds, in the middle of its life."""
        backends = _backends()
        backends.bucket_accounts.pop(self.name)
        contents = _buckets().pop(self.name)
        for kept in (*contents.keys.values(), *contents.multiparts.values()):
            kept.dispose()

    def create(self) -> None:
        """Make it, or make it again."""
        request = urllib.request.Request(f"http://{self.endpoint}/{self.name}", method="PUT")
        urllib.request.urlopen(request, timeout=30).close()  # noqa: S310 - our own server

    def _contents(self) -> Any:
        return _buckets()[self.name]

    def draw(self, method: str) -> tuple[int, str] | str | None:
        """Count a request and choose its fault."""
        with self.lock:
            self.asked[method] += 1
            fault = self.refusal
            if self.vanished:
                fault = RESET
            elif self.upcoming:
                fault = self.upcoming.pop(0)
            elif fault is None and self.random.random() < self.rate:
                fault = self.random.choice(self.faults)
            if fault is not None:
                self.failed[fault] += 1
            return fault


@contextlib.contextmanager
def serve_flaky_bucket(name: str, *, rate: float = 0.5, seed: int = 0) -> Iterator[Bucket]:
    """Serve one empty bucket, with credentials for it in the environment of this process.

    Args:
        name: No other bucket of this process may be called so at the same time.
        rate: The share of requests that fail.
        seed: See `Bucket`.
    """
    from moto.moto_server.werkzeug_app import (
        DomainDispatcherApplication,
        MotoRequestHandler,
        create_backend_app,
    )
    from werkzeug.serving import ThreadedWSGIServer

    class Handler(MotoRequestHandler):
        def connection_dropped(self, error: BaseException, environ: Any = None) -> None:
            del error, environ
            self.close_connection = True  # by `_reset`; there is no further request to wait for

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    bucket = Bucket(name, seed=seed)
    gate = _Gate(DomainDispatcherApplication(create_backend_app), bucket)
    server = ThreadedWSGIServer("127.0.0.1", 0, gate, Handler)
    server.daemon_threads = False  # so that closing the server waits for them
    bucket.endpoint = f"127.0.0.1:{server.port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), name=f"bucket {name}")
    thread.start()
    keys = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "secret"}
    try:
        bucket.create()
        bucket.rate = rate
        with mock.patch.dict(os.environ, keys):
            yield bucket
    finally:
        bucket.stopped.set()
        server.shutdown()
        thread.join()
        server.server_close()
        if name in _buckets():
            bucket.remove()


@contextlib.contextmanager
def serve_bucket(name: str) -> Iterator[str]:
    """Serve one empty bucket that never fails.

    Yields:
        The host and port of its endpoint.
    """
    with serve_flaky_bucket(name, rate=0) as bucket:
        yield bucket.endpoint


def _backends() -> Any:
    from moto.s3.models import s3_backends

    return s3_backends


def _buckets() -> dict[str, Any]:
    from moto.core import DEFAULT_ACCOUNT_ID

    return _backends()[DEFAULT_ACCOUNT_ID]["aws"].buckets


class _Gate:
    """A WSGI application that fails some requests and hands the others on."""

    def __init__(self, inner: Callable[..., Iterable[bytes]], bucket: Bucket) -> None:
        self.inner = inner
        self.bucket = bucket

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        bucket = self.bucket
        fault = bucket.draw(environ["REQUEST_METHOD"])
        began_s = time.monotonic()
        while time.monotonic() - began_s < bucket.delay_s and not bucket.stopped.wait(0.01):
            pass
        if fault == CUT:
            return self._cut(environ, start)
        if fault == RESET:
            _reset(environ)
        if isinstance(fault, tuple):
            _drain(environ)
            return _refuse(fault, start)
        return self.inner(environ, start)

    def _cut(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        """Half of the answer under the headers of the whole."""
        answer = self.inner(environ, start)
        try:
            body = b"".join(answer)
        finally:
            getattr(answer, "close", lambda: None)()
        if not body:
            _reset(environ)
        return [body[: len(body) // 2]]


def _refuse(fault: tuple[int, str], start: Callable[..., Any]) -> list[bytes]:
    status, code = fault
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{code}</Message></Error>"
    headers = [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))]
    start(f"{status} {code}", headers)
    return [body.encode()]


def _drain(environ: dict[str, Any]) -> None:
    """Read the whole request: closing a connection with unread bytes would reset it."""
    left = int(environ.get("CONTENT_LENGTH") or 0)
    while left > 0 and (part := environ["wsgi.input"].read(min(left, 2**20))):
        left -= len(part)


def _reset(environ: dict[str, Any]) -> None:
    """Break the connection at once, unread and unanswered."""
    connection = environ["werkzeug.socket"]
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    socket.socket(fileno=connection.detach()).close()
    raise ConnectionResetError
