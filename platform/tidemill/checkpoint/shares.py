"""What each rank says it holds, put together and checked before anything is committed.

A share is plain JSON, because that is how it travels; the checks run once, on rank 0, where a gap
between two ranks can be seen at all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from tidemill.checkpoint.fragments import StoredPiece, StoredTensor, find_flaw
from tidemill.checkpoint.manifest import StoredFile, encode_tensors
from tidemill.checkpoint.snapshot import Image
from tidemill.errors import CheckpointError
from tidemill.spec.base import digest_of
from tidemill.spec.progress import Cursor, State
from tidemill.storage import Location

Share = dict[str, Any]


def describe(image: Image, name: str, cursor: Cursor, scalars: Mapping[str, Any]) -> Share:
    """Say what one rank will write, and the moment and the scalars it belongs to.

    Args:
        image: The rank's file.
        name: Name of the file.
        cursor: Where the run goes on.
        scalars: JSON values that must be the same on every rank.
    """
    return {
        "cursor": [cursor.step, cursor.samples],
        "tensors": encode_tensors(image.layout.tensors),
        "file": {
            "name": name,
            "size": len(image.memory),
            "data": image.layout.data,
            "sha256": hashlib.sha256(image.trailer).hexdigest(),
        },
        "scalars": {key: digest_of(value) for key, value in scalars.items()},
    }


def require_one_moment(shares: Sequence[Share]) -> None:
    """Refuse to save what ranks hold at different [step, samples].

    Raises:
        CheckpointError: Names the rank.
    """
    first = shares[0]["cursor"]
    for rank, share in enumerate(shares):
        if share["cursor"] != first:
            raise CheckpointError(
                f"rank {rank} is at [step, samples] {share['cursor']} and rank 0 at {first}"
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
        held["name"]: StoredFile(held["size"], held["data"], held["sha256"])
        for held in (share["file"] for share in shares)
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


def require_fit(place: Location | str, state: State, tensors: Mapping[str, StoredTensor]) -> None:
    """Refuse a checkpoint that does not hold exactly the tensors of `state`.

    Raises:
        CheckpointError: A tensor is missing, left over, or of another shape or dtype; names it.
    """
    for name in sorted({*state.tensors, *tensors}):
        live, stored = state.tensors.get(name), tensors.get(name)
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
