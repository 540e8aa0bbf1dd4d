"""Two checkpoints are bit-equal, or it is told what differs and how much, whoever saved them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
import torch

from tests.checkpoint.commits import commit, cut, flip
from tests.checkpoint.states import make_tensors, split
from tidemill.checkpoint import compare as room
from tidemill.checkpoint.compare import Comparison, Difference, compare, compared_bytes
from tidemill.errors import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor


def between(place: Path, left: dict[str, Tensor], right: dict[str, Tensor]) -> Comparison:
    """Save both and compare them."""
    sides = [commit(place, step, tensors=held) for step, held in ((1, left), (2, right))]
    return compare(*sides, advance=lambda _: None)


def only(place: Path, left: Tensor, right: Tensor) -> Difference:
    """How two tensors differ."""
    (found,) = between(place, {"param.a": left}, {"param.a": right}).compared
    return found


def test_equal_tensors_are_bit_equal(tmp_path: Path) -> None:
    found = between(tmp_path, make_tensors(1), make_tensors(1))
    assert found.bit_equal
    assert found.differing == []
    assert [held.name for held in found.compared] == sorted(make_tensors(1))
    assert all(held.largest == 0 for held in found.compared)


def test_it_does_not_matter_in_which_pieces_they_were_saved(tmp_path: Path) -> None:
    pieces = split(make_tensors(1), 0, 1, "cut")
    assert any(len(fragment.pieces) > 1 for fragment in pieces.tensors.values())
    left = commit(tmp_path / "cut", 5, state=pieces)
    right = commit(tmp_path / "one", 5, tensors=make_tensors(1))
    read: list[int] = []
    assert compare(left, right, read.append).bit_equal
    assert sum(read) == compared_bytes(left, right)
    assert compared_bytes(left, right) == sum(held.nbytes for held in make_tensors(1).values())


def test_every_kind_of_tensor_can_differ(tmp_path: Path) -> None:
    found = between(tmp_path, make_tensors(1), make_tensors(2))
    assert not found.bit_equal
    differing = {held.name for held in found.differing}
    assert differing == set(make_tensors(1)) - {"buffer.none"}
    for held in found.differing:
        left, right = (make_tensors(seed)[held.name].double() for seed in (1, 2))
        assert held.elements == left.numel()
        assert held.differing == int((left != right).sum())
        assert held.largest == float((left - right).abs().max())
        assert held.magnitude == float(torch.maximum(left.abs(), right.abs()).max())
        assert held.relative == held.largest / held.magnitude


def test_the_worst_come_first(tmp_path: Path) -> None:
    base = torch.full((10,), 100.0)
    left = {f"param.{name}": base.clone() for name in "abcd"}
    right = {name: held.clone() for name, held in left.items()}
    right["param.b"][3] += 1
    right["param.d"][3:5] += 50
    found = between(tmp_path, left, right)
    assert [(held.name, held.differing) for held in found.differing] == [
        ("param.d", 2),
        ("param.b", 1),
    ]
    assert [held.relative for held in found.differing] == [50 / 150, 1 / 101]


@pytest.mark.parametrize(
    ("left", "right", "differing", "largest"),
    [
        (math.nan, math.nan, 0, 0.0),
        (math.inf, math.inf, 0, 0.0),
        (math.inf, -math.inf, 1, math.inf),
        (math.nan, 1.0, 1, math.inf),
        (1.0, math.inf, 1, math.inf),
        (0.0, -0.0, 1, 0.0),
    ],
)
def test_what_is_not_finite_is_told_apart(
    left: float, right: float, differing: int, largest: float, tmp_path: Path
) -> None:
    found = only(tmp_path, torch.tensor([1.0, left]), torch.tensor([1.0, right]))
    assert (found.differing, found.largest, found.magnitude) == (differing, largest, 1.0)


def test_zeros_do_not_divide(tmp_path: Path) -> None:
    found = only(tmp_path, torch.tensor([0.0]), torch.tensor([math.inf]))
    assert found.relative == math.inf
    assert only(tmp_path / "b", torch.tensor([0.0]), torch.tensor([-0.0])).relative == 0


def test_tensors_that_one_alone_has_are_named(tmp_path: Path) -> None:
    one, two = torch.ones(2), torch.ones(3)
    found = between(tmp_path, {"param.a": one, "param.b": one}, {"param.b": one, "param.c": two})
    assert (found.only_left, found.only_right) == (["param.a"], ["param.c"])
    assert [held.name for held in found.compared] == ["param.b"]
    assert not found.bit_equal


@pytest.mark.parametrize(
    ("other", "kind"),
    [
        (torch.ones(3, 2), "float32 [3, 2]"),
        (torch.ones(2, 3).double(), "float64 [2, 3]"),
    ],
)
def test_another_shape_or_type_is_not_compared(other: Tensor, kind: str, tmp_path: Path) -> None:
    found = between(tmp_path, {"param.a": torch.ones(2, 3)}, {"param.a": other})
    assert found.unlike == [("param.a", "float32 [2, 3]", kind)]
    assert found.compared == []
    assert not found.bit_equal


def test_memory_is_bounded_and_nothing_is_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "BATCH", 1000)
    monkeypatch.setattr(room, "PART", 100)
    base, other = make_tensors(1), make_tensors(1)
    other["param.wide"][52, 30] += 1
    other["exp_avg.wide"][0, 0] += 1
    found = between(tmp_path, base, other)
    assert {held.name: held.differing for held in found.differing} == {
        "param.wide": 1,
        "exp_avg.wide": 1,
    }


def test_a_damaged_one_is_not_compared(tmp_path: Path) -> None:
    left, right = commit(tmp_path, 1), commit(tmp_path, 2)
    flip(right, 0)
    told = r"step: step-0000000002-a0001 is not whole \(rank-00000\.bin has changed: bytes 0 to"
    with pytest.raises(CheckpointError, match=told):
        compare(left, right, lambda _: None)
    cut(left)
    with pytest.raises(CheckpointError, match=r"step-0000000001-a0001 is not whole .* instead of"):
        compare(left, right, lambda _: None)
