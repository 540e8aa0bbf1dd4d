"""The bytes: exact for every dtype, aligned, read in whole blocks, and proven before use."""

from __future__ import annotations

import contextlib
import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from tests.checkpoint.states import blank, make_tensors, same_pieces, split, whole
from tidemill import storage
from tidemill.checkpoint import blocks, content
from tidemill.checkpoint.content import StoredSource
from tidemill.checkpoint.fragments import StoredTensor, plan_copies
from tidemill.checkpoint.manifest import StoredFile
from tidemill.checkpoint.persist import write
from tidemill.checkpoint.snapshot import Snapshot
from tidemill.errors import CheckpointError, CorruptCheckpoint
from tidemill.spec.progress import Fragment, Piece, State
from tidemill.storage import Location, locate

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def _one(data: torch.Tensor, *, start: int = 0, shape: tuple[int, ...] = (4,)) -> State:
    return State({"param.w": Fragment(shape, "float32", (Piece(start, data),))})


def _written(root: Location, state: State) -> tuple[dict[str, StoredTensor], StoredFile]:
    """Write a state as one rank's file called `file`."""
    snapshot = Snapshot("file", "cpu")
    snapshot.begin(state)
    image = snapshot.take()
    write(root / "file", image.memory)
    checksum = hashlib.sha256(image.trailer).hexdigest()
    return image.layout.tensors, StoredFile(len(image.memory), image.layout.data, checksum)


def _filled(root: Location, state: State, index: dict[str, StoredTensor], file: StoredFile) -> None:
    targets = content.find_targets(state)
    plan = plan_copies([target.wanted for target in targets], index)
    content.fill(targets, plan, StoredSource(root), {"file": file}, verify=True)


def _check(root: Location, file: StoredFile) -> int:
    return sum(content.check_content(StoredSource(root), {"file": file}))


@pytest.fixture(params=[(64, 64), (64, 256), (4096, 8192), (blocks.BLOCK, content.WINDOW)])
def sizes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """Blocks and windows of several sizes, so that small tensors have many of them."""
    block, window = request.param
    for module in (blocks, content):
        monkeypatch.setattr(module, "BLOCK", block)
    monkeypatch.setattr(content, "WINDOW", window)
    return block, window


@pytest.mark.usefixtures("sizes")
def test_every_dtype_comes_back_bit_for_bit(tmp_path: Path) -> None:
    tensors = make_tensors(1)
    root = locate(str(tmp_path))
    index, file = _written(root, whole(tensors))
    raw = (tmp_path / "file").read_bytes()
    assert (file.size, file.size - file.data) == (len(raw), blocks.trailer_size(file.data))
    assert file.sha256 == hashlib.sha256(raw[file.data :]).hexdigest()
    content.check_sizes(StoredSource(root), {"file": file})
    assert _check(root, file) == file.data

    again = blank(tensors)
    _filled(root, split(again, 0, 1, "other cuts"), index, file)
    assert same_pieces(whole(again), tensors)


def test_every_flipped_bit_is_found_by_a_reader_of_all(
    tmp_path: Path, sizes: tuple[int, int]
) -> None:
    root = locate(str(tmp_path))
    tensors = make_tensors(1)
    index, file = _written(root, whole(tensors))
    raw = (tmp_path / "file").read_bytes()
    for position in {*range(0, len(raw), 101), file.data - 1, file.data, len(raw) - 1}:
        flipped = bytearray(raw)
        flipped[position] ^= 1 << position % 8
        (tmp_path / "file").write_bytes(flipped)
        with pytest.raises(CorruptCheckpoint, match=r"^file has changed: "):
            _check(root, file)
        with pytest.raises(CorruptCheckpoint, match=r"^file has changed: "):
            _filled(root, whole(blank(tensors)), index, file)


def test_a_reader_proves_and_reads_only_the_blocks_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (blocks, content):
        monkeypatch.setattr(module, "BLOCK", 64)
    monkeypatch.setattr(content, "WINDOW", 128)
    monkeypatch.setattr(content, "GAP", 0)
    root = locate(str(tmp_path))
    weight = torch.arange(256.0)
    index, file = _written(root, _one(weight, shape=(256,)))
    raw = bytearray((tmp_path / "file").read_bytes())
    raw[0] ^= 1  # beyond the blocks that hold elements 100 to 129
    raw[700] ^= 1
    (tmp_path / "file").write_bytes(raw)
    live = torch.zeros(30)
    _filled(root, _one(live, start=100, shape=(256,)), index, file)
    assert torch.equal(live, weight[100:130])
    with pytest.raises(CorruptCheckpoint, match="bytes 640 to 703 do not match"):
        _filled(root, _one(torch.zeros(90), start=100, shape=(256,)), index, file)


def test_sizes_alone_are_checked_if_asked(tmp_path: Path) -> None:
    root = locate(str(tmp_path))
    index, file = _written(root, _one(torch.ones(4)))
    raw = bytearray((tmp_path / "file").read_bytes())
    raw[-1] ^= 1
    (tmp_path / "file").write_bytes(raw)
    live = torch.zeros(4)
    targets = content.find_targets(_one(live))
    plan = plan_copies([target.wanted for target in targets], index)
    content.fill(targets, plan, StoredSource(root), {"file": file}, verify=False)
    assert live.tolist() == [1.0] * 4


def test_the_file_is_plain_little_endian_numbers_at_aligned_offsets(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(5, dtype=torch.int16), "b": torch.tensor(1.5)}
    index, _ = _written(locate(str(tmp_path)), whole(tensors))
    raw = (tmp_path / "file").read_bytes()
    (a,), (b,) = index["a"].pieces, index["b"].pieces
    assert (a.offset, b.offset, b.offset % content.ALIGNMENT) == (0, 64, 0)
    assert np.frombuffer(raw, "<i2", 5, a.offset).tolist() == [0, 1, 2, 3, 4]
    assert np.frombuffer(raw, "<f4", 1, b.offset).tolist() == [1.5]


def test_parameters_that_require_grad_are_read_and_filled_in_place(tmp_path: Path) -> None:
    root = locate(str(tmp_path))
    weight = torch.nn.Parameter(torch.arange(4.0))
    index, file = _written(root, _one(weight))
    live = torch.nn.Parameter(torch.zeros(4))
    _filled(root, _one(live), index, file)
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
def test_a_piece_that_does_not_belong_is_named(state: State, complaint: str) -> None:
    with pytest.raises(CheckpointError, match=complaint):
        content.find_targets(state)


def test_a_shorter_and_a_missing_file_are_named(tmp_path: Path) -> None:
    root = locate(str(tmp_path))
    _, file = _written(root, _one(torch.ones(4)))
    storage.publish(root / "file", b"tid")
    with pytest.raises(CorruptCheckpoint, match=r"^file has 3 bytes instead of 48$"):
        content.check_sizes(StoredSource(root), {"file": file})
    with pytest.raises(CorruptCheckpoint, match=r"^file ends before byte 48$"):
        _check(root, file)
    storage.remove(root / "file")
    with pytest.raises(CorruptCheckpoint, match=r"^file is missing$"):
        content.check_sizes(StoredSource(root), {"file": file})
    with pytest.raises(CorruptCheckpoint, match="there is no such file"):
        _check(root, file)


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
    index, file = _written(root, _one(torch.arange(4.0)))
    monkeypatch.setattr(storage, "open_input", open_slowly)
    _check(root, file)
    live = torch.zeros(4)
    _filled(root, _one(live), index, file)
    assert live.tolist() == [0.0, 1.0, 2.0, 3.0]
