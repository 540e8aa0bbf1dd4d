"""What a person can get wrong ends as one line that says what to type, before anything is spent.

Everything here goes through the real door, in a process and an empty directory of its own. Most of
these processes are forked from one that has imported what doors use; a mistake of each kind is made
in a new Python too, which also tells what it has loaded to say so.
"""

from __future__ import annotations

import functools
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from tests.kit.doors import ROOT, Answer
from tests.kit.world import _server
from tests.launch.runs import leave_checkpoint, tear_manifest, tree
from tidemill.compose import compose
from tidemill.spec.run import RunSpec

RUN = ("name=mill", "data=synthetic", "seed=1", "optim.lr=0.25")
OTHER = ("name=mill", "data=synthetic", "seed=99", "optim.lr=0.5")
PATIENCE_S = 180.0
HEAVY = {"deepspeed", "matplotlib", "ray", "torch"}


def nothing(_: Path) -> None:
    """Leave the directory empty."""


def holding(files: Mapping[str, bytes]) -> Callable[[Path], None]:
    """Put files into the directory first."""

    def prepare(place: Path) -> None:
        for name, content in files.items():
            (place / name).write_bytes(content)

    return prepare


def trained(place: Path) -> None:
    """Put a run into the directory that has taken some steps."""
    leave_checkpoint(_spec(place), 5)


def damaged(place: Path) -> None:
    """Put a run into the directory, no checkpoint of which can be read."""
    tear_manifest(leave_checkpoint(_spec(place), 5))


def _spec(place: Path) -> RunSpec:
    return replace(_composed(), storage=f"{place}/runs")


@functools.cache
def _composed() -> RunSpec:
    return compose(RUN, config_name="config", schema=RunSpec)


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """What is typed, where, and what the one line must hold: the key first, then the remedy.

    `{place}` stands for the directory.
    """

    typed: tuple[str, ...]
    key: str
    told: str
    remedy: str
    prepare: Callable[[Path], None] = field(default=nothing)
    door: str = "train"


MISTAKES = {
    # The configuration.
    "unknown key": Mistake(
        typed=("stepz=3",), key="stepz: ", told="no such key", remedy="did you mean steps?"
    ),
    "unknown key in a group": Mistake(
        typed=("optim.lrr=3",),
        key="optim.lrr: ",
        told="no such key",
        remedy="did you mean optim.lr?",
    ),
    "unknown option": Mistake(
        typed=("strategy=deepspeed_z4",),
        key="strategy: ",
        told="there is no 'deepspeed_z4'",
        remedy="options: ddp, deepspeed_z1, deepspeed_z2, deepspeed_z3, fsdp2",
    ),
    "wrong type": Mistake(
        typed=("steps=many",),
        key="steps: ",
        told="'many' is not a whole number",
        remedy="; use a whole number",
    ),
    "out of range": Mistake(
        typed=("batch.micro_size=0",),
        key="batch.micro_size: ",
        told="0 is too small",
        remedy="; use 1 or more",
    ),
    "two that do not go together": Mistake(
        typed=("strategy=deepspeed_z2", "precision=fp16", "precision.scale_window=10"),
        key="precision.scale_window: ",
        told="10 with fp16 on DeepSpeed",
        remedy="; use 500 or more, strategy=ddp, or a fixed precision.loss_scale",
    ),
    "a name that is a path": Mistake(
        typed=("name=../mill",),
        key="name: ",
        told="'../mill' cannot name a directory",
        remedy="; use letters, digits",
    ),
    # The corpus.
    "a path that is not there": Mistake(
        typed=("data.paths=[gone/texts]",),
        key="data.paths: ",
        told="gone/texts does not exist",
        remedy="; correct it or create it",
    ),
    "a glob that matches nothing": Mistake(
        typed=("data.paths=[*.txt]",),
        prepare=holding({"notes.md": b"the tide comes in"}),
        key="data.paths: ",
        told="the glob *.txt matches no file",
        remedy="; correct either",
    ),
    "an empty corpus": Mistake(
        typed=("data.paths=[empty.txt]",),
        prepare=holding({"empty.txt": b""}),
        key="data.paths: ",
        told="all 1 files are empty",
        remedy="; name files that hold documents",
    ),
    "a corpus shorter than a sample": Mistake(
        typed=("data.paths=[short.txt]", "batch.sequence=64"),
        prepare=holding({"short.txt": b"tide"}),
        key="data.paths: ",
        told="one sample of batch.sequence=64 takes 65",
        remedy="; add data or lower batch.sequence",
    ),
    "text that is not UTF-8": Mistake(
        typed=("data.paths=[.]",),
        prepare=holding({"latin.txt": b"tide\n\xff\xfe"}),
        key="data.paths: ",
        told="{place}/latin.txt is not UTF-8 (byte 5: invalid start byte)",
        remedy="; convert it or add it to data.exclude",
    ),
    "a shard that is not Parquet": Mistake(
        typed=("data=tokens", "data.paths=[shard.parquet]", "data.vocab=9"),
        prepare=holding({"shard.parquet": b"tide in, tide out"}),
        key="data.paths: ",
        told="cannot read {place}/shard.parquet: ",
        remedy="; repair it or leave it out",
    ),
    # The storage.
    "storage where nothing can be made": Mistake(
        typed=(*RUN, "storage=/proc/nowhere"),
        key="storage: ",
        told="cannot write below /proc/nowhere: ",
        remedy="; choose a storage= that this machine can read and write",
    ),
    "storage below a file": Mistake(
        typed=(*RUN, "storage=occupied/runs"),
        prepare=holding({"occupied": b"a file"}),
        key="storage: ",
        told="{place}/occupied/runs/mill/checkpoints: a file is in the way of a directory",
        remedy="; choose a storage= that this machine can read and write",
    ),
    # An earlier run.
    "nothing to resume": Mistake(
        typed=(*RUN, "resume=must"),
        key="resume: ",
        told="resume=must and {place}/runs/mill has no checkpoint",
        remedy="; check name= and storage=, or use resume=auto",
    ),
    "a name that is used": Mistake(
        typed=(*RUN, "resume=never"),
        prepare=trained,
        key="resume: ",
        told="resume=never and {place}/runs/mill exists already",
        remedy="; use another name=, or resume=auto",
    ),
    "other mathematics": Mistake(
        typed=OTHER,
        prepare=trained,
        key="name: ",
        told="(optim.lr: 0.25 then, 0.5 now; seed: 1 then, 99 now)",
        remedy="; put the old values back, or give this run another name=",
    ),
    "another corpus": Mistake(
        typed=RUN,
        prepare=trained,
        key="data: ",
        told="was trained on another corpus (digest cccccccccccc, now ",
        remedy="; give it the same files, or this run another name=",
    ),
    "no checkpoint that can be read": Mistake(
        typed=RUN,
        prepare=damaged,
        key="resume: ",
        told="no checkpoint of {place}/runs/mill is readable (",
        remedy="; restore one, or start anew under another name",
    ),
    # The checkpoints of a run.
    "nothing to do": Mistake(
        door="checkpoints",
        typed=("run=mill",),
        key="action: ",
        told="has no value",
        remedy="; use one of list, show, verify, prune, diff",
    ),
    "something nobody can do": Mistake(
        door="checkpoints",
        typed=("prnue", "run=mill"),
        key="action: ",
        told="there is no 'prnue'",
        remedy="; did you mean prune? use one of list, ",
    ),
    "a run that is not there": Mistake(
        door="checkpoints",
        typed=("list", "run=mole"),
        prepare=trained,
        key="run: ",
        told="{place}/runs/mole is no run",
        remedy="; runs there: mill",
    ),
    "a step that is not there": Mistake(
        door="checkpoints",
        typed=("show", "run=mill", "step=6"),
        prepare=trained,
        key="step: ",
        told="{place}/runs/mill has no checkpoint of step 6",
        remedy="; there are 5",
    ),
}


