"""Runs in storage, looked at, proven, thinned out and compared as the door does it."""

from __future__ import annotations

import io
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from rich.console import Console

from tests.checkpoint.commits import commit, flip, lose, make_foreign, scribble, tear
from tests.checkpoint.states import HEADER, make_tensors
from tests.kit.bucket import HAVE_BUCKET, serve_bucket
from tests.launch.runs import refused, tree
from tidemill import storage
from tidemill.checkpoint.inspect import Held, survey
from tidemill.errors import CheckpointError, StorageError
from tidemill.launch import checkpoints
from tidemill.launch.checkpoints import act, list_all, prune, verify
from tidemill.report.desk import Desk
from tidemill.report.events import EventLog
from tidemill.report.inventory import (
    Anatomy,
    Change,
    Differences,
    Inventory,
    Page,
    Proof,
    Pruning,
    Verification,
)
from tidemill.report.pages import Answer
from tidemill.spec.doors import Action, CheckpointsSpec
from tidemill.spec.progress import EventKind
from tidemill.storage import locate


class Notes(Desk):
    """A desk that keeps what it is given."""

    def __init__(self) -> None:
        super().__init__(as_json=False, console=Console(file=io.StringIO()))
        self.page: Page | None = None
        self.said: list[Proof] = []

    def answer(self, page: Answer) -> None:
        self.page = cast("Page", page)
        super().answer(page)

    def say(self, proof: Proof) -> None:
        self.said.append(proof)
        super().say(proof)


def ask(place: Path, action: str, **changes: Any) -> tuple[int, Any]:
    """The exit code and the answer of the door about the run `mill` below `place`."""
    asked = CheckpointsSpec(action=Action(action), run="mill", storage=str(place), **changes)
    notes = Notes()
    return act(asked, notes), notes.page


def happened(run: Path, attempt: int, *kinds: EventKind) -> None:
    """Let an attempt have told of something."""
    log = EventLog(locate(str(run)), attempt)
    for kind in kinds:
        log.record(kind, step=5)
    log.close()


def steps(run: Path) -> list[int]:
    return [held.step for held in survey(locate(str(run)))]


@pytest.fixture
def mill(tmp_path: Path) -> Path:
    """A run with three whole checkpoints."""
    run = tmp_path / "mill"
    for step, val in ((10, 1.0), (20, 3.0), (30, 2.0)):
        commit(run, step, metrics={"loss": 4.0 - step / 10, "val_loss": val})
    return run


def held(run: Path, step: int) -> Held:
    return next(one for one in survey(locate(str(run))) if one.step == step)


# --- list and show ----------------------------------------------------------------------------


def test_a_list_tells_of_all(mill: Path, tmp_path: Path) -> None:
    tear(mill, 40)
    lose(held(mill, 30))
    code, page = ask(tmp_path, "list")
    assert code == 0
    assert isinstance(page, Inventory)
    assert page.place == str(mill)
    assert [(row.step, row.state) for row in page.checkpoints] == [
        (40, "torn"),
        (30, "corrupt"),
        (20, "whole"),
        (10, "whole"),
    ]
    assert page.newest == "step-0000000020-a0001"
    row = page.checkpoints[2]
    assert (row.loss, row.val_loss, row.world) == (2.0, 3.0, 1)
    assert (row.strategy, row.precision, row.attempt) == ("ddp", "fp32", 1)
    assert row.bytes == held(mill, 20).size
    assert row.at_s is not None
    assert abs(row.at_s - time.time()) < 60


def test_a_run_may_have_no_checkpoint_yet(tmp_path: Path) -> None:
    storage.publish(locate(str(tmp_path / "mill" / "spec.json")), b"{}")
    assert ask(tmp_path, "list") == (
        0,
        Inventory(place=str(tmp_path / "mill"), newest="", checkpoints=()),
    )
    for action in ("show", "verify", "prune", "diff"):
        with refused(CheckpointError, tmp_path, "run: ", "has no checkpoint yet; train it further"):
            ask(tmp_path, action, keep_last=1, with_step=1)


