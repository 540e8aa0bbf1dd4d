"""The bytes: exact for every dtype, aligned, streamed in chunks, and proven before use."""

from __future__ import annotations

import contextlib
import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.checkpoint.states import blank, make_tensors, same_pieces, split, whole
from tidemill import storage
from tidemill.checkpoint import content
from tidemill.checkpoint.fragments import plan_copies
from tidemill.checkpoint.manifest import StoredFile
from tidemill.errors import CheckpointError, CorruptCheckpoint
from tidemill.spec.progress import Fragment, Piece, State
from tidemill.storage import Location, locate

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def _one(data: torch.Tensor, *, start: int = 0, shape: tuple[int, ...] = (4,)) -> State:
    return State({"param.w": Fragment(shape, "float32", (Piece(start, data),))})


@pytest.mark.parametrize("chunk", [64, 1000, content.CHUNK])
def test_every_dtype_comes_back_bit_for_bit_in_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(content, "CHUNK", chunk)
    tensors = make_tensors(1)
    root = locate(str(tmp_path))
    index, file = content.write_fragments(whole(tensors), root / "file")
    raw = (tmp_path / "file").read_bytes()
    assert (file.size, file.sha256) == (len(raw), hashlib.sha256(raw).hexdigest())
    content.check_sizes(root, {"file": file})
    content.check_content(root, {"file": file})

    again = blank(tensors)
    targets = content.find_targets(split(again, 0, 1, "other cuts"))
    content.fill(targets, plan_copies([target.wanted for target in targets], index), root)
    assert same_pieces(whole(again), tensors)


def test_the_file_is_plain_little_endian_numbers_at_aligned_offsets(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(5, dtype=torch.int16), "b": torch.tensor(1.5)}
    index, _ = content.write_fragments(whole(tensors), locate(str(tmp_path)) / "file")
    raw = (tmp_path / "file").read_bytes()
    (a,), (b,) = index["a"].pieces, index["b"].pieces
    assert (a.offset, b.offset, b.offset % content.ALIGNMENT) == (0, 64, 0)
    assert np.frombuffer(raw, "<i2", 5, a.offset).tolist() == [0, 1, 2, 3, 4]
    assert np.frombuffer(raw, "<f4", 1, b.offset).tolist() == [1.5]


def test_no_write_is_longer_than_a_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content, "CHUNK", 256)
    sizes: list[int] = []
    sha256 = hashlib.sha256

    class Counted:
        def __init__(self) -> None:
            self.inner = sha256()

        def update(self, part: Any) -> None:
            sizes.append(len(part))
            self.inner.update(part)

        def hexdigest(self) -> str:
            return self.inner.hexdigest()

    monkeypatch.setattr(content.hashlib, "sha256", Counted)
    root = locate(str(tmp_path))
    _, file = content.write_fragments(whole({"w": torch.zeros(1000)}), root / "file")
    content.check_content(root, {"file": file})
    assert max(sizes) == 256
    assert sum(sizes) == 2 * file.size


def test_parameters_that_require_grad_are_read_and_filled_in_place(tmp_path: Path) -> None:
    root = locate(str(tmp_path))
    weight = torch.nn.Parameter(torch.arange(4.0))
    index, _ = content.write_fragments(_one(weight), root / "file")
    live = torch.nn.Parameter(torch.zeros(4))
    targets = content.find_targets(_one(live))
    content.fill(targets, plan_copies([target.wanted for target in targets], index), root)
    assert live.tolist() == [0.0, 1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("state", "complaint"),
    [
        (_one(torch.zeros(4, dtype=torch.float64)), "a piece is torch.float64 in a tensor of"),
        (_one(torch.zeros(8)[::2]), "a piece is not contiguous"),
        (_one(torch.zeros(3), start=2), "elements 2 to 4 are outside a tensor of 4"),
        (_one(torch.zeros(1), start=-1), "elements -1 to -1 are outside a tensor of 4"),
        (State({"param.w": Fragment((1,), "float33", ())}), "float33 is no element type"),
    ],
)
def test_a_piece_that_does_not_belong_is_named(
    tmp_path: Path, state: State, complaint: str
) -> None:
    with pytest.raises(CheckpointError, match=complaint):
        content.write_fragments(state, locate(str(tmp_path)) / "file")


def test_a_changed_a_shorter_and_a_missing_file_are_named(tmp_path: Path) -> None:
    root = locate(str(tmp_path))
    storage.publish(root / "r0", b"tide")
    files = {"r0": StoredFile(4, hashlib.sha256(b"tide").hexdigest())}
    content.check_sizes(root, files)
    content.check_content(root, files)

    storage.publish(root / "r0", b"tidf")
    with pytest.raises(CorruptCheckpoint, match=r"^r0 has changed"):
        content.check_content(root, files)
    storage.publish(root / "r0", b"tid")
    with pytest.raises(CorruptCheckpoint, match=r"^r0 has 3 bytes instead of 4$"):
        content.check_sizes(root, files)
    storage.remove(root / "r0")
    with pytest.raises(CorruptCheckpoint, match=r"^r0 is missing$"):
        content.check_sizes(root, files)
    with pytest.raises(CorruptCheckpoint, match="there is no such file"):
        content.check_content(root, files)


def test_a_source_that_reads_short_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_input = storage.open_input

    class Slow:
        def __init__(self, inner: Any) -> None:
            self.inner = inner
            self.seek = inner.seek

        def readinto(self, memory: memoryview) -> int:
            return self.inner.readinto(memory[:7])

    @contextlib.contextmanager
    def open_slowly(location: Location) -> Iterator[Slow]:
        with open_input(location) as file:
            yield Slow(file)

    root = locate(str(tmp_path))
    index, file = content.write_fragments(_one(torch.arange(4.0)), root / "file")
    monkeypatch.setattr(storage, "open_input", open_slowly)
    content.check_content(root, {"file": file})
    live = torch.zeros(4)
    targets = content.find_targets(_one(live))
    content.fill(targets, plan_copies([target.wanted for target in targets], index), root)
    assert live.tolist() == [0.0, 1.0, 2.0, 3.0]


def test_a_file_that_shrinks_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    root = locate(str(tmp_path))
    index, _ = content.write_fragments(_one(torch.ones(4)), root / "file")
    storage.publish(root / "file", b"short")
    targets = content.find_targets(_one(torch.zeros(4)))
    with pytest.raises(CorruptCheckpoint, match="file ends before byte 16"):
        content.fill(targets, plan_copies([target.wanted for target in targets], index), root)


@given(sizes=st.lists(st.integers(0, 1000), max_size=20), ranks=st.integers(1, 6))
def test_files_are_dealt_once_each_and_evenly(sizes: list[int], ranks: int) -> None:
    files = {f"f{index}": StoredFile(size, "") for index, size in enumerate(sizes)}
    hands = content.deal_files(files, ranks)
    dealt = [name for hand in hands for name in hand]
    loads = [sum(file.size for file in hand.values()) for hand in hands]
    assert len(hands) == ranks
    assert sorted(dealt) == sorted(files)
    assert max(loads) - min(loads) <= max(sizes, default=0)


@pytest.mark.gpu
def test_tensors_on_a_gpu_are_written_and_filled_there(tmp_path: Path) -> None:
    root = locate(str(tmp_path))
    tensors = {name: tensor.cuda() for name, tensor in make_tensors(1).items()}
    index, _ = content.write_fragments(whole(tensors), root / "file")
    again = blank(tensors)
    targets = content.find_targets(whole(again))
    content.fill(targets, plan_copies([target.wanted for target in targets], index), root)
    assert same_pieces(whole(again), tensors)
