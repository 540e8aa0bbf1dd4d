"""A node is lost between two uploads: the run goes on from the memory of those that are left."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.kit.cluster import Nodes, local_cluster
from tests.kit.doors import ROOT, curve_of, door_ajar, events_of, run_at
from tests.kit.training import Memory, NoSamples, NoStore
from tests.kit.world import run_world
from tidemill.checkpoint.manifest import committed
from tidemill.data.corpus import Corpus, open_stream
from tidemill.spec.base import from_plain
from tidemill.spec.progress import Cursor, EventKind, World
from tidemill.spec.run import RunSpec
from tidemill.train.engine import build_engine
from tidemill.train.guard import Guard
from tidemill.train.loop import Parts, train
from tidemill.train.model import build_model

STEPS = 100
EVERY = 5
KILLED_AFTER = 20
PATIENCE_S = 120.0  # each, for the snapshot and for the end

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


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a model and a corpus."""
    place = tmp_path_factory.mktemp("lost-node")
    (place / "slow_model.py").write_text(MODEL)
    lines = [f"def f{line}(x):\n    return x + {line}\n" for line in range(200)]
    (place / "part.py").write_text("\n".join(lines))
    return place


@pytest.fixture(scope="module")
def cluster(place: Path) -> Iterator[Nodes]:
    """Three nodes for two workers; a lost one is noticed within seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{place}:{ROOT / 'platform'}")
        patch.setenv("STEP_PAUSE_S", "0.03")
        patch.setenv("RAY_health_check_initial_delay_ms", "1000")
        patch.setenv("RAY_health_check_period_ms", "1000")
        patch.setenv("RAY_health_check_timeout_ms", "1000")
        patch.setenv("RAY_health_check_failure_threshold", "3")
        with local_cluster(2, head_cpus=1) as nodes:
            yield nodes


def _undisturbed(world: World, place: str, run: str) -> list[float]:
    """The curve of the run that lies at `run`, without Ray, saving nothing."""
    sys.path.insert(0, place)
    spec = from_plain(RunSpec, json.loads(Path(run, "spec.json").read_text()))
    corpus = Corpus(**json.loads(Path(run, "corpus.json").read_text()))
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
        recorder=memory,
        stop_requested=lambda: False,
        save_requested=lambda: False,
    )
    train(spec, parts, world, Cursor())
    return [step["loss"] for step in memory.all(EventKind.step)]


def _called(cluster: Nodes, node: str, title: str) -> list[psutil.Process]:
    """The node's processes whose title contains a word."""
    found: list[psutil.Process] = []
    for process in cluster.workers_of(node):
        try:
            if title in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def _wait_for(done: Callable[[], bool]) -> None:
    until_s = time.monotonic() + PATIENCE_S
    while not done():
        assert time.monotonic() < until_s
        time.sleep(0.05)


@pytest.mark.slow
def test_a_lost_node_costs_the_steps_since_the_snapshot(place: Path, cluster: Nodes) -> None:
    run = run_at(place, "lost")
    with door_ajar(
        "train",
        "name=lost",
        f"steps={STEPS}",
        "strategy=ddp",
        "model=custom",
        "model.factory=slow_model:make",
        "batch.sequence=16",
        "batch.global_size=4",
        "batch.micro_size=2",
        f"optim.decay_steps={STEPS}",
        "precision=fp32",
        "data.paths=[part.py]",
        "data.held_out=0.2",
        "checkpoint.every_steps=1000",
        "checkpoint.near_gib=1",
        f"checkpoint.near_every_steps={EVERY}",
        "report.eval_every_steps=0",
        cwd=place,
        env={"RAY_ADDRESS": cluster.address, "PYTHONPATH": f"{place}:{ROOT / 'platform'}"},
    ) as driver:

        def kept() -> list[int]:
            assert driver.poll() is None, driver.communicate()
            return [event.fields["step"] for event in events_of(run, EventKind.near_kept)]

        _wait_for(lambda: max(kept(), default=0) >= KILLED_AFTER)
        assert not committed(run)
        assert sum(bool(_called(cluster, node, "Vault")) for node in cluster.ids) == 2
        _, *others = cluster.ids
        lost = next(node for node in others if _called(cluster, node, "RayTrainWorker"))
        newest = max(kept())
        cluster.lose(lost)
        _, err = driver.communicate(timeout=PATIENCE_S)
    assert driver.returncode == 0, err

    (restored,) = events_of(run, EventKind.restored)
    assert restored.fields["source"] == "near"
    assert restored.fields["step"] >= newest >= KILLED_AFTER
    taken = [event for event in events_of(run, EventKind.step) if event.attempt == 1]
    assert restored.fields["step"] <= len(taken) < restored.fields["step"] + 4 * EVERY
    assert not [node for node in cluster.ids if _called(cluster, node, "Vault")]
    undisturbed, _ = run_world(_undisturbed, 2, str(place), run.path)
    assert len(undisturbed) == STEPS
    assert curve_of(run) == pytest.approx(undisturbed, abs=1e-6)
