"""Before a worker exists: a run is new, goes on or is done, and what does not fit is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.kit.training import STRATEGIES
from tests.launch.runs import (
    SEQUENCE,
    leave_checkpoint,
    refused,
    run_of,
    tear_manifest,
    text_run,
)
from tidemill.checkpoint.manifest import MANIFEST
from tidemill.data.corpus import prepare_corpus
from tidemill.errors import CheckpointError, DataError, SpecError, StorageError
from tidemill.launch.preflight import RAY_JOB_VARIABLE, Start, preflight
from tidemill.report.events import EventLog
from tidemill.spec.progress import EventKind
from tidemill.spec.run import Resume, RunSpec
from tidemill.spec.scale import ScaleSpec
from tidemill.spec.training import (
    AdamWSpec,
    BatchSpec,
    CustomModelSpec,
    GptSpec,
    TextSpec,
)
from tidemill.storage import locate


@pytest.fixture
def spec(tmp_path: Path) -> RunSpec:
    return text_run(tmp_path)


@pytest.fixture
def save(spec: RunSpec) -> Callable[[int], Path]:
    """Leave a checkpoint of `spec` on its own corpus after so many steps."""
    corpus = prepare_corpus(spec.data, locate(spec.storage), sequence=SEQUENCE)
    return lambda step: leave_checkpoint(spec, step, corpus=corpus.digest)


def leave_events(spec: RunSpec, attempt: int) -> None:
    log = EventLog(run_of(spec), attempt)
    log.record(EventKind.stopped, step=1)
    log.close()


# --- what training would mean ----------------------------------------------------------------


def test_a_new_run(spec: RunSpec, tmp_path: Path) -> None:
    ready = preflight(spec)
    assert (ready.start, ready.step, ready.launch) == (Start.fresh, 0, 1)
    assert ready.message == f"starting {tmp_path}/runs/mill"
    assert ready.corpus.train_documents + ready.corpus.val_documents == 6
    assert not Path(run_of(spec).path).exists()


def test_a_run_goes_on(spec: RunSpec, save: Callable[[int], Path], tmp_path: Path) -> None:
    save(3)
    save(6)
    ready = preflight(spec)
    assert (ready.start, ready.step) == (Start.resume, 6)
    assert ready.message == f"resuming {tmp_path}/runs/mill at step 6"


@pytest.mark.parametrize("steps", [10, 9])
def test_a_run_that_is_done(steps: int, spec: RunSpec, save: Callable[[int], Path]) -> None:
    save(10)
    ready = preflight(replace(spec, steps=steps))
    assert (ready.start, ready.step) == (Start.finished, 10)
    assert "has finished its 10 steps already" in ready.message


def test_what_a_finished_run_advises_works(spec: RunSpec, save: Callable[[int], Path]) -> None:
    save(10)
    message = preflight(spec).message
    assert f"optim.decay_steps={spec.optim.decay_steps}" in message
    assert f"optim.warmup_steps={spec.optim.warmup_steps}" in message
    assert "steps=20 " in message
    assert preflight(replace(spec, steps=20)).start is Start.resume


def test_each_launch_has_a_number_of_its_own(spec: RunSpec) -> None:
    for attempt in (1, 2, 11):
        leave_events(spec, attempt)
    assert preflight(spec).launch == 12


def test_paths_are_resolved_where_the_driver_is(
    spec: RunSpec, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    ready = preflight(replace(spec, storage="here"))
    assert ready.spec == replace(spec, storage=f"{tmp_path}/here")
    assert ready.run.path == f"{tmp_path}/here/mill"
    assert ready.corpus.uri.startswith(f"{tmp_path}/here/cache/")


# --- what a person asks of an earlier run ----------------------------------------------------


def test_resume_never_wants_an_unused_name(
    spec: RunSpec, save: Callable[[int], Path], tmp_path: Path
) -> None:
    never = replace(spec, resume=Resume.never)
    assert preflight(never).start is Start.fresh
    save(3)
    with refused(CheckpointError, tmp_path, "resume=never", "use another name="):
        preflight(never)


def test_a_name_is_used_once_anything_is_there(spec: RunSpec, tmp_path: Path) -> None:
    leave_events(spec, 1)
    assert preflight(spec).start is Start.fresh
    with refused(CheckpointError, tmp_path, "resume=never", "exists already"):
        preflight(replace(spec, resume=Resume.never))


def test_resume_must_wants_a_checkpoint(
    spec: RunSpec, save: Callable[[int], Path], tmp_path: Path
) -> None:
    must = replace(spec, resume=Resume.must)
    leave_events(spec, 1)
    with refused(CheckpointError, tmp_path, "resume=must", "check name= and storage="):
        preflight(must)
    save(3)
    assert preflight(must).start is Start.resume


# --- other mathematics, other places ---------------------------------------------------------


def test_every_key_that_differs_is_named_with_both_values(
    spec: RunSpec, save: Callable[[int], Path], tmp_path: Path
) -> None:
    save(3)
    other = replace(
        spec,
        seed=8,
        model=GptSpec(layers=1, heads=2, width=12),
        optim=AdamWSpec(lr=0.5, warmup_steps=5, decay_steps=30, weight_decay=0.1, clip=1.0),
    )
    with refused(
        CheckpointError,
        tmp_path,
        "name: ",
        "(model.width: 8 then, 12 now; optim.lr: 0.003 then, 0.5 now; seed: 7 then, 8 now)",
        "put the old values back, or give this run another name=",
    ):
        preflight(other)


def test_another_kind_of_data_is_told_key_by_key(
    spec: RunSpec, save: Callable[[int], Path], tmp_path: Path
) -> None:
    save(3)
    other = replace(spec, data=replace(spec.data, held_out=0.4))
    with refused(CheckpointError, tmp_path, "data.held_out: 0.2 then, 0.4 now"):
        preflight(other)


def test_a_run_may_move(spec: RunSpec, save: Callable[[int], Path], tmp_path: Path) -> None:
    save(3)
    moved = (tmp_path / "texts").rename(tmp_path / "elsewhere")
    ready = preflight(
        replace(
            spec,
            strategy=STRATEGIES["deepspeed_z3"],
            scale=ScaleSpec(workers=4),
            batch=BatchSpec(global_size=4, micro_size=1, sequence=SEQUENCE),
            data=TextSpec(paths=[str(moved)], held_out=0.2),
        )
    )
    assert (ready.start, ready.step) == (Start.resume, 3)


def test_another_corpus_is_refused(
    spec: RunSpec, save: Callable[[int], Path], tmp_path: Path
) -> None:
    trained_on = preflight(spec).corpus.digest
    save(3)
    (tmp_path / "texts" / "6.txt").write_text("the tide goes out\n")
    now_on = prepare_corpus(spec.data, locate(spec.storage), sequence=SEQUENCE).digest
    with refused(
        CheckpointError,
        tmp_path,
        "data: ",
        f"(digest {trained_on[:12]}, now {now_on[:12]})",
        "give it the same files, or this run another name=",
    ):
        preflight(spec)


# --- damage ----------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["torn", "empty", "bit"])
def test_an_unreadable_manifest_is_passed_over(
    damage: str, spec: RunSpec, save: Callable[[int], Path]
) -> None:
    save(3)
    save(6)
    newest = save(9) / MANIFEST
    content = newest.read_bytes()
    middle = len(content) // 2
    newest.write_bytes(
        {
            "torn": content[:-20],
            "empty": b"",
            "bit": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
        }[damage]
    )
    assert preflight(spec).step == 6


def test_a_directory_without_a_manifest_is_no_checkpoint(
    spec: RunSpec, save: Callable[[int], Path]
) -> None:
    save(3)
    (save(6) / MANIFEST).unlink()
    assert preflight(spec).step == 3


@pytest.mark.parametrize("resume", Resume)
def test_a_run_without_a_readable_checkpoint_is_refused(
    resume: Resume, spec: RunSpec, save: Callable[[int], Path], tmp_path: Path
) -> None:
    tear_manifest(save(3))
    newest = save(6)
    tear_manifest(newest)
    with refused(
        CheckpointError,
        tmp_path,
        "resume: no checkpoint of ",
        f"{newest}/{MANIFEST} is cut short",
        "restore one, or start anew under another name",
    ):
        preflight(replace(spec, resume=resume))


# --- storage ---------------------------------------------------------------------------------


def test_relative_storage_is_refused_in_a_job_of_ray(
    spec: RunSpec, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv(RAY_JOB_VARIABLE, json.dumps({"metadata": {}}))
    for relative in ("runs", "./runs", "../runs"):
        with refused(SpecError, tmp_path, f"storage: {relative!r} is relative", "s3://"):
            preflight(replace(spec, storage=relative))
    for absolute in (f"{tmp_path}/a", "~/b", f"file://{tmp_path}/c"):
        assert preflight(replace(spec, storage=absolute)).start is Start.fresh


def test_the_variable_is_the_one_that_ray_sets() -> None:
    from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR

    assert RAY_JOB_CONFIG_JSON_ENV_VAR == RAY_JOB_VARIABLE


@pytest.mark.parametrize("storage", ["occupied", "occupied/below/it"])
def test_storage_that_cannot_be_written_names_its_key(
    storage: str, spec: RunSpec, tmp_path: Path
) -> None:
    (tmp_path / "occupied").write_text("a file")
    with refused(
        StorageError,
        tmp_path,
        "storage: cannot ",
        f" {tmp_path}/{storage}",
        ": a file is in the way of a directory",
        "; choose a storage= that this machine can read and write",
    ):
        preflight(replace(spec, storage=str(tmp_path / storage)))


def test_an_unknown_scheme_names_its_key(spec: RunSpec, tmp_path: Path) -> None:
    with refused(StorageError, tmp_path, "storage: ftp://tide: unknown scheme ftp://"):
        preflight(replace(spec, storage="ftp://tide"))


def test_a_refused_corpus_leaves_nothing(spec: RunSpec, tmp_path: Path) -> None:
    with refused(DataError, tmp_path, "data.paths: ", "does not exist"):
        preflight(replace(spec, data=TextSpec(paths=[str(tmp_path / "gone")])))
    with refused(DataError, tmp_path, "data.paths: ", "lower batch.sequence"):
        preflight(replace(spec, batch=BatchSpec(global_size=4, micro_size=2, sequence=5000)))


def test_a_factory_whose_package_is_nowhere_is_refused_at_once(spec: RunSpec) -> None:
    model = CustomModelSpec(factory="no_such_package.models:make")
    with pytest.raises(SpecError, match=r"model\.factory: there is no package no_such_package"):
        preflight(replace(spec, model=model))
    assert not Path(run_of(spec).path).exists()
