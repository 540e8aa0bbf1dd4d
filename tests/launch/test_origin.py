"""What a fresh run starts from is looked at before anything is started, and never changes later."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from tests.kit.training import STRATEGIES
from tests.launch.runs import (
    CORPUS,
    SEQUENCE,
    VOCAB,
    leave_checkpoint,
    leave_run,
    refused,
    run_of,
    table_run,
    tear_manifest,
    text_run,
)
from tidemill.checkpoint import manifest
from tidemill.checkpoint.manifest import MANIFEST, read_manifest
from tidemill.errors import CheckpointError, SpecError
from tidemill.launch.preflight import Preflight, Start, preflight
from tidemill.spec.checkpoint import CheckpointSpec
from tidemill.spec.run import Resume, RunSpec
from tidemill.spec.scale import ScaleSpec
from tidemill.spec.training import (
    AdamWSpec,
    BatchSpec,
    GptSpec,
    PrecisionKind,
    PrecisionSpec,
    SgdSpec,
)
from tidemill.storage import locate
from tidemill.train.model import build_model


@pytest.fixture
def hello(tmp_path: Path) -> RunSpec:
    """A run with checkpoints of steps 3 and 6, on texts that give 257 tokens."""
    spec = text_run(tmp_path, name="hello")
    leave_run(spec)
    leave_checkpoint(spec, 3)
    leave_checkpoint(spec, 6)
    return spec


def fork(spec: RunSpec, step: int = 0, **changes: Any) -> RunSpec:
    """A run called `fork` that starts from `spec`."""
    policy = CheckpointSpec(every_steps=0, from_run=spec.name, from_step=step)
    return replace(spec, **{"name": "fork", "checkpoint": policy, **changes})


def starting(spec: RunSpec, weights: str) -> RunSpec:
    return replace(spec, checkpoint=CheckpointSpec(every_steps=0, init_from=weights))


def settled(spec: RunSpec, step: int, origin: dict[str, Any]) -> RunSpec:
    """Leave a checkpoint of a run that was started from `origin`, on its own corpus."""
    corpus = preflight(replace(spec, checkpoint=CheckpointSpec(), resume=Resume.auto)).corpus
    place = locate(str(leave_checkpoint(spec, step, corpus=corpus.digest))) / MANIFEST
    found = replace(read_manifest(place.parent), origin=origin)
    Path(place.path).write_bytes(manifest.encode(found))
    return spec


def make_weights(spec: RunSpec, place: Path, vocab: int = VOCAB) -> str:
    """Leave weights of the model of `spec`."""
    place.mkdir()
    model = build_model(spec.model, vocab=vocab, sequence=SEQUENCE, seed=1)
    save_file(model.state_dict(), place / "model.safetensors")
    return str(place)


def started(ready: Preflight) -> tuple[Start, int, str]:
    return ready.start, ready.step, ready.message


# --- forks -----------------------------------------------------------------------------------


def test_a_run_starts_from_the_newest_checkpoint_of_another(hello: RunSpec) -> None:
    ready = preflight(fork(hello))
    runs = hello.storage
    assert started(ready) == (Start.fresh, 6, f"starting {runs}/fork from step 6 of hello")
    assert ready.spec.checkpoint.from_step == 6
    assert not Path(run_of(ready.spec).path).exists()


def test_a_run_starts_from_the_step_that_is_asked_for(hello: RunSpec) -> None:
    ready = preflight(fork(hello, 3))
    assert (ready.start, ready.step, ready.spec.checkpoint.from_step) == (Start.fresh, 3, 3)


def test_much_may_change_on_the_way(hello: RunSpec) -> None:
    changes = {
        "seed": 8,
        "optim": AdamWSpec(lr=0.5, warmup_steps=1, decay_steps=9, weight_decay=0.0),
        "batch": BatchSpec(global_size=6, micro_size=3, sequence=SEQUENCE + 1),
        "precision": PrecisionSpec(kind=PrecisionKind.bf16),
        "strategy": STRATEGIES["deepspeed_z3"],
        "scale": ScaleSpec(workers=4),
        "data": replace(hello.data, held_out=0.4),
        "resume": Resume.never,
    }
    assert preflight(fork(hello, **changes)).step == 6


def test_another_model_is_refused(hello: RunSpec, tmp_path: Path) -> None:
    other = fork(hello, model=GptSpec(layers=2, heads=2, width=8))
    told = "hello has another model (model.layers: 1 there, 2 here); use its model"
    with refused(CheckpointError, tmp_path, "checkpoint.from_run: ", told):
        preflight(other)


@pytest.mark.parametrize(
    ("then", "now"),
    [
        (None, SgdSpec(lr=0.1, decay_steps=9, momentum=0.9)),
        (
            SgdSpec(lr=0.1, decay_steps=9, momentum=0.9),
            SgdSpec(lr=0.1, decay_steps=9, momentum=0.0),
        ),
    ],
)
def test_another_optimizer_is_refused(
    then: SgdSpec | None, now: SgdSpec, hello: RunSpec, tmp_path: Path
) -> None:
    if then is not None:
        hello = replace(hello, name="sgd", optim=then)
        leave_checkpoint(hello, 6)
    with refused(CheckpointError, tmp_path, "moments of another optimizer", "jobs/export.py"):
        preflight(fork(hello, optim=now))


def test_tokens_that_the_model_does_not_know_are_refused(hello: RunSpec, tmp_path: Path) -> None:
    leave_run(hello, replace(CORPUS, vocab=50))
    preflight(replace(hello, name="other"))  # the corpus is packed
    with refused(CheckpointError, tmp_path, "hello knows 50 distinct tokens, and data has 257"):
        preflight(fork(hello))
    (Path(run_of(hello).path) / "corpus.json").unlink()
    assert preflight(fork(hello)).step == 6


def test_a_run_or_step_that_is_not_there_is_refused(hello: RunSpec, tmp_path: Path) -> None:
    with refused(CheckpointError, tmp_path, "checkpoint.from_run: ", "/runs/hullo has no checkp"):
        preflight(fork(replace(hello, name="hullo")))
    told = "has no checkpoint of step 4; there are those of 3, 6"
    with refused(CheckpointError, tmp_path, "checkpoint.from_step: ", "/runs/hello ", told):
        preflight(fork(hello, 4))


def test_a_run_cannot_start_from_itself(hello: RunSpec, tmp_path: Path) -> None:
    with refused(SpecError, tmp_path, "checkpoint.from_run: hello cannot start from itself"):
        preflight(fork(hello, name="hello"))


def test_a_manifest_that_cannot_be_read_is_passed_over(hello: RunSpec, tmp_path: Path) -> None:
    newest = Path(run_of(hello).path) / "checkpoints" / manifest.checkpoint_name(6, 1)
    tear_manifest(newest)
    assert preflight(fork(hello)).step == 3
    with refused(CheckpointError, tmp_path, "checkpoint.from_step: ", "cut short", "another step"):
        preflight(fork(hello, 6))


@pytest.mark.parametrize("steps", [5, 6])
def test_a_run_that_would_be_done_already_is_refused(
    steps: int, hello: RunSpec, tmp_path: Path
) -> None:
    with refused(SpecError, tmp_path, f"steps: {steps} are none to take after the 6 of hello"):
        preflight(fork(hello, steps=steps))
    assert preflight(fork(hello, 3, steps=steps)).step == 3


# --- weights ---------------------------------------------------------------------------------


def test_a_run_starts_from_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = text_run(tmp_path)
    make_weights(spec, tmp_path / "w")
    monkeypatch.chdir(tmp_path)
    ready = preflight(starting(spec, "w"))
    message = f"starting {tmp_path}/runs/mill from the weights in {tmp_path}/w"
    assert started(ready) == (Start.fresh, 0, message)
    assert ready.spec.checkpoint.init_from == f"{tmp_path}/w"
    file = starting(spec, "w/model.safetensors")
    assert preflight(file).spec.checkpoint.init_from == f"{tmp_path}/w/model.safetensors"


def test_weights_of_another_size_are_refused(tmp_path: Path) -> None:
    spec = text_run(tmp_path)
    preflight(spec)  # the corpus is packed
    wide = replace(spec, model=GptSpec(layers=1, heads=2, width=16))
    other = {
        "2,904": make_weights(spec, tmp_path / "more tokens", vocab=VOCAB + 7),
        "7,232": make_weights(wide, tmp_path / "more width"),
    }
    for size, weights in other.items():
        told = (f"checkpoint.init_from: {weights} holds {size} weights, and the model has 2,",)
        with refused(CheckpointError, tmp_path, *told):
            preflight(starting(spec, weights))
    anything = starting(table_run(tmp_path), make_weights(wide, tmp_path / "any"))
    assert preflight(anything).start is Start.fresh  # only its own code knows its size


def test_weights_that_are_not_there_are_refused(tmp_path: Path) -> None:
    spec = text_run(tmp_path)
    with refused(CheckpointError, tmp_path, "checkpoint.init_from: ", "/w has neither model.safet"):
        preflight(starting(spec, str(tmp_path / "w")))
    with refused(SpecError, tmp_path, "checkpoint.init_from: ftp://tide: unknown scheme"):
        preflight(starting(spec, "ftp://tide"))
    (tmp_path / "bad.safetensors").write_bytes(b"PK\x03\x04 pickle, really")
    with refused(CheckpointError, tmp_path, "checkpoint.init_from: ", "is no safetensors file"):
        preflight(starting(spec, str(tmp_path / "bad.safetensors")))


# --- one origin for life ---------------------------------------------------------------------


def test_the_same_command_goes_on_with_a_fork(hello: RunSpec) -> None:
    spec = settled(fork(hello), 8, {"run": "hello", "step": 6})
    for asked in (spec, fork(hello, 6), replace(spec, checkpoint=CheckpointSpec())):
        ready = preflight(asked)
        assert started(ready) == (Start.resume, 8, f"resuming {hello.storage}/fork at step 8")


def test_a_fork_needs_its_source_no_more(hello: RunSpec) -> None:
    spec = settled(fork(hello), 8, {"run": "hello", "step": 6})
    Path(run_of(hello).path).rename(Path(hello.storage) / "gone")
    assert preflight(spec).start is Start.resume


def test_the_same_command_goes_on_after_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    spec = settled(starting(text_run(tmp_path), "w"), 5, {"weights": f"{tmp_path}/w"})
    assert preflight(spec).start is Start.resume
    assert preflight(starting(spec, str(tmp_path / "w"))).step == 5


@pytest.mark.parametrize(
    ("origin", "was"),
    [
        ({}, "it was started anew"),
        ({"run": "hello", "step": 3}, "it was started from step 3 of hello"),
        ({"run": "other", "step": 6}, "it was started from step 6 of other"),
        ({"weights": "/w"}, "it was started from the weights in /w"),
    ],
)
def test_another_fork_than_the_one_it_was_is_refused(
    origin: dict[str, Any], was: str, hello: RunSpec, tmp_path: Path
) -> None:
    spec = settled(fork(hello, 6), 8, origin)
    with refused(
        CheckpointError, tmp_path, "checkpoint.from_run: ", was, "remove checkpoint.from_run, or"
    ):
        preflight(spec)


@pytest.mark.parametrize("origin", [{}, {"run": "hello", "step": 3}, {"weights": "/elsewhere"}])
def test_other_weights_than_it_was_started_from_are_refused(
    origin: dict[str, Any], tmp_path: Path
) -> None:
    spec = settled(starting(text_run(tmp_path), "/w"), 8, origin)
    with refused(CheckpointError, tmp_path, "checkpoint.init_from: ", "remove checkpoint.init_fr"):
        preflight(spec)
