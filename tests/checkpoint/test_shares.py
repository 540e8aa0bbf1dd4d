"""What ranks say they hold: a gap, an overlap or a disagreement is named before a commit."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from tidemill.checkpoint.content import Layout
from tidemill.checkpoint.fragments import StoredPiece, StoredTensor
from tidemill.checkpoint.manifest import StoredFile
from tidemill.checkpoint.shares import (
    Share,
    describe,
    join_files,
    join_tensors,
    require_equal_scalars,
    require_one_moment,
)
from tidemill.checkpoint.snapshot import Image
from tidemill.errors import CheckpointError
from tidemill.spec.progress import Cursor


def _share(
    rank: int,
    *ranges: tuple[int, int],
    shape: tuple[int, ...] = (2, 5),
    scalars: dict[str, Any] | None = None,
    step: int = 1,
) -> Share:
    file = f"r{rank}"
    pieces = tuple(StoredPiece(start, count, file, 64 * start) for start, count in ranges)
    tensors = {"param.w": StoredTensor(shape, "float32", pieces)}
    image = Image(Layout(tensors, (), rank), memoryview(bytes(rank + 32)), b"trailer")
    return describe(image, file, Cursor(step=step, samples=8), scalars or {})


def test_shares_that_fit_are_joined_by_start() -> None:
    shares = [_share(0, (6, 4)), _share(1), _share(2, (0, 2), (2, 4))]
    joined = join_tensors(shares)["param.w"]
    assert [(p.start, p.count, p.file) for p in joined.pieces] == [
        (0, 2, "r2"),
        (2, 4, "r2"),
        (6, 4, "r0"),
    ]
    checksum = hashlib.sha256(b"trailer").hexdigest()
    assert join_files(shares) == {
        f"r{rank}": StoredFile(rank + 32, rank, checksum) for rank in range(3)
    }


def test_a_gap_is_named() -> None:
    with pytest.raises(CheckpointError, match=r"^param\.w: elements 4 to 5 are held by no rank$"):
        join_tensors([_share(0, (0, 4)), _share(1, (6, 4))])


def test_an_overlap_is_named() -> None:
    with pytest.raises(CheckpointError, match=r"^param\.w: elements 4 to 5 are held more than"):
        join_tensors([_share(0, (0, 6)), _share(1, (4, 6))])


def test_ranks_that_disagree_on_a_shape_are_named() -> None:
    with pytest.raises(CheckpointError, match=r"param\.w: rank 1 has .*\(5, 2\)"):
        join_tensors([_share(0, (0, 10)), _share(1, shape=(5, 2))])


def test_a_scalar_that_differs_or_is_missing_is_named() -> None:
    same = _share(0, scalars={"scale": 2.0, "step": 1})
    require_equal_scalars([same, _share(1, scalars={"step": 1, "scale": 2.0})])
    with pytest.raises(CheckpointError, match="scalar scale differs between rank 0 and rank 1"):
        require_equal_scalars([same, _share(1, scalars={"scale": 4.0, "step": 1})])
    with pytest.raises(CheckpointError, match="scalar step differs"):
        require_equal_scalars([same, _share(1, scalars={"scale": 2.0})])


def test_ranks_at_different_steps_are_named() -> None:
    require_one_moment([_share(0), _share(1)])
    with pytest.raises(CheckpointError, match=r"rank 1 is at \[step, samples\] \[2, 8\]"):
        require_one_moment([_share(0), _share(1, step=2)])
