"""The main job on a real local Ray: train, be killed, be stopped, be damaged, go on, write text."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.kit.doors import (
    curve_of,
    door_ajar,
    events_of,
    open_door,
    run_at,
    wait_for_attempt,
    wait_for_step,
)
from tidemill.checkpoint.manifest import committed
from tidemill.spec.progress import EventKind

SMALL = (
    "model.layers=2",
    "model.width=32",
    "batch.sequence=32",
    "batch.global_size=6",
    "batch.micro_size=2",
    "optim.decay_steps=300",
    "precision=fp32",
    "data.held_out=0.2",
)
STEPS = 300
EVERY = 25
KILLED_AFTER = 60
STRAYS: list[psutil.Process] = []


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory with a small corpus, where every run of this module lives."""
    place = tmp_path_factory.mktemp("main-job")
    for number in range(8):
        lines = [f"def f{number}_{line}(x):\n    return x + {line}\n" for line in range(40)]
        (place / f"part{number}.py").write_text("\n".join(lines))
    yield place
    # The agents of a Ray whose driver was killed leave by themselves, half a minute later.
    _, alive = psutil.wait_procs(STRAYS, timeout=90)
    assert not alive


def _arguments(name: str, steps: int = STEPS, strategy: str = "deepspeed_z2") -> tuple[str, ...]:
    return (
        *SMALL,
        f"name={name}",
        f"steps={steps}",
        f"strategy={strategy}",
        "data.paths=[part*.py]",
        f"checkpoint.every_steps={EVERY}",
        "report.eval_every_steps=0",
    )


@pytest.fixture(scope="module")
def undisturbed(place: Path) -> list[float]:
    """The curve of a run that nothing happens to."""
    answer = open_door("train", *_arguments("undisturbed"), cwd=place)
    assert answer.code == 0, answer.err
    return curve_of(run_at(place, "undisturbed"))


def test_a_run_says_little_and_leaves_a_summary(place: Path, undisturbed: list[float]) -> None:
    run = run_at(place, "undisturbed")
    assert len(undisturbed) == STEPS
    assert undisturbed[-1] < undisturbed[0]
    summary = (Path(run.path) / "summary.md").read_text()
    assert "finished" in summary
    assert (Path(run.path) / "loss.svg").read_text().startswith("<?xml")
    (evaluated,) = events_of(run, EventKind.evaluated)
    assert 0 < evaluated.fields["bits_per_byte"] < 8


def test_a_finished_run_says_so(place: Path, undisturbed: list[float]) -> None:
    answer = open_door("train", *_arguments("undisturbed"), cwd=place)
    assert answer.code == 0
    assert "has finished its 300 steps already" in answer.out
    assert curve_of(run_at(place, "undisturbed")) == undisturbed


def test_killed_and_damaged_it_goes_on_as_the_same_run(
    place: Path, undisturbed: list[float]
) -> None:
    """SIGKILL of the driver, a flipped bit in the newest checkpoint, the same command again."""
    run = run_at(place, "killed")
    with door_ajar("train", *_arguments("killed"), cwd=place) as driver:
        family = psutil.Process(driver.pid)
        wait_for_step(run, KILLED_AFTER, driver)
        children = family.children(recursive=True)
        driver.send_signal(signal.SIGKILL)
        driver.communicate()
    # Ray's agents take their time to notice; whatever computes or commits must be gone.
    workers = [child for child in children if "Kept" in _name(child) or "raylet" in _name(child)]
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert not alive
    assert KILLED_AFTER < len(curve_of(run)) < STEPS
    newest, older = committed(run)
    file = Path(newest.path) / "rank-00001.bin"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)

    answer = open_door("train", *_arguments("killed"), cwd=place)
    assert answer.code == 0, answer.err
    assert f"refused checkpoint {newest.name}" in answer.err
    (refused,) = events_of(run, EventKind.checkpoint_refused)
    assert refused.fields["name"] == newest.name
    (restored,) = events_of(run, EventKind.restored)
    assert restored.fields["checkpoint"] == older.name
    assert curve_of(run) == pytest.approx(undisturbed, abs=1e-6)
    STRAYS.extend(children)


