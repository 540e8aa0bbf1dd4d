"""A small state of every kind of tensor, split over ranks in any way."""

from __future__ import annotations

import random
from typing import Any

import torch

from tidemill.checkpoint.exchange import Exchange
from tidemill.checkpoint.manifest import Header
from tidemill.checkpoint.retention import Keep
from tidemill.checkpoint.store import Store
from tidemill.spec.progress import EventKind, Fragment, Piece, State, World
from tidemill.storage import locate

SCALARS = {"step": 7, "scale": 65536.0, "groups": [{"lr": 0.1, "name": "all"}], "good": True}
HEADER = Header(
    run="tide",
    digest="d" * 64,
    identity={"model": {"kind": "GptSpec", "layers": 2}, "batch": {"sequence": 8}},
    corpus_digest="c" * 64,
    strategy="ddp",
    precision="fp32",
)


def make_store(world: World, uri: str, *, keep: Keep | None = None, **changes: Any) -> Store:
    """A store of `world` that tells nobody of its saves and does not try twice."""
    return Store(
        locate(uri),
        **{
            "header": HEADER,
            "world": world,
            "exchange": Exchange(world),
            "recorder": Deaf(),
            "keep": keep or Keep(last=2),
            **changes,
        },
    )


class Deaf:
    """A recorder that keeps nothing."""

    def record(self, kind: EventKind, **fields: Any) -> None:
        """See `Recorder.record`."""

    def flush(self) -> None:
        """See `Recorder.flush`."""


def make_tensors(seed: int) -> dict[str, torch.Tensor]:
    """Logical tensors: every dtype that is trained or buffered, and every odd shape."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draw)

    return {
        "param.wide": normal(53, 31),
        "exp_avg.wide": normal(53, 31),
        "param.cube": normal(2, 3, 5),
        "param.half": normal(33).half(),
        "param.brain": normal(7, 3).bfloat16(),
        "param.double": normal(4).double(),
        "param.single": normal(1),
        "buffer.number": normal().clone(),
        "buffer.count": torch.randint(0, 2**40, (), generator=draw),
        "buffer.mask": normal(19) > 0,
        "buffer.bytes": torch.randint(0, 255, (13,), generator=draw).to(torch.uint8),
        "buffer.none": torch.empty(0, 3),
    }


def dtype_name(tensor: torch.Tensor) -> str:
    """As `Fragment.dtype` wants it."""
    return str(tensor.dtype).removeprefix("torch.")


def whole(tensors: dict[str, torch.Tensor]) -> State:
    """A state that holds all of each tensor, as live views of `tensors`."""
    return State(
        {
            name: Fragment(tuple(t.shape), dtype_name(t), (Piece(0, t.view(-1)),))
            for name, t in tensors.items()
        }
    )


def split(tensors: dict[str, torch.Tensor], rank: int, size: int, salt: str) -> State:
    """One rank's share of a random partition that all ranks draw alike from `salt`."""
    draw = random.Random(salt)
    fragments: dict[str, Fragment] = {}
    for name, tensor in tensors.items():
        flat = tensor.view(-1)
        cuts = sorted(draw.randint(0, flat.numel()) for _ in range(draw.randint(0, 2 * size)))
        ends = [*cuts, flat.numel()]
        owners = [draw.randrange(size) for _ in ends]
        fragments[name] = Fragment(
            tuple(tensor.shape),
            dtype_name(tensor),
            tuple(
                Piece(start, flat[start:end])
                for start, end, owner in zip([0, *cuts], ends, owners, strict=True)
                if owner == rank
            ),
        )
    return State(fragments)


def blank(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors of the same kinds, without their content."""
    return {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}


def same_pieces(state: State, tensors: dict[str, torch.Tensor]) -> bool:
    """Whether each piece holds, bit for bit, its range of the logical tensor."""
    return all(
        torch.equal(
            piece.data.view(torch.uint8),
            tensors[name].view(-1)[piece.start :][: piece.data.numel()].view(torch.uint8),
        )
        for name, fragment in state.tensors.items()
        for piece in fragment.pieces
    )
