"""The main job on a real local Ray: train, be killed, be stopped, be damaged, go on, write text."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import psutil
import pytest

from tests.kit.doors import (
    curve_of,
    door_ajar,
    events_of,
    open_door,
    run_at,
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
    "optim.decay_steps=30",
    "precision=fp32",
    "data.held_out=0.2",
)
STEPS = 14
KILLED_AFTER = 6


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a small corpus, where every run of this module lives."""
    place = tmp_path_factory.mktemp("main-job")
    for number in range(8):
        lines = [f"def f{number}_{line}(x):\n    return x + {line}\n" for line in range(40)]
        (place / f"part{number}.py").write_text("\n".join(lines))
    return place


def _arguments(name: str, steps: int = STEPS, strategy: str = "deepspeed_z2") -> tuple[str, ...]:
    return (
        *SMALL,
        f"name={name}",
        f"steps={steps}",
        f"strategy={strategy}",
        "data.paths=[part*.py]",
        "checkpoint.every_steps=4",
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
    assert "has finished its 14 steps already" in answer.out
    assert curve_of(run_at(place, "undisturbed")) == undisturbed


def test_killed_and_started_again_it_is_the_same_run(place: Path, undisturbed: list[float]) -> None:
    run = run_at(place, "killed")
    with door_ajar("train", *_arguments("killed"), cwd=place) as driver:
        family = psutil.Process(driver.pid)
        wait_for_step(run, KILLED_AFTER, driver)
        children = family.children(recursive=True)
        driver.send_signal(signal.SIGKILL)
        driver.communicate()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive
    taken = len(curve_of(run))
    assert KILLED_AFTER < taken < STEPS

    answer = open_door("train", *_arguments("killed"), cwd=place)
    assert answer.code == 0, answer.err
    (restored,) = events_of(run, EventKind.restored)
    assert restored.fields["step"] % 4 == 0
    assert restored.fields["step"] > 0
    assert curve_of(run) == pytest.approx(undisturbed, abs=1e-6)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_saves_first(place: Path, undisturbed: list[float], number: signal.Signals) -> None:
    name = f"stopped-{number.name}"
    run = run_at(place, name)
    long = ("checkpoint.every_steps=0", "steps=2000")
    with door_ajar("train", *_arguments(name), *long, cwd=place) as driver:
        wait_for_step(run, 2, driver)
        driver.send_signal(number)
        out, err = driver.communicate(timeout=60)
    assert driver.returncode == 128 + number, err
    (stopped,) = events_of(run, EventKind.stopped)
    (newest,) = committed(run)
    assert newest.name == f"step-{stopped.fields['step']:010d}-a0001"
    assert f"stopped with a checkpoint at step {stopped.fields['step']}" in out
    assert not (Path(run.path) / "control").exists()
    curve = curve_of(run)
    common = min(len(curve), STEPS)
    assert curve[:common] == pytest.approx(undisturbed[:common], abs=1e-6)


def test_a_damaged_checkpoint_is_passed_over_and_told(
    place: Path, undisturbed: list[float]
) -> None:
    run = run_at(place, "damaged")
    assert open_door("train", *_arguments("damaged", steps=8), cwd=place).code == 0
    newest, older = committed(run)
    file = Path(newest.path) / "rank-00001.bin"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)

    answer = open_door("train", *_arguments("damaged", strategy="ddp"), cwd=place)
    assert answer.code == 0, answer.err
    assert newest.name in answer.out
    (refused,) = events_of(run, EventKind.checkpoint_refused)
    assert refused.fields["name"] == newest.name
    (restored,) = events_of(run, EventKind.restored)
    assert restored.fields["step"] == int(older.name[5:15])
    assert curve_of(run) == pytest.approx(undisturbed, abs=2e-6)


def test_text_and_weights_come_out(place: Path, undisturbed: list[float]) -> None:
    assert undisturbed
    asked = ("run=undisturbed", "prompt=def f", "tokens=20")
    first, second = (open_door("generate", *asked, cwd=place) for _ in range(2))
    assert first.code == 0, first.err
    assert first.out == second.out
    assert first.out.startswith("def f")
    assert len(first.out) > len("def f\n")

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
    assert answer.code == 1
    assert answer.err.count("the tide went out") == 2
    assert answer.err.lstrip().startswith("Traceback")
    assert answer.err.rstrip().splitlines()[-1] == (
        "error: rank 1 failed: ArithmeticError: the tide went out"
    )
