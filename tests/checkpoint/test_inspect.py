"""A survey says of every directory what it is, and reads no tensors for it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.checkpoint.commits import commit, cut, flip, lose, make_foreign, scribble, tear
from tests.checkpoint.states import make_tensors
from tidemill import storage
from tidemill.checkpoint.content import dtype_name
from tidemill.checkpoint.inspect import (
    Condition,
    Held,
    Kind,
    itemsize,
    look,
    manifest_of,
    sum_kinds,
    survey,
)
from tidemill.errors import CheckpointError, StorageError
from tidemill.storage import Location, locate

ROOT = Path(__file__).parents[2]


def test_a_whole_one_is_told_by_its_manifest_and_sizes(tmp_path: Path) -> None:
    held = commit(tmp_path, 20, attempt=3, metrics={"loss": 2.5, "val_loss": 2.25})
    assert (held.step, held.attempt, held.condition) == (20, 3, Condition.whole)
    assert (held.is_whole, held.problem) == (True, "")
    assert manifest_of(held).metrics == {"loss": 2.5, "val_loss": 2.25}
    files = [path for path in Path(held.place.path).iterdir() if path.is_file()]
    assert held.size == sum(path.stat().st_size for path in files)
    assert abs(held.changed_s - time.time()) < 60


@pytest.mark.parametrize(
    ("hurt", "told"),
    [
        (cut, r"rank-00000\.bin has 100 bytes instead of \d+"),
        (lose, r"rank-00000\.bin is missing"),
        (scribble, "does not match its own checksum"),
    ],
)
def test_what_is_damaged_is_corrupt(
    hurt: Callable[[Held], None], told: str, tmp_path: Path
) -> None:
    hurt(held := commit(tmp_path, 20))
    found = look(held.place)
    assert found.condition is Condition.corrupt
    assert re.search(told, found.problem)


def test_tensors_are_not_read(tmp_path: Path) -> None:
    flip(held := commit(tmp_path, 20), 0)
    assert look(held.place).is_whole


def test_what_has_no_manifest_is_torn(tmp_path: Path) -> None:
    place = tear(tmp_path, 20, attempt=2)
    (found,) = survey(locate(str(tmp_path)))
    assert (found.step, found.attempt, found.condition) == (20, 2, Condition.torn)
    assert found.size == len(b"half of it")
    assert found.manifest is None
    os.utime(place / "rank-00000.bin", (1e9, 1e9))
    assert look(found.place).changed_s == 1e9
    with pytest.raises(CheckpointError, match="step-0000000020-a0002 is torn: it has no manifest"):
        manifest_of(found)


def test_what_another_version_wrote_is_not_called_damaged(tmp_path: Path) -> None:
    make_foreign(held := commit(tmp_path, 20))
    found = look(held.place)
    assert found.condition is Condition.unreadable
    assert "schema 99 is unknown to this version" in found.problem


@pytest.mark.parametrize("verb", ["children", "read_bytes"])
def test_what_storage_does_not_show_is_not_called_damaged(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = commit(tmp_path, 20)
    act = getattr(storage, verb)

    def fail(place: Location) -> object:
        if "step-" in place.path:
            raise StorageError(f"cannot read {place}: no connection")
        return act(place)

    monkeypatch.setattr(storage, verb, fail)
    (found,) = survey(locate(str(tmp_path)))
    assert found.condition is Condition.unreadable
    assert found.problem.startswith(f"cannot read {held.place}")
    assert found.problem.endswith(": no connection")


def test_a_survey_is_newest_first_and_misses_nothing(tmp_path: Path) -> None:
    for step, attempt in ((30, 1), (100, 1), (30, 2)):
        commit(tmp_path, step, attempt=attempt)
    tear(tmp_path, 120)
    (tmp_path / "checkpoints" / "notes").mkdir()
    found = survey(locate(str(tmp_path)))
    assert [(held.step, held.attempt) for held in found] == [(120, 1), (100, 1), (30, 2), (30, 1)]
    assert survey(locate(str(tmp_path / "nowhere"))) == []


def test_tensors_are_summed_by_kind(tmp_path: Path) -> None:
    found = manifest_of(commit(tmp_path, 20))
    tensors = make_tensors(20)
    kinds = sum_kinds(found)
    assert [kind.name for kind in kinds] == ["buffer", "exp_avg", "param"]
    assert kinds[1] == Kind("exp_avg", 1, 53 * 31, 4 * 53 * 31, ("float32",))
    for kind in kinds:
        mine = [tensor for name, tensor in tensors.items() if name.startswith(f"{kind.name}.")]
        assert kind.tensors == len(mine)
        assert kind.elements == sum(tensor.numel() for tensor in mine)
        assert kind.size == sum(tensor.nbytes for tensor in mine)
        assert kind.dtypes == tuple(sorted({dtype_name(tensor.dtype) for tensor in mine}))


@pytest.mark.parametrize(
    "dtype",
    [
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
        *(torch.complex64, torch.complex128),
    ],
)
def test_element_sizes_follow_from_names(dtype: torch.dtype) -> None:
    assert itemsize(dtype_name(dtype)) == dtype.itemsize


def test_a_look_needs_no_torch() -> None:
    script = "import sys, tidemill.launch.checkpoints; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": str(ROOT / "platform")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "False\n"
