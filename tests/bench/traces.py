"""Spot traces, replayed for real on local machines and simulated: what of the ideal is used.

Each round replays a part of another trace twice, without notice and with. A worker's compute is a
pause in proportion to its samples, so that six of them are six machines whatever the cores; all
else is real: raylets that are killed or drained, processes that start and join, a run that an audit
finds to have used every sample once.

    ideal_no_notice           share of the machines' time that was useful, median of rounds
    ideal_notice              the same where machines are announced to go, as on AWS 120 s before
    simulator_error_points    points between a real replay and its simulation with the costs that
                              it has measured, median of all
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "platform")]

from tests.bench.contract import parse_rounds, tell
from tests.kit.doors import open_door
from tidemill.compose import compose
from tidemill.launch.replay import RUN, act, load_trace, overrides_of
from tidemill.plan.costs import MEASURED, costs_from_plain, rules_of
from tidemill.plan.simulate import simulate
from tidemill.spec.replay import ReplaySpec
from tidemill.spec.run import RunSpec

TRACES = ROOT.parent / "shared" / "data" / "traces"
PARTS = (
    ("bamboo/p3-trace.csv", "", 3240.0, 6.0),
    ("parcae/trace_hh_55_65.txt", "", 0.0, 6.0),
    ("skynomad/h100_16_counts.csv", "us-west1-a", 0.0, 24.0),
)
"""File, column, where to begin, and seconds of the trace per second."""
LASTS_S, QUICK_S = 600.0, 75.0
NOTICE_S = 120.0
NODES = 6

MODEL = """
import time
import torch

class Paced(torch.nn.Module):
    def __init__(self, vocab):
        super().__init__()
        self.embed = torch.nn.Embedding(vocab, 16)
        self.head = torch.nn.Linear(16, vocab)

    def forward(self, inputs_BS):
        time.sleep(0.01 * len(inputs_BS))
        return self.head(torch.tanh(self.embed(inputs_BS)))

def make(vocab, sequence):
    return Paced(vocab)
"""
TRAIN = (
    "strategy=ddp precision=fp32 model=custom model.factory=paced_model:make data=synthetic "
    "batch.sequence=16 batch.global_size=60 batch.micro_size=10 checkpoint=final report=quiet "
    "checkpoint.every_steps=100 report.eval_samples=1"
)


def part(number: int, lasts_s: float, storage: str) -> ReplaySpec:
    """What a round replays, without notice; of what Tidemill brings along if there is no other."""
    file, column, start_s, speed = PARTS[number % len(PARTS)]
    if not TRACES.is_dir():
        file, column, start_s, speed = "p3", "", 3240.0 + 3600.0 * number, 6.0
    return ReplaySpec(
        name=f"round{number}",
        trace=file if file == "p3" else str(TRACES / file),
        column=column,
        start_s=start_s,
        duration_s=lasts_s * speed,
        speed=speed,
        nodes=NODES,
        real=True,
        train=TRAIN,
        storage=storage,
    )


def with_notice(spec: ReplaySpec) -> ReplaySpec:
    """The same with notice, that is as much shorter as all else."""
    return replace(spec, name=f"{spec.name}-notice", notice_s=NOTICE_S / spec.speed)


def play(spec: ReplaySpec) -> dict[str, Any]:
    """One replay, real and simulated, and whether the run is what it should be."""
    run = compose(overrides_of(spec), config_name="config", schema=RunSpec)
    page = act(spec, run, ROOT / "jobs" / "train.py", lambda line: print(line, flush=True))
    place = Path(page.path).parent
    plain = json.loads((place / "replay.json").read_text())
    guessed = simulate(load_trace(spec), replace(rules_of(run), steps=0), MEASURED)
    audit = open_door("audit", f"run={RUN}", f"storage={place}", cwd=place)
    simulated, real = plain["reports"]
    return {
        "spec": {key: getattr(spec, key) for key in ("trace", "column", "start_s", "speed")},
        "notice_s": spec.notice_s,
        "real": real,
        "simulated": simulated,
        "simulated_with_what_is_brought_along": guessed.goodput,
        "costs": plain["costs"],
        "audit": audit.code == 0,
        "said": "" if audit.code == 0 else (audit.out + audit.err)[-2000:],
    }


def whole(costs: dict[str, Any], storage: str) -> dict[str, dict[str, float]]:
    """Goodput of whole traces at their own pace, simulated."""
    found: dict[str, dict[str, float]] = {}
    for number in range(len(PARTS)):
        spec = replace(part(number, 0.0, storage), start_s=0.0, speed=1.0, real=False)
        run = compose(overrides_of(spec), config_name="config", schema=RunSpec)
        rules = replace(rules_of(run), steps=0)
        for notice_s in (0.0, NOTICE_S):
            trace = load_trace(replace(spec, notice_s=notice_s))
            report = simulate(trace, rules, costs_from_plain(costs))
            found[f"{Path(trace.name).name}, notice {notice_s:g} s"] = {
                "hours": trace.duration_s / 3600,
                "goodput": report.goodput,
            }
    return found


def main() -> None:
    """Replay, compare, print the figures as the last line."""
    rounds = parse_rounds(__doc__ or "", rounds=len(PARTS), quick=1)
    lasts_s = LASTS_S if rounds > 1 else QUICK_S
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    plain: list[dict[str, Any]] = []
    noticed: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="traces-") as place:
        (Path(place) / "paced_model.py").write_text(MODEL)
        os.environ["PYTHONPATH"] = f"{place}:{ROOT / 'platform'}"
        for number in range(rounds):
            spec = part(number, lasts_s, place)
            arms = [(spec, plain), (with_notice(spec), noticed)]
            for arm, found in arms if number % 2 == 0 else arms[::-1]:
                print(f"round {number + 1}: {arm.trace}, notice {arm.notice_s:g} s", flush=True)
                found.append(play(arm))
        traces = whole(plain[-1]["costs"], place)
    played = [*plain, *noticed]
    sound = all(each["audit"] for each in played)
    errors = [100 * abs(each["simulated"]["goodput"] - each["real"]["goodput"]) for each in played]
    figures: dict[str, float | None] = {
        "ideal_no_notice": statistics.median(each["real"]["goodput"] for each in plain),
        "ideal_notice": statistics.median(each["real"]["goodput"] for each in noticed),
        "simulator_error_points": statistics.median(errors),
    }
    tell(
        "traces",
        figures if sound else dict.fromkeys(figures),
        rounds,
        {"replays": played, "whole_traces_simulated": traces},
    )


if __name__ == "__main__":
    main()
