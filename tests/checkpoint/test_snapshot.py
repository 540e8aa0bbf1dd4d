"""The copy: what it fixes, what it waits for, and how much memory it takes."""

from __future__ import annotations

import threading

import pytest
import torch

from tests.checkpoint.states import make_tensors, whole
from tidemill.checkpoint import snapshot as module
from tidemill.checkpoint.blocks import trailer_size
from tidemill.checkpoint.content import ALIGNMENT
from tidemill.checkpoint.snapshot import Image, Snapshot
from tidemill.errors import CheckpointError
from tidemill.spec.progress import Fragment, Piece, State


def _held(image: Image, name: str, dtype: torch.dtype) -> torch.Tensor:
    (piece,) = image.layout.tensors[name].pieces
    size = piece.count * dtype.itemsize
    return torch.frombuffer(bytearray(image.memory[piece.offset :][:size]), dtype=dtype)


def test_buffers_are_fixed_at_once_and_the_rest_until_it_is_settled() -> None:
    tensors = {"param.w": torch.arange(8.0), "buffer.mean": torch.arange(3.0)}
    snapshot = Snapshot("file", "cpu")
    snapshot.begin(whole(tensors))
    tensors["buffer.mean"].fill_(9)  # a forward may do that before the copy is made
    image = snapshot.take()
    snapshot.settle()
    tensors["param.w"].fill_(9)  # and the optimizer this, once it is
    assert _held(image, "param.w", torch.float32).tolist() == list(range(8))
    assert _held(image, "buffer.mean", torch.float32).tolist() == [0, 1, 2]


def test_settling_waits_for_the_copy_and_for_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    let_copy, let_digest = threading.Event(), threading.Event()
    lay_out, digests_of = module.lay_out, module.digests_of

    def slow_layout(*arguments: object) -> object:
        let_copy.wait(30)
        return lay_out(*arguments)  # pyright: ignore[reportArgumentType]

    def slow_digests(data: memoryview) -> bytes:
        let_digest.wait(30)
        return digests_of(data)

    monkeypatch.setattr(module, "lay_out", slow_layout)
    monkeypatch.setattr(module, "digests_of", slow_digests)
    snapshot = Snapshot("file", "cpu")
    settled = threading.Event()
    snapshot.begin(whole(make_tensors(1)))
    taking = threading.Thread(target=snapshot.take)
    waiting = threading.Thread(target=lambda: (snapshot.settle(), settled.set()))
    taking.start()
    waiting.start()
    assert not settled.wait(0.05)
    let_copy.set()
    assert settled.wait(30)
    assert taking.is_alive()
    let_digest.set()
    taking.join()
    waiting.join()


def test_memory_is_allocated_once_and_is_no_more_than_the_state() -> None:
    tensors = make_tensors(1)
    snapshot = Snapshot("file", "cpu")
    snapshot.reserve(whole(tensors))
    reserved = snapshot._memory.data_ptr()
    images: list[Image] = []
    for _ in range(3):
        snapshot.begin(whole(tensors))
        images.append(snapshot.take())
        assert snapshot._memory.data_ptr() == reserved
    state = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    padding = ALIGNMENT * len(tensors)
    assert len(images[-1].memory) <= state + padding + trailer_size(state + padding)
    assert snapshot._memory.numel() == len(images[-1].memory)


def test_what_cannot_be_copied_does_not_stop_training_for_good() -> None:
    wrong = State({"param.w": Fragment((4,), "float64", (Piece(0, torch.zeros(4)),))})
    snapshot = Snapshot("file", "cpu")
    snapshot.begin(wrong)
    with pytest.raises(CheckpointError, match=r"param\.w: a piece is torch\.float32"):
        snapshot.take()
    snapshot.settle()


@pytest.mark.gpu
def test_a_gpu_copies_beside_training_into_pinned_memory() -> None:
    tensors = {name: tensor.cuda() for name, tensor in make_tensors(1).items()}
    snapshot = Snapshot("file", "cuda")
    snapshot.reserve(whole(tensors))
    assert snapshot._memory.is_pinned()
    snapshot.begin(whole(tensors))
    taken: list[Image] = []
    thread = threading.Thread(target=lambda: taken.append(snapshot.take()))
    thread.start()
    snapshot.settle()
    before = tensors["param.wide"].cpu()
    tensors["param.wide"].add_(1)
    thread.join()
    assert torch.equal(_held(taken[0], "param.wide", torch.float32), before.view(-1))
