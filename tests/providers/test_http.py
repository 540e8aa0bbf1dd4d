"""The HTTP core: patient where that helps, and strict about what comes back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from email.utils import formatdate

import httpx
import pytest

from tidemill.providers import http
from tidemill.providers.http import Api, Pace, Wire
from tidemill.providers.trouble import ProviderError, Trouble

KEY = "canary-5dd1c7e0"


class Answer(Wire):
    """What the tests ask for."""

    number: int


@pytest.fixture
def make_api(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Api]]:
    """Clients of a vendor that is a function."""
    monkeypatch.setattr(http, "PAUSE_S", 0.01)
    made: list[Api] = []

    def make(answer: Callable[[httpx.Request], httpx.Response], **options: object) -> Api:
        transport = httpx.MockTransport(answer)
        known = {"headers": {"Authorization": f"Bearer {KEY}"}, "secrets": [KEY]} | options
        made.append(Api("mock", "https://mock.test/v1/", transport=transport, **known))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for api in made:
        api.close()


def test_an_answer_is_decoded_and_what_is_not_needed_ignored(
    make_api: Callable[..., Api],
) -> None:
    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(200, json={"number": 7, "more": True})

    assert make_api(answer).get("/thing", Answer, a=1, b=None).number == 7
    assert str(asked[0].url) == "https://mock.test/v1/thing?a=1"
    assert asked[0].headers["Authorization"] == f"Bearer {KEY}"


def test_retry_after_is_heeded_as_seconds_and_as_a_date(make_api: Callable[..., Api]) -> None:
    for hint in ("0.2", formatdate(time.time() + 1, usegmt=True)):
        times: list[float] = []

        def answer(
            _: httpx.Request, times: list[float] = times, hint: str = hint
        ) -> httpx.Response:
            times.append(time.monotonic())
            if len(times) == 1:
                return httpx.Response(429, headers={"Retry-After": hint}, text="slow down")
            return httpx.Response(200, json={"number": 1})

        make_api(answer).get("/thing", Answer)
        assert times[1] - times[0] >= (0.2 if hint == "0.2" else 0.05)


def test_a_hint_beyond_all_patience_ends_it_at_once(make_api: Callable[..., Api]) -> None:
    api = make_api(lambda _: httpx.Response(429, headers={"Retry-After": "3600"}, text="later"))
    began_s = time.monotonic()
    with pytest.raises(ProviderError) as told:
        api.get("/thing", Answer)
    assert told.value.trouble is Trouble.throttled
    assert time.monotonic() - began_s < 5


def test_what_will_not_pass_is_not_tried_again(make_api: Callable[..., Api]) -> None:
    for code in (400, 401, 403, 404):
        asked: list[int] = []

        def answer(_: httpx.Request, asked: list[int] = asked, code: int = code) -> httpx.Response:
            asked.append(code)
            return httpx.Response(code, text="no")

        with pytest.raises(ProviderError):
            make_api(answer).get("/thing", Answer)
        assert len(asked) == 1


@pytest.mark.parametrize("body", ['{"number": "seven"}', "[]", '{"number": null}', "3"])
def test_an_answer_of_another_shape_names_the_place(
    make_api: Callable[..., Api], body: str
) -> None:
    api = make_api(lambda _: httpx.Response(200, text=body))
    with pytest.raises(ProviderError) as told:
        api.get("/thing", Answer)
    assert told.value.trouble is Trouble.unreadable
    assert "GET /thing" in told.value.detail


def test_a_redirect_is_not_followed_with_the_key(make_api: Callable[..., Api]) -> None:
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.host)
        return httpx.Response(302, headers={"Location": "https://elsewhere.test/"})

    with pytest.raises(ProviderError) as told:
        make_api(answer).get("/thing", Answer)
    assert asked == ["mock.test"]
    assert told.value.trouble is Trouble.unreadable


def test_a_vendor_that_repeats_the_key_is_not_quoted(make_api: Callable[..., Api]) -> None:
    api = make_api(lambda _: httpx.Response(403, text=f"key {KEY} may not"))
    with pytest.raises(ProviderError) as told:
        api.get("/thing", Answer)
    assert KEY not in str(told.value)
    assert "[hidden]" in str(told.value)


def test_an_endless_answer_is_cut(
    make_api: Callable[..., Api], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "MOST_BYTES", 1000)
    api = make_api(lambda _: httpx.Response(200, text="[" + "1," * 2000 + "1]"))
    with pytest.raises(ProviderError, match="more than 1,000 bytes"):
        api.get("/thing", Answer)


def test_requests_keep_their_distance() -> None:
    pace = Pace(2.0)
    assert [pace.turn(now_s) for now_s in (10.0, 10.5, 11.0, 30.0)] == [0.0, 1.5, 3.0, 0.0]


def test_the_longest_path_that_fits_sets_the_pace(make_api: Callable[..., Api]) -> None:
    api = make_api(
        lambda _: httpx.Response(200, json={"number": 1}), apart_s={"/": 60.0, "/quick": 0.0}
    )
    for _ in range(3):
        api.get("/quick/thing", Answer)
    api.get("/slow", Answer)
    with pytest.raises(ProviderError, match="others of this process come first"):
        api.get("/slow", Answer)
