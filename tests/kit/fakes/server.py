"""A vendor on loopback whose requests and answers are held against the vendor's specification.

A fake that says what no vendor would say proves nothing. So every request a client makes and every
answer a fake gives is validated; what does not fit is kept in `violations`, and fails the test.
"""

from __future__ import annotations

import copy
import json
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar

from openapi_core import OpenAPI
from openapi_core.contrib.werkzeug import WerkzeugOpenAPIRequest, WerkzeugOpenAPIResponse
from openapi_core.exceptions import OpenAPIError
from werkzeug import Request, Response
from werkzeug.serving import make_server

SPECS = Path(__file__).with_name("specs")
SLOW_S = 30.0


class Fault(StrEnum):
    """What can go wrong between a client and a vendor."""

    unauthorized = "401"
    forbidden = "403"
    missing = "404"
    throttled = "429"
    throttled_with_hint = "429 with Retry-After"
    broken = "500"
    unavailable = "503"
    slow = "slow"
    truncated = "truncated"
    html = "HTML instead of JSON"
    error_as_success = "200 with an error body"
    reset = "connection closed"


Answer = Any
"""What a route returns: JSON, or a `Response`."""


class Fake:
    """A vendor.

    Attributes:
        SPEC: File below `specs/`: the part of the vendor's specification that is used, with a note
            of its source; empty if there is none.
        BASE: What the paths of the specification are below, on the fake's own server.
        ERRATA: Changes of the specification where it is wrong: a JSON pointer, what is to be there,
            and where that is known from.
        KEY: A key that it accepts.
        requests: What was asked, oldest first: method, path with query.
        violations: What did not fit the specification.
        faults: What goes wrong next, by number of requests; `None` for all of them.
    """

    SPEC: ClassVar[str] = ""
    BASE: ClassVar[str] = ""
    ERRATA: ClassVar[tuple[tuple[str, Any, str], ...]] = ()
    KEY: ClassVar[str] = "canary-7f3a9c51e2"

    def __init__(self) -> None:
        self.requests: list[str] = []
        self.violations: list[str] = []
        self.fault: Fault | None = None
        self.times: int | None = None
        self.url = ""
        self._hurry = threading.Event()
        self._spec = OpenAPI.from_dict(load_spec(self.SPEC, self.ERRATA)) if self.SPEC else None

    # --- what a vendor defines -------------------------------------------------------------------

    def routes(self) -> Mapping[tuple[str, str], Callable[[Request], Answer]]:
        """Who answers, by method and path."""
        raise NotImplementedError

    def is_allowed(self, request: Request) -> bool:
        """Whether it carries the key."""
        return request.headers.get("Authorization") == f"Bearer {self.KEY}"

    def error(self, code: int, message: str) -> Any:
        """The vendor's own body for an error."""
        return {"error": {"code": str(code), "message": message}}

    # --- faults ----------------------------------------------------------------------------------

    def fail(self, fault: Fault, times: int | None = None) -> None:
        """Fail the next `times` requests; all of them by default."""
        self.fault, self.times = fault, times

    def _faulty(self, request: Request, good: Response) -> Response | None:
        if self.fault is None or self.times == 0:
            return None
        if self.times is not None:
            self.times -= 1
        answer = good
        match self.fault:
            case Fault.slow:
                self._hurry.wait(SLOW_S)
            case Fault.truncated:
                body = good.get_data()
                answer = Response(body[: len(body) // 2], content_type="application/json")
                answer.headers["Content-Length"] = str(len(body))
            case Fault.reset:
                request.environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            case Fault.html:
                answer = Response("<html><body>Please log in</body></html>", mimetype="text/html")
            case Fault.error_as_success:
                answer = _json(self.error(503, "overloaded"), 200)
            case Fault.throttled_with_hint:
                answer = _json(self.error(429, "too many requests"), 429)
                answer.headers["Retry-After"] = "0"
            case _:
                code = int(self.fault.value)
                answer = _json(self.error(code, f"made to fail with {code}"), code)
        return answer

    # --- serving ---------------------------------------------------------------------------------

    def __call__(self, environ: Any, start: Any) -> Any:
        """A WSGI application."""
        request = Request(environ)
        asked = f"{request.method} {request.full_path.rstrip('?')}"
        self.requests.append(asked)
        self._check_request(request, asked)
        if self.is_allowed(request):
            answer = self._answer(request)
        else:
            answer = _json(self.error(401, "the key is not valid"), 401)
        failed = self._faulty(request, answer)
        if failed is None:
            self._check_answer(request, answer, asked)
        return (failed or answer)(environ, start)

    def _answer(self, request: Request) -> Response:
        route = self.routes().get((request.method, request.path))
        if route is None:
            return _json(self.error(404, f"no {request.path}"), 404)
        found = route(request)
        return found if isinstance(found, Response) else _json(found, 200)

    def _check_request(self, request: Request, asked: str) -> None:
        if self._spec is not None:
            try:
                self._spec.validate_request(WerkzeugOpenAPIRequest(request))
            except OpenAPIError as error:
                self.violations.append(f"{asked}: {_told(error)}")

    def _check_answer(self, request: Request, answer: Response, asked: str) -> None:
        if self._spec is not None and answer.status_code < 400:
            try:
                self._spec.validate_response(
                    WerkzeugOpenAPIRequest(request), WerkzeugOpenAPIResponse(answer)
                )
            except OpenAPIError as error:
                self.violations.append(f"answer to {asked}: {_told(error)}")


@contextmanager
def serve(fake: Fake) -> Iterator[Fake]:
    """Have it answer on loopback; `fake.url` says where."""
    server = make_server("127.0.0.1", 0, fake, threaded=True)
    server.daemon_threads = True  # type: ignore[attr-defined] - of ThreadingMixIn
    server.block_on_close = False  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    fake.url = f"http://127.0.0.1:{server.server_port}{fake.BASE}"
    try:
        yield fake
    finally:
        fake._hurry.set()
        server.shutdown()
        thread.join()
        server.server_close()


def load_spec(name: str, errata: tuple[tuple[str, Any, str], ...] = ()) -> dict[str, Any]:
    """A vendor's specification with what is wrong in it put right."""
    spec = copy.deepcopy(json.loads((SPECS / name).read_text(encoding="utf-8")))
    for pointer, value, _ in errata:
        *path, last = [part.replace("~1", "/") for part in pointer.strip("/").split("/")]
        place = spec
        for part in path:
            place = place[int(part) if isinstance(place, list) else part]
        place[last] = value
    # The fake is at an address of its own.
    spec["servers"] = [{"url": "/" + "".join(spec.get("x-base", "")).strip("/")}]
    return spec


def _json(plain: Any, code: int) -> Response:
    return Response(json.dumps(plain), code, content_type="application/json")


def _told(error: OpenAPIError) -> str:
    causes: list[str] = [str(error)]
    cause: BaseException | None = error.__cause__
    while cause is not None:
        causes.append(str(cause))
        causes += [item.message for item in getattr(cause, "schema_errors", [])]
        cause = cause.__cause__
    return "; ".join(causes)
