"""Seconds from the command to a plan: from the shipped catalogue, and with ten live markets.

Each round is a fresh process of `jobs/plan.py` for a run of 1 to 8 workers. The markets are the
fakes of `tests/kit/fakes` on loopback, in this process, grown to 10,000 offers in all. They do not
check what they are asked and answer; requests to a vendor keep the pauses that its limits ask for.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "platform")]

from tests.bench.contract import parse_rounds, tell
from tests.kit.fakes import azure as azure_fakes
from tests.kit.fakes.aws import FakeAws
from tests.kit.fakes.azure import FakeAzure
from tests.kit.fakes.fluidstack import FakeFluidStack
from tests.kit.fakes.gcp import FakeGcp
from tests.kit.fakes.lambda_cloud import FakeLambda
from tests.kit.fakes.puzl import FakePuzl
from tests.kit.fakes.runpod import FakeRunPod
from tests.kit.fakes.salad import FakeSalad
from tests.kit.fakes.server import Fake, serve
from tests.kit.fakes.tensordock import FakeTensorDock
from tests.kit.fakes.vast import FakeVast
from tidemill.plan.offers import Demand
from tidemill.providers.market import Market, ask_market

RUN = (
    "experiment=gpt_124m_fsdp2",
    "data.paths=[s3://bucket/shards]",
    "data.vocab=50257",
    "scale.min_workers=1",
    "deadline=12h",
    "to=",
)
TIMEOUT_S = 120
GPUS = (("RTX 4090", 24564, 0.4), ("L40S", 46068, 0.9), ("A100 SXM4", 81920, 1.3))
PLACES = ("Sweden, SE", "Texas, US", "Germany, DE", "Oregon, US", "Japan, JP")


def make_plan(environment: Mapping[str, str], *more: str) -> float:
    """Seconds of one plan."""
    with tempfile.TemporaryDirectory(prefix="plan-") as place:
        began_s = time.monotonic()
        subprocess.run(
            [sys.executable, str(ROOT / "jobs" / "plan.py"), *RUN, *more],
            cwd=place,
            env={**os.environ, **environment, "XDG_CACHE_HOME": place},
            check=True,
            capture_output=True,
            timeout=TIMEOUT_S,
        )
        return time.monotonic() - began_s


def grown_vast(dice: random.Random) -> Fake:
    """2,500 asks, each on demand and for a bid."""
    fake = FakeVast()
    good = fake.asks[0]
    for number in range(2500):
        name, memory, usd = dice.choice(GPUS)
        count = dice.choice((1, 2, 4, 8))
        usd *= count * dice.uniform(0.7, 1.5)
        fake.asks.append(
            good
            | {"id": 10_000 + number, "gpu_name": name, "gpu_ram": memory, "num_gpus": count}
            | {"usd": usd, "min_bid": usd / 2, "geolocation": dice.choice(PLACES)}
            | {"cpu_cores_effective": 16.0 * count, "reliability2": dice.uniform(0.95, 1.0)}
        )
    return fake


def grown_tensordock(dice: random.Random) -> Fake:
    """1,150 hosts, which sell their GPUs in several numbers."""
    fake = FakeTensorDock()
    for number in range(1150):
        host = dict(fake.hosts[0], id=f"big-{number}")
        (kind, _, usd), *_ = host["gpus"]
        host["gpus"] = ((kind, dice.choice((2, 4, 8)), usd * dice.uniform(0.8, 1.4)),)
        fake.hosts.append(host)
    return fake


def grown_lambda() -> Fake:
    """A hundred kinds, everywhere."""
    regions = tuple(f"us-east-{number}" for number in range(16))
    name, gpu, gpus, cents, _ = FakeLambda().kinds[1]
    kinds = tuple((f"{name}_{n}", gpu, gpus, cents + n, regions) for n in range(100))
    return FakeLambda(kinds)


@contextlib.contextmanager
def ten_markets(place: Path) -> Iterator[dict[str, str]]:
    """What a client needs to find them."""
    dice = random.Random(7)
    regions = [f"eastus{number}" for number in range(60)]
    azure_fakes.ROWS = tuple(
        (size, region, usd * dice.uniform(0.9, 1.2), more)
        for region in regions
        for size, _, usd, more in azure_fakes.ROWS[:2] + azure_fakes.ROWS[10:15]
    )
    FakeAzure.PAGE = 1000
    fakes: list[Any] = [
        *(FakeAws(), FakeGcp(), FakeAzure(), grown_lambda(), grown_vast(dice)),
        *(FakeRunPod(), grown_tensordock(dice), FakeFluidStack(), FakeSalad(), FakePuzl(place)),
    ]
    environment: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        for fake in fakes:
            fake._spec = None
            stack.enter_context(serve(fake))
            environment |= fake.environment()
        yield environment


def look(environment: Mapping[str, str]) -> Market:
    """What the markets have, as a plan would see it; FluidStack tells no prices, so it has none."""
    market = ask_market(Demand(), {**os.environ, **environment})
    assert [refusal.subject for refusal in market.refusals] == ["fluidstack"], market.refusals
    return replace(market, offers=tuple(offer for offer in market.offers if offer.live))


def main() -> None:
    """Take turns."""
    assert __doc__ is not None
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    rounds = parse_rounds(__doc__.splitlines()[0], rounds=7, quick=2)
    snapshot: list[float] = []
    ten: list[float] = []
    with tempfile.TemporaryDirectory(prefix="plan-") as place, ten_markets(Path(place)) as found:
        market = look(found)
        print(f"{len(market.offers)} offers of {', '.join(market.live)}", flush=True)
        for number in range(rounds):
            snapshot.append(make_plan({}, "live=false"))
            ten.append(make_plan(found))
            print(f"round {number + 1}: {snapshot[-1]:.2f} s, {ten[-1]:.2f} s", flush=True)
    figures = {
        "plan_snapshot_s": statistics.median(snapshot),
        "plan_ten_markets_s": statistics.median(ten),
        "offers": len(market.offers),
        "markets": len(market.live),
    }
    tell("plan", figures, rounds, {"snapshot": snapshot, "ten_markets": ten})


if __name__ == "__main__":
    main()