def test_one_is_shown_whole(mill: Path, tmp_path: Path) -> None:
    scalars = {"guard": {"skipped": 1, "in_a_row": 0}}
    commit(mill, 40, scalars=scalars)
    code, page = ask(tmp_path, "show", step=40)
    assert code == 0
    assert isinstance(page, Anatomy)
    assert (page.checkpoint.step, page.samples, page.rng) == (40, 320, "keyed")
    assert (page.scalars, page.identity) == (scalars, HEADER.identity)
    assert (page.digest, page.corpus_digest) == ("d" * 64, "c" * 64)
    assert [kind.kind for kind in page.kinds] == ["buffer", "exp_avg", "param"]
    (file,) = page.files
    assert (file.name, file.bytes > file.data > 0) == ("rank-00000.bin", True)


def test_without_a_step_the_newest_whole_one_is_shown(mill: Path, tmp_path: Path) -> None:
    lose(held(mill, 30))
    tear(mill, 40)
    assert ask(tmp_path, "show")[1].checkpoint.step == 20
    assert ask(tmp_path, "show", step=30)[1].checkpoint.state == "corrupt"


def test_of_a_step_the_latest_attempt_is_shown(mill: Path, tmp_path: Path) -> None:
    commit(mill, 20, attempt=2)
    assert ask(tmp_path, "show", step=20)[1].checkpoint.attempt == 2


def test_what_is_not_there_is_told_with_what_is(mill: Path, tmp_path: Path) -> None:
    with refused(CheckpointError, tmp_path, "step: ", "no checkpoint of step 25; there are 10, 20"):
        ask(tmp_path, "show", step=25)
    with refused(CheckpointError, tmp_path, "with_step: ", "no checkpoint of step 25"):
        ask(tmp_path, "diff", step=10, with_step=25)
    storage.publish(locate(str(tmp_path / "mole" / "spec.json")), b"{}")
    storage.publish(locate(str(mill / "spec.json")), b"{}")
    with refused(CheckpointError, tmp_path, "run: ", "is no run; did you mean mill? runs there: m"):
        act(CheckpointsSpec(action=Action.list, run="mil", storage=str(tmp_path)), Notes())
    with refused(CheckpointError, tmp_path, "with_run: ", "is no run; runs there: mill, mole"):
        ask(tmp_path, "diff", with_run="zebra")
    with refused(CheckpointError, tmp_path, "run: ", "is no run; check storage=, which holds no"):
        ask(tmp_path / "nowhere", "list")
    with pytest.raises(StorageError, match="storage: ftp://x: unknown scheme"):
        act(CheckpointsSpec(action=Action.list, run="a", storage="ftp://x"), Notes())


def test_what_has_no_manifest_cannot_be_shown(mill: Path, tmp_path: Path) -> None:
    tear(mill, 40)
    scribble(held(mill, 30))
    with refused(CheckpointError, tmp_path, "step: step-0000000040-a0001 is torn (it has no mani"):
        ask(tmp_path, "show", step=40)
    with refused(CheckpointError, tmp_path, "step-0000000030-a0001 is corrupt (", "name another"):
        ask(tmp_path, "show", step=30)
    for step in (10, 20):
        lose(held(mill, step))
    with refused(CheckpointError, tmp_path, "run: no checkpoint of ", "is whole (it has no mani"):
        ask(tmp_path, "show")


# --- verify -----------------------------------------------------------------------------------


def test_every_byte_of_every_checkpoint_is_read(mill: Path, tmp_path: Path) -> None:
    code, page = ask(tmp_path, "verify")
    assert code == 0
    assert isinstance(page, Verification)
    assert [proof.checkpoint.step for proof in page.proofs] == [30, 20, 10]
    flip(held(mill, 20), 0)
    code, page = ask(tmp_path, "verify")
    assert code == 1
    (failed,) = page.failed
    assert failed.checkpoint.step == 20
    assert failed.checkpoint.problem.startswith("rank-00000.bin has changed: bytes 0 to ")
    assert ask(tmp_path, "verify", step=30)[0] == 0
    assert ask(tmp_path, "verify", step=20)[0] == 1


