"""A small run that takes its time, and its curve as nobody disturbed it."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from tests.kit.cluster import Nodes
from tests.kit.doors import ROOT, door_ajar
from tests.kit.training import Memory, NoKeeper, NoSamples, NoStore
from tidemill.data.corpus import Corpus, open_stream
from tidemill.spec.base import from_plain
from tidemill.spec.progress import Cursor, EventKind, World
from tidemill.spec.run import RunSpec
from tidemill.spec.strategy import DdpSpec
from tidemill.storage import Location
from tidemill.train.engine import build_engine
from tidemill.train.guard import Guard
from tidemill.train.loop import Parts, train
from tidemill.train.model import build_model
from tidemill.train.pulse import Pulse

# Slow enough that a step is longer than the moment between a look and a kill.
MODEL = """
import os
import time
import torch

class Slow(torch.nn.Module):
    def __init__(self, vocab):
        super().__init__()
        self.embed = torch.nn.Embedding(vocab, 16)
        self.head = torch.nn.Linear(16, vocab)
        self.pause_s = float(os.environ.get("STEP_PAUSE_S", "0"))

    def forward(self, inputs_BS):
        time.sleep(self.pause_s)
        return self.head(torch.tanh(self.embed(inputs_BS)))

def make(vocab, sequence):
    return Slow(vocab)
"""


def make_place(place: Path) -> Path:
    """Put a model and a corpus into a directory."""
    (place / "slow_model.py").write_text(MODEL)
    lines = [f"def f{line}(x):\n    return x + {line}\n" for line in range(200)]
    (place / "part.py").write_text("\n".join(lines))
    return place


def environment(place: Path, pause_s: float) -> dict[str, str]:
    """What the nodes of a cluster need in order to run it, and to notice a loss within seconds."""
    return {
        "PYTHONPATH": f"{place}:{ROOT / 'platform'}",
        "STEP_PAUSE_S": str(pause_s),
        "RAY_health_check_initial_delay_ms": "1000",
        "RAY_health_check_period_ms": "1000",
        "RAY_health_check_timeout_ms": "1000",
        "RAY_health_check_failure_threshold": "3",
        "RAY_worker_niceness": "0",
    }


def open_run(
    place: Path, cluster: Nodes, name: str, steps: int, *overrides: str
) -> contextlib.AbstractContextManager[subprocess.Popen[str]]:
    """The door of a run on a cluster; see `overrides_of`."""
    return door_ajar(
        "train",
        *overrides_of(name, steps),
        *overrides,
        cwd=place,
        env={"RAY_ADDRESS": cluster.address, "PYTHONPATH": f"{place}:{ROOT / 'platform'}"},
    )


def overrides_of(name: str, steps: int) -> list[str]:
    """What makes a run the small one, in fp32, that first saves at its end."""
    return [
        f"name={name}",
        f"steps={steps}",
        "strategy=ddp",
        "model=custom",
        "model.factory=slow_model:make",
        "batch.sequence=16",
        "batch.global_size=4",
        "batch.micro_size=2",
        f"optim.decay_steps={steps}",
        "precision=fp32",
        "data.paths=[part.py]",
        "data.held_out=0.2",
        "checkpoint.every_steps=100000",
        "report.eval_every_steps=0",
    ]


def undisturbed(world: World, place: str, run: Location, steps: int) -> list[float]:
    """The first losses of a run as DDP alone takes it, without Ray, saving nothing."""
    sys.path.insert(0, place)
    spec = from_plain(RunSpec, json.loads(Path(run.path, "spec.json").read_text()))
    spec = replace(spec, strategy=DdpSpec(), steps=steps)
    corpus = Corpus(**json.loads(Path(run.path, "corpus.json").read_text()))
    sequence = spec.batch.sequence
    model = build_model(spec.model, vocab=corpus.vocab, sequence=sequence, seed=spec.seed)
    engine = build_engine(spec, model, world)
    memory = Memory()
    parts = Parts(
        engine=engine,
        guard=Guard(spec.precision, engine),
        stream=open_stream(spec.data, corpus, seed=spec.seed, sequence=sequence, split="train"),
        held_out=NoSamples(),
        byte_level=False,
        store=NoStore(),
        keeper=NoKeeper(),
        pulse=Pulse(),
        recorder=memory,
        stop_requested=lambda: False,
        save_requested=lambda: False,
        leave_requested=lambda: False,
    )
    train(spec, parts, world, Cursor())
    return [step["loss"] for step in memory.all(EventKind.step)]