def _name(process: psutil.Process) -> str:
    try:
        return process.name() + " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def test_a_lost_worker_is_replaced_and_a_stop_saves_first(
    place: Path, undisturbed: list[float]
) -> None:
    """SIGKILL of one worker, then SIGTERM; tests/system/test_ray_job.py stops with SIGINT."""
    run = run_at(place, "stopped")
    with door_ajar("train", *_arguments("stopped"), "steps=100000", cwd=place) as driver:
        wait_for_step(run, KILLED_AFTER, driver)
        family = psutil.Process(driver.pid).children(recursive=True)
        worker = next(child for child in family if "KeptWorker" in _name(child))
        worker.kill()
        wait_for_attempt(run, 2, driver)
        driver.send_signal(signal.SIGTERM)
        out, err = driver.communicate(timeout=60)
    assert driver.returncode == 128 + signal.SIGTERM, err
    (failed,) = events_of(run, EventKind.failed)
    assert failed.attempt == 1
    assert failed.fields["error"] in err
    (restored,) = events_of(run, EventKind.restored)
    assert restored.fields["source"] == "memory"
    (rejoined,) = events_of(run, EventKind.rejoined)
    assert [rejoined.fields[key] for key in ("cause", "kept", "fresh")] == ["kill", 1, 1]
    (stopped,) = events_of(run, EventKind.stopped)
    newest = committed(run)[0]
    assert newest.name == f"step-{stopped.fields['step']:010d}-a0002"
    assert f"stopped with a checkpoint at step {stopped.fields['step']}" in out
    assert not (Path(run.path) / "control").exists()
    curve = curve_of(run)
    common = min(len(curve), STEPS)
    assert curve[:common] == pytest.approx(undisturbed[:common], abs=1e-6)


def test_text_and_weights_come_out(place: Path, undisturbed: list[float]) -> None:
    assert undisturbed
    asked = ("run=undisturbed", "prompt=def f", "tokens=20")
    answer = open_door("generate", *asked, cwd=place)
    assert answer.code == 0, answer.err
    assert answer.out.startswith("def f")
    assert len(answer.out) > len("def f\n")

    answer = open_door("export", "run=undisturbed", "to=weights", cwd=place)
    assert answer.code == 0, answer.err
    config = json.loads((place / "weights" / "config.json").read_text())
    assert config["vocab"] == 257
    assert (place / "weights" / "model.safetensors").stat().st_size > 4 * 257 * 32


FAULTY = """
import torch

class Faulty(torch.nn.Module):
    def __init__(self, vocab):
        super().__init__()
        self.embed = torch.nn.Embedding(vocab, 8)
        self.head = torch.nn.Linear(8, vocab)

    def forward(self, inputs_BS):
        if torch.distributed.get_rank() == 1:
            raise ArithmeticError("the tide went out")
        return self.head(self.embed(inputs_BS))

def make(vocab, sequence):
    return Faulty(vocab)
"""


def test_a_failing_worker_shows_its_own_traceback_once(place: Path) -> None:
    (place / "faulty_model.py").write_text(FAULTY)
    answer = open_door(
        "train",
        *_arguments("faulty")[2:],
        "model=custom",
        "model.factory=faulty_model:make",
        cwd=place,
        env={"PYTHONPATH": f"{place}:{Path(__file__).parents[2] / 'platform'}"},
    )
    assert answer.code == 3
    assert answer.err.count("Traceback") == 1
    told, _, error = answer.err.rstrip().rpartition("\n")
    assert error == "error: rank 1 failed: ArithmeticError: the tide went out"
    assert told.endswith("ArithmeticError: the tide went out")
    assert "faulty_model.py" in told
    (failed,) = events_of(run_at(place, "faulty"), EventKind.failed)
    assert failed.fields["rank"] == 1
    assert failed.fields["error"] == "ArithmeticError: the tide went out"
