"""A run that nears its budget saves, then stops, then is refused until there is more."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest

from tests.kit.doors import events_of, open_door, run_at
from tests.kit.slow_run import make_place, overrides_of
from tidemill.checkpoint.manifest import committed, read_manifest
from tidemill.report.events import read_events
from tidemill.spec.progress import EventKind

CAP_USD = 70.0
A_DOLLAR_A_SECOND = "budget.node_usd_per_hour=3600"
KEPT = ("budget.save_s=20", "budget.leave_s=5")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_place(tmp_path_factory.mktemp("budget"))


def test_money_runs_short(place: Path) -> None:
    env = {
        "PYTHONPATH": f"{place}:{Path(__file__).parents[2] / 'platform'}",
        "STEP_PAUSE_S": "0.05",
    }

    def train(*more: str) -> tuple[int, str, str, float]:
        begun_s = time.monotonic()
        answer = open_door(
            "train",
            *overrides_of("short", 3000),
            A_DOLLAR_A_SECOND,
            *KEPT,
            *more,
            cwd=place,
            env=env,
        )
        return answer.code, answer.out, answer.err, time.monotonic() - begun_s

    code, out, err, lasted_s = train(f"budget.max_total_usd={CAP_USD:g}")
    assert code == 4, (out, err)
    assert lasted_s < CAP_USD + 30, "most of which is Python and Ray, before anything was counted"
    run = run_at(place, "short")
    kinds = [event.kind for event in read_events(run)]
    asked, saved = kinds.index(EventKind.stop_requested), kinds.index(EventKind.checkpoint_saved)
    assert asked < saved < kinds.index(EventKind.stopped), "in that order"
    step = events_of(run, EventKind.stopped)[-1].fields["step"]
    assert read_manifest(committed(run)[0]).cursor.step == step > 0
    account = json.loads(Path(run.path, "purse.json").read_text())
    assert 0 < account["spent_usd"] <= CAP_USD
    assert re.search(
        rf"stopped with a checkpoint at step {step}, for [\d.]+ usd: [\d.]+ of budget", out
    )
    assert re.search(r"\| Cost \| [\d.]+ usd of 70.00 \|", Path(run.path, "summary.md").read_text())

    code, _, err, _ = train(f"budget.max_total_usd={CAP_USD:g}")
    assert code == 2
    assert "error: budget.max_total_usd: " in err

    code, _, err, _ = train("deadline=10s")
    assert code == 2
    assert "error: deadline: no time is left of 10s since the first launch" in err

    more = ("budget.max_total_usd=1000", "deadline=1h", f"steps={step + 3}")
    code, out, err, _ = train(*more)
    assert code == 0, (out, err)
    assert re.search(rf"finished {step + 3} steps, for [\d.]+ usd", out)
    after = json.loads(Path(run.path, "purse.json").read_text())
    assert after["spent_usd"] > account["spent_usd"]
    assert after["begun_s"] == account["begun_s"]
