"""The planning door: an answer in any case, one line for a mistake, and no key anywhere."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.doors import ROOT, Answer, open_door
from tests.kit.fakes.lambda_cloud import FakeLambda
from tests.kit.fakes.runpod import FakeRunPod
from tests.kit.fakes.server import Fake, Fault, serve
from tests.kit.fakes.vast import FakeVast

THREE = "placement.providers=[lambda,runpod,vast]"
FAULTS = (
    *(Fault.unauthorized, Fault.throttled, Fault.broken),
    *(Fault.truncated, Fault.html, Fault.error_as_success),
)
HEAVY = ("torch", "deepspeed", "ray", "boto3", "googleapiclient", "kubernetes", "azure")


@pytest.fixture
def vendors() -> Iterator[dict[str, Fake]]:
    with contextlib.ExitStack() as stack:
        yield {
            "lambda": stack.enter_context(serve(FakeLambda())),
            "runpod": stack.enter_context(serve(FakeRunPod())),
            "vast": stack.enter_context(serve(FakeVast())),
        }


def environment(vendors: dict[str, Fake], cache: Path) -> dict[str, str]:
    found = {"XDG_CACHE_HOME": str(cache)}
    for fake in vendors.values():
        found |= fake.environment()  # type: ignore[attr-defined] - each has one
    return found


def plan(place: Path, *typed: str, env: dict[str, str] | None = None) -> Answer:
    return open_door("plan", *typed, cwd=place, env=env)


def test_a_plan_is_shown_and_kept(tmp_path: Path) -> None:
    answer = plan(tmp_path, "live=false", "model=gpt_1b", "scale.workers=8", "deadline=20h")
    assert answer.code == 0, answer.err
    assert answer.out.startswith("plan of hello: $")
    assert "as of now: " in answer.out
    assert "ray job submit" in answer.out
    assert answer.err.splitlines() == ["kept: plans/hello.md", "kept: plans/hello.json"]
    assert (tmp_path / "plans" / "hello.md").read_text().startswith("# Plan of hello")
    as_json = plan(tmp_path, "live=false", "to=", "--json")
    assert (as_json.code, as_json.err) == (0, "")
    page = json.loads(as_json.out)
    assert page["choices"]
    assert page["more"] > 0


def test_it_needs_none_of_what_is_heavy(tmp_path: Path) -> None:
    script = (
        "import runpy, sys, atexit; sys.argv = ['plan.py', 'live=false', 'to=', 'format=json']\n"
        f"heavy = lambda: [name for name in {HEAVY} if name in sys.modules]\n"
        "atexit.register(lambda: print(heavy(), file=sys.stderr))\n"
        f"runpy.run_path({str(ROOT / 'jobs' / 'plan.py')!r}, run_name='__main__')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT / "platform")},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert json.loads(done.stdout)["choices"]
    assert done.stderr == "[]\n"


@pytest.mark.parametrize(
    ("typed", "key"),
    [
        (["top=0"], "top"),
        (["budget.max_totl_usd=5"], "budget.max_totl_usd"),
        (["deadline=soon"], "deadline"),
        (["placement.countries=[Germany]"], "placement.countries"),
        (["model=custom", "model.factory=a:b"], "model"),
        (["deadline=1m"], "deadline"),
        (["budget.max_total_usd=0.001", "budget.allow_stale_prices=true"], "budget.max_total_usd"),
        (["placement.providers=[nobody]"], "placement.providers"),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, typed: list[str], key: str) -> None:
    answer = plan(tmp_path, "live=false", "to=", *typed)
    assert answer.code == 2
    assert answer.err.startswith(f"error: {key}: ")
    assert answer.err.count("\n") == 1
    assert "Traceback" not in answer.err


def test_live_markets_are_planned_with(vendors: dict[str, Fake], tmp_path: Path) -> None:
    env = environment(vendors, tmp_path / "cache")
    typed = ("scale.workers=8", "scale.min_workers=1", "to=", "top=50", "--json")
    answer = plan(tmp_path, THREE, *typed, env=env)
    assert (answer.code, answer.err) == (0, "")
    page = json.loads(answer.out)
    assert page["skipped"] == []
    assert any("asked for just now" in note for note in page["notes"])
    assert {row["machines"].split(":")[0].split()[-1] for row in page["choices"]} == {
        "lambda",
        "runpod",
        "vast",
    }


def test_whatever_vendors_do_the_plan_comes_without_their_keys(
    vendors: dict[str, Fake], tmp_path: Path
) -> None:
    env = environment(vendors, tmp_path / "cache")
    told: list[str] = []
    for fault in FAULTS:
        vendors["vast"].fail(fault)
        answer = plan(tmp_path, THREE, "--json", f"to=plans-{fault.value}", env=env)
        assert answer.code == 0, answer.err
        page = json.loads(answer.out)
        (skipped,) = page["skipped"]
        assert skipped["subject"] == "vast"
        assert skipped["reason"]
        assert skipped["remedy"]
        told += [answer.out, answer.err]
    dumped = plan(tmp_path, "--cfg", "job", env=env)
    failed = plan(tmp_path, THREE, "deadline=1m", env=env)
    told += [dumped.out, dumped.err, failed.out, failed.err]
    kept = [file.read_text() for file in tmp_path.rglob("*") if file.is_file()]
    assert len(kept) > 2 * len(FAULTS)
    assert Fake.KEY not in "\n".join([*told, *kept])
