"""The fleet door, live against vendors on loopback: a table always, and no key anywhere."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kit.fakes.lambda_cloud import FakeLambda
from tests.kit.fakes.runpod import FakeRunPod
from tests.kit.fakes.server import Fake, Fault, serve
from tests.kit.fakes.vast import FakeVast
from tidemill.compose import run_door
from tidemill.providers import http
from tidemill.spec.fleet import FleetSpec

Ended = tuple[Any, str, str]


@pytest.fixture
def vendors(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[dict[str, Fake]]:
    """Three of them, with their keys in the environment."""
    monkeypatch.setattr(http, "PAUSE_S", 0.01)
    monkeypatch.setattr(http, "SILENCE_S", 0.3)
    monkeypatch.setattr(http.Pace, "turn", lambda _self, _now_s: 0.0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with contextlib.ExitStack() as stack:
        fakes: dict[str, Any] = {
            "lambda": stack.enter_context(serve(FakeLambda())),
            "runpod": stack.enter_context(serve(FakeRunPod())),
            "vast": stack.enter_context(serve(FakeVast())),
        }
        for fake in fakes.values():
            for key, value in fake.environment().items():
                monkeypatch.setenv(key, value)
        yield fakes


@pytest.fixture
def open_door(
    load_door: Callable[[str], Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., Ended]:
    """Open the door in this process as a shell would."""

    def open_it(*typed: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["jobs/fleet.py", *typed])
        with pytest.raises(SystemExit) as left:
            run_door(load_door("fleet").main, config_name="fleet", schema=FleetSpec, verbs="action")
        told = capsys.readouterr()
        return left.value.code, told.out, told.err

    return open_it


THREE = "providers=[lambda,runpod,vast]"


def test_three_live_markets_make_one_table(
    vendors: dict[str, Fake], open_door: Callable[..., Ended]
) -> None:
    code, out, err = open_door("offers", THREE, "top=0", "--json")
    assert (code, err) == (0, "")
    page = json.loads(out)
    assert {row["provider"] for row in page["offers"]} == set(vendors)
    assert all(row["live"] for row in page["offers"])
    prices = [row["effective_usd_per_gpu_hour"] for row in page["offers"]]
    assert prices == sorted(prices)
    code, out, _ = open_door("offers", THREE, "gpu=H100")
    assert code == 0
    assert "live" in out


@pytest.mark.parametrize("fault", list(Fault))
def test_whatever_one_of_them_does_the_table_comes(
    vendors: dict[str, Fake], open_door: Callable[..., Ended], fault: Fault
) -> None:
    vendors["vast"].fail(fault)
    code, out, _ = open_door("offers", THREE, "top=0", "--json")
    page = json.loads(out)
    assert code == 0
    assert {row["provider"] for row in page["offers"] if row["live"]} == {"lambda", "runpod"}
    (skipped,) = page["skipped"]
    assert skipped["subject"] == "vast"
    assert skipped["reason"]
    assert skipped["remedy"]


def test_a_planted_key_is_nowhere(
    vendors: dict[str, Fake],
    open_door: Callable[..., Ended],
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    told: list[str] = []
    with caplog.at_level(logging.DEBUG):
        for fault in (None, Fault.forbidden, Fault.html, Fault.error_as_success, Fault.reset):
            for fake in vendors.values():
                fake.fault, fake.times = fault, None
            for typed in (("offers",), ("offers", "--json"), ("providers",), ("--cfg", "job")):
                told += map(str, open_door(*typed, *([THREE] if typed[0] == "offers" else [])))
    kept = [file.read_text() for file in tmp_path.rglob("*") if file.is_file()]
    assert kept
    everything = "\n".join([*told, *kept, caplog.text])
    for fake in vendors.values():
        assert fake.KEY not in everything


def test_without_a_single_key_the_catalogue_answers(
    open_door: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in ("LAMBDA_API_KEY", "VAST_API_KEY", "RUNPOD_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    code, out, _ = open_door("offers", "gpu=H100", THREE)
    assert code == 0
    assert "LAMBDA_API_KEY is not set; export LAMBDA_API_KEY" in out
    assert "H100-SXM5-80GB" in out


def test_a_mistake_is_one_line(open_door: Callable[..., Ended]) -> None:
    code, out, err = open_door("offers", "gpus=0")
    assert (code, out) == (2, "")
    assert err.startswith("error: gpus: ")
    code, _, err = open_door("ofers")
    assert code == 2
    assert "did you mean offers?" in err
