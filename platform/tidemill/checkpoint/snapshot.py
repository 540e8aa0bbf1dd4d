"""The copy that lets training go on: state to host memory while the next forward and backward run.

Parameters and moments change in the optimizer's step and nowhere else. So the copy is made beside
the next batches' work, and training waits for it, if at all, just before that step.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from tidemill.checkpoint.blocks import digests_of, trailer_size
from tidemill.checkpoint.content import Layout, find_targets, lay_out
from tidemill.spec.progress import Fragment, Piece, State

BUFFERS = "buffer."
"""Prefix of tensors that a forward may change; they are copied before training goes on."""


@dataclass(frozen=True, slots=True)
class Image:
    """One rank's file, in host memory.

    Attributes:
        layout: What it holds, and where.
        memory: Its bytes; those of the snapshot, so gone with the next one.
        trailer: The digests at its end.
    """

    layout: Layout
    memory: memoryview
    trailer: bytes


class Snapshot:
    """Host memory for one rank's file, allocated once and used again for every snapshot.

    `begin` and `settle` belong to the thread that trains, `take` to the one that saves.

    Args:
        file: Name of the file.
        device: Torch device that the state is on; beside CUDA, the memory is pinned and the copy
            has a stream of its own.
    """

    def __init__(self, file: str, device: str) -> None:
        self._file = file
        self._memory = torch.empty(0, dtype=torch.uint8)
        self._state = State({})
        self._enqueued = threading.Event()
        self._enqueued.set()
        self._gpu = torch.device(device) if torch.device(device).type == "cuda" else None
        if self._gpu is not None:
            self._stream = torch.cuda.Stream(self._gpu)
            self._begun, self._copied = torch.cuda.Event(), torch.cuda.Event()

    def reserve(self, state: State) -> None:
        """Allocate, and touch, the memory that a snapshot of `state` needs."""
        self._memory_for(lay_out(state, find_targets(state), self._file).data)

    def begin(self, state: State) -> None:
        """Fix `state` as of now; until `settle` returns, the optimizer must not change it."""
        self._state = State(state.tensors | own_buffers(state), state.scalars)
        self._enqueued.clear()
        if self._gpu is not None:
            self._begun.record(torch.cuda.current_stream(self._gpu))

    def take(self) -> Image:
        """Copy what `begin` fixed.

        Raises:
            CheckpointError: A piece does not belong to its tensor; names it.
        """
        try:
            layout = self._copy()
        finally:
            self._state = State({})
            self._enqueued.set()
        if self._gpu is not None:
            self._copied.synchronize()
        content = self._memory_for(layout.data).numpy().data
        trailer = digests_of(content[: layout.data])
        content[layout.data :] = trailer
        return Image(layout, content, trailer)

    def settle(self) -> None:
        """Wait until what `begin` fixed may change; on a GPU, its stream waits and not the host."""
        self._enqueued.wait()
        if self._gpu is not None:
            torch.cuda.current_stream(self._gpu).wait_event(self._copied)

    def let_go(self) -> None:
        """Wait until nothing refers to what `begin` fixed, so that its memory can be freed."""
        self._enqueued.wait()

    def _copy(self) -> Layout:
        targets = find_targets(self._state)
        layout = lay_out(self._state, targets, self._file)
        memory = self._memory_for(layout.data)
        with self._beside_training():
            for offset, target in zip(layout.offsets, targets, strict=True):
                size = target.memory.numel()
                memory[offset : offset + size].copy_(target.memory, non_blocking=True)
        return layout

    @contextlib.contextmanager
    def _beside_training(self) -> Iterator[None]:
        if self._gpu is None:
            yield
            return
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(self._begun)
            yield
            self._copied.record(self._stream)

    def _memory_for(self, data: int) -> torch.Tensor:
        size = data + trailer_size(data)
        if self._memory.numel() < size:
            self._memory = torch.empty(0, dtype=torch.uint8)  # never two of them at once
            self._memory = torch.zeros(size, dtype=torch.uint8, pin_memory=self._gpu is not None)
        return self._memory[:size]


def own_buffers(state: State) -> dict[str, Fragment]:
    """Copies of the buffers of a state, which a forward pass may change."""
    return {
        name: replace(held, pieces=tuple(_own(piece) for piece in held.pieces))
        for name, held in state.tensors.items()
        if name.startswith(BUFFERS)
    }


def _own(piece: Piece) -> Piece:
    return Piece(piece.start, piece.data.detach().clone())
