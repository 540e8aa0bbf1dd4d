"""What there is to tell of checkpoints, as plain values: what a program reads is what people see.

Whoever knows checkpoints fills these in; the pages made of them, and their JSON, need nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

WHOLE = "whole"
TORN = "torn"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One directory of checkpoints; what only a manifest tells is None or empty without one.

    Attributes:
        name: Of the directory.
        step: Steps taken.
        attempt: The attempt that saved it.
        state: `whole`, `corrupt`, `torn` or `unreadable`.
        problem: Why it is not whole.
        loss: Training loss of its last step, nats per target.
        val_loss: Held-out loss at that step.
        world: Ranks that saved it.
        strategy: Name of the strategy that saved it.
        precision: Number format of forward and backward.
        bytes: Of its files.
        at_s: Time it was saved, or last changed; seconds since the epoch, None if unknown.
        origin: What its run started from, see `Manifest.origin`.
    """

    name: str
    step: int
    attempt: int
    state: str
    problem: str = ""
    loss: float | None = None
    val_loss: float | None = None
    world: int | None = None
    strategy: str = ""
    precision: str = ""
    bytes: int = 0
    at_s: float | None = None
    origin: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """All checkpoints of a run, newest first.

    Attributes:
        place: The run's directory.
        newest: Name of the newest that is whole, empty if none is.
        checkpoints: A row for each.
    """

    place: str
    newest: str
    checkpoints: tuple[Row, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorKind:
    """All tensors of one kind, e.g. `param` or `exp_avg`."""

    kind: str
    tensors: int
    elements: int
    bytes: int
    dtypes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRow:
    """A file: its size, the bytes of it that are tensors, the checksum of the rest."""

    name: str
    bytes: int
    data: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Anatomy:
    """All that a manifest says; see `Manifest` for the fields."""

    place: str
    checkpoint: Row
    samples: int
    rng: str
    digest: str
    corpus_digest: str
    scalars: dict[str, Any]
    identity: dict[str, Any]
    kinds: tuple[TensorKind, ...]
    files: tuple[FileRow, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What reading every byte of a checkpoint has shown.

    Attributes:
        checkpoint: With the state that was found.
        seconds: It took.
        counts: Whether its not being whole is anything to worry about.
    """

    checkpoint: Row
    seconds: float
    counts: bool

    @property
    def failed(self) -> bool:
        """Whether it should be whole and is not."""
        return self.counts and self.checkpoint.state != WHOLE


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """All proofs."""

    place: str
    proofs: tuple[Proof, ...]

    @property
    def failed(self) -> tuple[Proof, ...]:
        """Those that should be whole and are not."""
        return tuple(proof for proof in self.proofs if proof.failed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fate:
    """What becomes of one directory, and why."""

    checkpoint: Row
    stays: bool
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruning:
    """What becomes of each; `applied` if it has."""

    place: str
    fates: tuple[Fate, ...]
    applied: bool

    @property
    def going(self) -> tuple[Fate, ...]:
        """Those that go."""
        return tuple(fate for fate in self.fates if not fate.stays)


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A value that is not the same; None where there is none."""

    key: str
    left: Any
    right: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorChange:
    """A tensor that is not the same.

    Attributes:
        name: Of the tensor.
        elements: It has.
        differing: Elements whose bits differ.
        largest: The largest absolute difference; infinite where one side alone is not finite.
        relative: That, as a share of the largest absolute value on either side.
    """

    name: str
    elements: int
    differing: int
    largest: float
    relative: float


@dataclass(frozen=True, slots=True, kw_only=True)
class KindChange:
    """All tensors of one kind: how many there are, how many differ, and how much at most."""

    kind: str
    tensors: int
    differing: int
    largest: float
    relative: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Differences:
    """Two checkpoints side by side.

    Attributes:
        left_place: Directory of the first.
        left: The first.
        right_place: Directory of the second.
        right: The second.
        identity: Keys of the configuration that differ.
        facts: What else differs that is not a tensor: cursor, world, scalars, ...
        only_left: Tensors that the first alone has.
        only_right: Tensors that the second alone has.
        unlike: Tensors of another shape or type.
        tensors: How many were compared.
        elements: Of those.
        differing: How many of those tensors differ, and
        differing_elements: how many of their elements.
        kinds: The same by kind of tensor.
        worst: Those that differ most, the worst first.
        bit_equal: Whether all tensors of both are there in both, bit for bit.
    """

    left_place: str
    left: Row
    right_place: str
    right: Row
    identity: tuple[Change, ...]
    facts: tuple[Change, ...]
    only_left: tuple[str, ...]
    only_right: tuple[str, ...]
    unlike: tuple[Change, ...]
    tensors: int
    elements: int
    differing: int
    differing_elements: int
    kinds: tuple[KindChange, ...]
    worst: tuple[TensorChange, ...]
    bit_equal: bool


Page = Inventory | Anatomy | Verification | Pruning | Differences
