"""What every benchmark here shares: a quiet machine, alternating arms, one JSON line at the end.

Run one from the repository's root, e.g. `python tests/bench/loop_tax.py`. Figures are ratios of
medians of rounds in which the arms took turns, so a machine that changes speed slows both.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence


def parse_rounds(description: str, *, rounds: int, quick: int) -> int:
    """Read the command line; refuse to start on a busy machine.

    Args:
        description: What is measured.
        rounds: Rounds of a full measurement.
        quick: Rounds under `--quick`.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help=f"{quick} rounds instead of {rounds}")
    chosen = quick if parser.parse_args().quick else rounds
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    print(f"load {load:.2f} on {cores} cores, {chosen} rounds", flush=True)
    if load > cores + 1:
        sys.exit(f"the machine is busy: load {load:.2f} is above {cores + 1}")
    return chosen


def alternate(arms: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Run the arms in turn, each round in the other order; give seconds by arm."""
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(rounds):
        order = list(arms) if number % 2 == 0 else list(arms)[::-1]
        for name in order:
            seconds[name].append(arms[name]())
            print(f"round {number + 1} {name}: {seconds[name][-1]:.3f} s", flush=True)
    return seconds


def ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """Ratio of the medians of two arms that took turns."""
    return statistics.median(above) / statistics.median(below)


def tell(bench: str, figures: Mapping[str, float | None], rounds: int, raw: object) -> None:
    """Print the last line."""
    line = {
        "bench": bench,
        "figures": figures,
        "rounds": rounds,
        "load": os.getloadavg()[0],
        "raw": raw,
    }
    print(json.dumps(line))
