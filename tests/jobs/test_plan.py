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
    {"vast": Fault.unauthorized, "lambda": Fault.throttled, "runpod": Fault.truncated},
    {"vast": Fault.html, "lambda": Fault.unauthorized, "runpod": Fault.broken},
    {"vast": Fault.error_as_success, "lambda": Fault.truncated, "runpod": Fault.html},
)
HEAVY = ("torch", "deepspeed", "ray", "googleapiclient", "kubernetes", "azure")
ALONE = ("boto3", "botocore", "gpuhunt")
"""Beside those, where nobody is asked."""


KEYLESS = {name: value for name, value in os.environ.items() if not name.endswith("_API_KEY")} | {
    "TIDEMILL_AZURE_URL": "http://127.0.0.1:9",  # whose prices need no key
}


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


@pytest.mark.parametrize("live", ["false", "true"])
def test_it_needs_none_of_what_is_heavy(tmp_path: Path, live: str) -> None:
    heavy = HEAVY if live == "true" else HEAVY + ALONE
    script = (
        f"import runpy, sys, atexit; sys.argv = ['plan.py', 'live={live}', 'to=', '--json']\n"
        f"heavy = lambda: [name for name in {heavy} if name in sys.modules]\n"
        "atexit.register(lambda: print(heavy(), file=sys.stderr))\n"
        f"runpy.run_path({str(ROOT / 'jobs' / 'plan.py')!r}, run_name='__main__')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=KEYLESS | {"PYTHONPATH": str(ROOT / "platform"), "XDG_CACHE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    page = json.loads(done.stdout)
    assert page["choices"]
    assert bool(page["skipped"]) is (live == "true")
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


def test_where_nothing_is_possible_programs_get_a_page_and_people_a_line(tmp_path: Path) -> None:
    dear = ("budget.max_total_usd=0.001", "budget.allow_stale_prices=true")
    answer = plan(tmp_path, "live=false", "--json", *dear)
    assert answer.code == 2
    page = json.loads(answer.out)
    assert (page["choices"], page["commands"]) == ([], [])
    assert page["worlds"]
    kept, other, error = answer.err.splitlines()
    assert (kept, other) == ("kept: plans/hello.md", "kept: plans/hello.json")
    assert error.startswith("error: budget.max_total_usd: ")


def test_what_cannot_be_kept_is_one_line_after_the_plan(tmp_path: Path) -> None:
    answer = plan(tmp_path, "live=false", "to=/dev/null/plans")
    assert answer.code == 2
    assert answer.out.startswith("plan of hello: $")
    assert answer.err.startswith("error: to: /dev/null/plans cannot be written (")
    assert answer.err.count("\n") == 1


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
    for number, faults in enumerate(FAULTS):
        for name, fake in vendors.items():
            fake.fault = faults.get(name)
        answer = plan(tmp_path, THREE, "--json", f"to=plans-{number}", env=env)
        assert answer.code == 0, answer.err
        page = json.loads(answer.out)
        assert page["choices"]
        skipped = {row["subject"]: row for row in page["skipped"]}
        assert skipped.keys() == faults.keys()
        assert all(row["reason"] and row["remedy"] for row in skipped.values())
        told += [answer.out, answer.err]
    assert vendors["lambda"].requests, "all of them were asked"
    dumped = plan(tmp_path, "--cfg", "job", env=env)
    failed = plan(tmp_path, THREE, "deadline=1m", env=env)
    told += [dumped.out, dumped.err, failed.out, failed.err]
    kept = [file.read_text() for file in tmp_path.rglob("*") if file.is_file()]
    assert len(kept) > 2 * len(FAULTS)
    assert Fake.KEY not in "\n".join([*told, *kept])
