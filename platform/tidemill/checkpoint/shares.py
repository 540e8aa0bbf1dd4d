"""What each rank says it holds, put together and checked before anything is committed.

A share is plain JSON, because that is how it travels; the checks run once, on rank 0, where a gap
between two ranks can be seen at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tidemill.checkpoint.fragments import StoredPiece, StoredTensor, find_flaw
from tidemill.checkpoint.manifest import Manifest, StoredFile, encode_tensors
from tidemill.errors import CheckpointError
from tidemill.spec.base import digest_of
from tidemill.spec.progress import State
from tidemill.storage import Location

Share = dict[str, Any]


def describe(
    tensors: Mapping[str, StoredTensor], name: str, file: StoredFile, state: State
) -> Share:
    """Say what one rank wrote, and the scalars beside it.

    Args:
        tensors: What its file holds.
        name: Name of the file.
        file: Size and checksum of the file.
        state: Has the scalars.
    """
    return {
        "tensors": encode_tensors(tensors),
        "file": {"name": name, "size": file.size, "sha256": file.sha256},
        "scalars": {key: digest_of(value) for key, value in state.scalars.items()},
    }


def require_one_moment(cursors: Sequence[list[int]]) -> None:
    """Refuse to save on ranks that are not at the same [step, samples].

    Raises:
        CheckpointError: Names the rank.
    """
    for rank, cursor in enumerate(cursors):
        if cursor != cursors[0]:
            raise CheckpointError(
                f"rank {rank} is at [step, samples] {cursor} and rank 0 at {cursors[0]}"
            )


def require_equal_scalars(shares: Sequence[Share]) -> None:
    """Refuse ranks with different scalars.

    Raises:
        CheckpointError: Names the scalar and the rank.
    """
    for rank, share in enumerate(shares):
        for key in sorted({*share["scalars"], *shares[0]["scalars"]}):
            if share["scalars"].get(key) != shares[0]["scalars"].get(key):
                raise CheckpointError(f"scalar {key} differs between rank 0 and rank {rank}")


def join_files(shares: Sequence[Share]) -> dict[str, StoredFile]:
    """The files that the ranks wrote, by name."""
    return {
        share["file"]["name"]: StoredFile(share["file"]["size"], share["file"]["sha256"])
        for share in shares
    }


def join_tensors(shares: Sequence[Share]) -> dict[str, StoredTensor]:
    """Put together what the ranks hold of each tensor.

    Raises:
        CheckpointError: Some element of a tensor is held by no rank or by several, or the ranks
            disagree on its shape or dtype; names the tensor.
    """
    pieces: dict[str, list[StoredPiece]] = {}
    kinds: dict[str, tuple[tuple[int, ...], str]] = {}
    for rank, share in enumerate(shares):
        for name, plain in share["tensors"].items():
            kind = (tuple(plain["shape"]), plain["dtype"])
            if kinds.setdefault(name, kind) != kind:
                raise CheckpointError(f"{name}: rank {rank} has {kind} and others {kinds[name]}")
            pieces.setdefault(name, []).extend(StoredPiece(*piece) for piece in plain["pieces"])
    joined: dict[str, StoredTensor] = {}
    for name, (shape, dtype) in kinds.items():
        whole = StoredTensor(shape, dtype, tuple(sorted(pieces[name], key=lambda p: p.start)))
        flaw = find_flaw(whole.pieces, whole.numel)
        if flaw:
            raise CheckpointError(f"{name}: {flaw}")
        joined[name] = whole
    return joined


def require_fit(place: Location, state: State, found: Manifest) -> None:
    """Refuse a checkpoint that does not hold exactly the tensors of `state`.

    Raises:
        CheckpointError: A tensor is missing, left over, or of another shape or dtype; names it.
    """
    for name in sorted({*state.tensors, *found.tensors}):
        live, stored = state.tensors.get(name), found.tensors.get(name)
        if stored is None:
            raise CheckpointError(
                f"{place}: {name} is not in the checkpoint; was the model changed?"
            )
        if live is None:
            raise CheckpointError(f"{place}: {name} is not in the run; was the model changed?")
        if (tuple(live.shape), live.dtype) != (stored.shape, stored.dtype):
            raise CheckpointError(
                f"{place}: {name} is {stored.dtype} {list(stored.shape)} in the checkpoint and "
                f"{live.dtype} {list(live.shape)} in the run; was the model changed?"
            )
