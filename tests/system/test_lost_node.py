"""A node or a driver is lost between two uploads: the run goes on from the memory of nodes."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
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
from tidemill.storage import Location
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


def _opened(
    place: Path, cluster: Nodes, name: str
) -> contextlib.AbstractContextManager[subprocess.Popen[str]]:
    """The door of a run on two workers that would first save at its end."""
    return door_ajar(
        "train",
        f"name={name}",
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
    )


def _wait_for_copies(driver: subprocess.Popen[str], run: Location) -> int:
    """Wait until a snapshot is near that is of step `KILLED_AFTER` at least; its step."""
    until_s = time.monotonic() + PATIENCE_S
    newest = 0
    while newest < KILLED_AFTER:
        assert driver.poll() is None, driver.communicate()
        assert time.monotonic() < until_s
        time.sleep(0.05)
        kept = [event.fields["step"] for event in events_of(run, EventKind.near_kept)]
        newest = max(kept, default=0)
    assert not committed(run)
    return newest


def _check_end(place: Path, cluster: Nodes, run: Location, newest: int) -> None:
    """The run went on from a near copy of step `newest` or later, and nothing else shows."""
    (restored,) = events_of(run, EventKind.restored)
    assert restored.fields["source"] == "near"
    assert restored.fields["step"] >= newest
    taken = [event for event in events_of(run, EventKind.step) if event.attempt == 1]
    assert restored.fields["step"] <= len(taken) < restored.fields["step"] + 4 * EVERY
    assert not [node for node in cluster.ids if _called(cluster, node, "Vault")]
    undisturbed, _ = run_world(_undisturbed, 2, str(place), run.path)
    assert len(undisturbed) == STEPS
    assert curve_of(run) == pytest.approx(undisturbed, abs=1e-6)


@pytest.mark.slow
def test_a_lost_node_costs_the_steps_since_the_snapshot(place: Path, cluster: Nodes) -> None:
    run = run_at(place, "lost")
    with _opened(place, cluster, "lost") as driver:
        newest = _wait_for_copies(driver, run)
        assert sum(bool(_called(cluster, node, "Vault")) for node in cluster.ids) == 2
        _, *others = cluster.ids
        cluster.lose(next(node for node in others if _called(cluster, node, "RayTrainWorker")))
        _, err = driver.communicate(timeout=PATIENCE_S)
    assert driver.returncode == 0, err
    _check_end(place, cluster, run, newest)


@pytest.mark.slow
def test_a_driver_that_was_killed_is_followed_by_another(place: Path, cluster: Nodes) -> None:
    run = run_at(place, "orphaned")
    with _opened(place, cluster, "orphaned") as driver:
        newest = _wait_for_copies(driver, run)
        driver.kill()
    with _opened(place, cluster, "orphaned") as driver:
        _, err = driver.communicate(timeout=PATIENCE_S)
    assert driver.returncode == 0, err
    _check_end(place, cluster, run, newest)