def check(mistake: Mistake, answer: Answer, place: Path) -> None:
    """One line on standard error, and exit code 2."""
    (line,) = answer.err.splitlines()
    assert line.startswith(f"error: {mistake.key}")
    assert mistake.told.format(place=place) in line
    assert mistake.remedy in line
    assert answer.code == 2


def _open(
    door: str, typed: tuple[str, ...], cwd: Path, told: Path, variables: dict[str, str]
) -> None:
    """In a process of its own: become `python jobs/DOOR.py TYPED`, which writes into `told`."""
    os.environ.clear()  # it is the server's, as it was when the server started
    os.environ.update(variables)
    os.chdir(cwd)
    for number, name in enumerate(("in", "out", "err")):
        os.dup2(os.open(told / name, os.O_RDWR | os.O_CREAT), number)
    sys.argv[:] = [str(ROOT / "jobs" / f"{door}.py"), *typed]
    runpy.run_path(sys.argv[0], run_name="__main__")


def open_door(mistake: Mistake, cwd: Path) -> Answer:
    """Make a mistake at the door, in a forked process."""
    with tempfile.TemporaryDirectory() as told:
        process = _server().Process(
            target=_open,
            args=(mistake.door, mistake.typed, cwd, Path(told), dict(os.environ)),
            daemon=True,
        )
        process.start()
        process.join(PATIENCE_S)
        code = process.exitcode
        process.kill()
        assert code is not None, "it does not end"
        return Answer(code, Path(told, "out").read_text(), Path(told, "err").read_text())


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(case: str, tmp_path: Path) -> None:
    mistake = MISTAKES[case]
    mistake.prepare(tmp_path)
    before = tree(tmp_path)
    answer = open_door(mistake, tmp_path)
    check(mistake, answer, tmp_path)
    assert answer.out == ""
    assert tree(tmp_path) == before


LOADED = """
import runpy, sys
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    print("loaded:", *sorted({heavy!r} & set(sys.modules)))
"""


@pytest.mark.parametrize(
    "case",
    [
        "two that do not go together",
        "a glob that matches nothing",
        "storage below a file",
        "other mathematics",
        "a step that is not there",
    ],
)
def test_nothing_heavy_is_loaded_to_say_so(case: str, tmp_path: Path) -> None:
    mistake = MISTAKES[case]
    mistake.prepare(tmp_path)
    before = tree(tmp_path)
    door = str(ROOT / "jobs" / f"{mistake.door}.py")
    script = f"import sys; sys.argv[:] = [{door!r}, *sys.argv[1:]]" + LOADED.format(heavy=HEAVY)
    done = subprocess.run(
        [sys.executable, "-c", script, *mistake.typed],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT / "platform")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    check(mistake, Answer(done.returncode, done.stdout, done.stderr), tmp_path)
    assert done.stdout == "loaded:\n"
    assert tree(tmp_path) == before