def test_each_is_told_as_soon_as_it_is_known(mill: Path) -> None:
    class Impatient(Notes):
        def say(self, proof: Proof) -> None:
            super().say(proof)
            if len(self.said) == 2:
                raise KeyboardInterrupt

    desk = Impatient()
    with pytest.raises(KeyboardInterrupt):
        verify(locate(str(mill)), 0, desk)
    assert [proof.checkpoint.step for proof in desk.said] == [30, 20]


def test_all_attempts_of_a_step_are_verified(mill: Path, tmp_path: Path) -> None:
    commit(mill, 20, attempt=2)
    _, page = ask(tmp_path, "verify", step=20)
    assert [proof.checkpoint.attempt for proof in page.proofs] == [2, 1]


def test_a_save_that_goes_on_is_no_damage_and_what_a_kill_left_is(
    mill: Path, tmp_path: Path
) -> None:
    happened(mill, 1, EventKind.attempt_started)
    tear(mill, 40)
    assert ask(tmp_path, "verify")[0] == 0
    happened(mill, 2, EventKind.attempt_started)
    assert ask(tmp_path, "verify")[0] == 1


@pytest.mark.parametrize("hurt", [make_foreign, scribble])
def test_what_cannot_be_verified_fails(hurt: Any, mill: Path, tmp_path: Path) -> None:
    hurt(held(mill, 10))
    code, page = ask(tmp_path, "verify")
    assert code == 1
    assert [proof.checkpoint.step for proof in page.failed] == [10]


# --- prune ------------------------------------------------------------------------------------


def test_nothing_goes_unless_told(mill: Path, tmp_path: Path) -> None:
    before = tree(tmp_path)
    code, page = ask(tmp_path, "prune", keep_last=1)
    assert isinstance(page, Pruning)
    assert (code, page.applied) == (0, False)
    assert [fate.checkpoint.step for fate in page.going] == [20, 10]
    assert tree(tmp_path) == before


def test_what_was_told_goes(mill: Path, tmp_path: Path) -> None:
    told = ask(tmp_path, "prune", keep_last=1, keep_best=1)[1]
    done = ask(tmp_path, "prune", keep_last=1, keep_best=1, apply=True)[1]
    assert replace(done, applied=False).going == told.going
    assert steps(mill) == [30, 10]
    assert ask(tmp_path, "prune", keep_last=1, keep_best=1, apply=True)[1].going == ()


def test_multiples_stay(mill: Path, tmp_path: Path) -> None:
    ask(tmp_path, "prune", keep_every_steps=20, apply=True)
    assert steps(mill) == [30, 20]


def test_the_newest_that_stays_is_proven_first(mill: Path, tmp_path: Path) -> None:
    flip(held(mill, 30), 0)
    page = ask(tmp_path, "prune", keep_last=1, apply=True)[1]
    assert [(fate.checkpoint.step, fate.stays, fate.why) for fate in page.fates] == [
        (30, True, "corrupt, but no newer one is whole"),
        (20, True, "newest"),
        (10, False, "no rule keeps it"),
    ]
    assert steps(mill) == [30, 20]


def test_the_last_whole_one_is_never_spared_on_a_hope(mill: Path, tmp_path: Path) -> None:
    for step in (10, 20, 30):
        flip(held(mill, step), 0)
    with refused(CheckpointError, tmp_path, "is whole (rank-00000.bin has changed", "nothing is r"):
        ask(tmp_path, "prune", keep_last=1, apply=True)


def test_without_a_view_of_the_bytes_nothing_is_called_damaged(
    mill: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_input = storage.open_input

    def fail(place: storage.Location) -> Any:
        if "step-0000000030" in place.path:
            raise StorageError(f"cannot read {place}: no connection")
        return open_input(place)

    monkeypatch.setattr(storage, "open_input", fail)
    prune(locate(str(mill)), checkpoints.Keep(last=1), Notes(), apply=True)
    assert steps(mill) == [30, 20]


def test_what_a_kill_left_goes_only_once_nobody_can_be_writing_it(
    mill: Path, tmp_path: Path
) -> None:
    happened(mill, 1, EventKind.attempt_started, EventKind.failed)
    happened(mill, 2, EventKind.attempt_started)
    tear(mill, 15, attempt=1)
    tear(mill, 35, attempt=2)
    page = ask(tmp_path, "prune", keep_last=9, apply=True)[1]
    assert [fate.checkpoint.step for fate in page.going] == [15]
    assert steps(mill) == [35, 30, 20, 10]
    happened(mill, 2, EventKind.failed)
    assert ask(tmp_path, "prune", keep_last=9, apply=True)[1].going == ()
    happened(mill, 2, EventKind.stopped)
    assert len(ask(tmp_path, "prune", keep_last=9, apply=True)[1].going) == 1
    assert steps(mill) == [30, 20, 10]


# --- diff -------------------------------------------------------------------------------------


def test_a_copy_is_bit_equal(mill: Path, tmp_path: Path) -> None:
    commit(tmp_path / "copy", 30, metrics={"loss": 1.0, "val_loss": 2.0})
    code, page = ask(tmp_path, "diff", step=30, with_run="copy", with_step=30)
    assert isinstance(page, Differences)
    assert (code, page.bit_equal, page.facts, page.identity) == (0, True, (), ())
    assert (page.tensors, page.differing) == (len(make_tensors(30)), 0)


def test_what_differs_is_told(mill: Path, tmp_path: Path) -> None:
    other = HEADER.identity | {"batch": {"sequence": 16}}
    commit(
        tmp_path / "fork",
        30,
        tensors=make_tensors(30) | {"param.cube": make_tensors(30)["param.cube"] + 1},
        scalars={"guard": {"skipped": 1}},
        header=replace(HEADER, run="fork", identity=other),
    )
    code, page = ask(tmp_path, "diff", step=30, with_run="fork", top=1)
    assert (code, page.bit_equal, page.differing) == (1, False, 1)
    assert page.identity == (Change(key="batch.sequence", left=8, right=16),)
    assert {change.key for change in page.facts} == {"run", "guard", "loss", "val_loss"}
    assert [change.name for change in page.worst] == ["param.cube"]
    assert [(kind.kind, kind.differing) for kind in page.kinds] == [
        ("buffer", 0),
        ("exp_avg", 0),
        ("param", 1),
    ]
    assert page.elements == sum(tensor.numel() for tensor in make_tensors(30).values())


@pytest.mark.parametrize(("top", "named"), [(0, 11), (3, 3), (99, 11)])
def test_as_many_are_named_as_asked(top: int, named: int, mill: Path, tmp_path: Path) -> None:
    _, page = ask(tmp_path, "diff", step=10, with_step=20, top=top)
    assert (page.differing, len(page.worst)) == (11, named)


# --- object storage ---------------------------------------------------------------------------

if HAVE_BUCKET:

    def test_a_bucket_is_looked_at_as_a_disk_is() -> None:
        with serve_bucket("tide") as endpoint:
            uri = f"s3://tide/runs?endpoint_override={endpoint}&scheme=http"
            run = locate(uri) / "mill"
            for step in (10, 20, 30):
                commit(run.uri, step)  # pyright: ignore[reportArgumentType]
            storage.publish(run / "checkpoints/step-0000000025-a0001/rank-00000.bin", b"torn")
            asked = CheckpointsSpec(action=Action.verify, run="mill", storage=uri)
            assert act(asked, Notes()) == 0
            assert [row.state for row in list_all(run).checkpoints] == [
                *("whole", "torn", "whole", "whole")
            ]
            prune(run, checkpoints.Keep(last=2), Notes(), apply=True)
            assert [held.step for held in survey(run)] == [30, 25, 20]
