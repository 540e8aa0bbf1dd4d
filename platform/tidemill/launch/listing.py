"""What is told of checkpoints: from what their room knows to plain values that can be shown.

Nothing is decided here; the two rooms are strangers, and this is the only place that knows both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tidemill.checkpoint.inspect import Held, kind_of, manifest_of, sum_kinds
from tidemill.checkpoint.manifest import Manifest
from tidemill.report.inventory import (
    Anatomy,
    Change,
    Differences,
    FileRow,
    Inventory,
    KindChange,
    Row,
    TensorChange,
    TensorKind,
)
from tidemill.spec.base import differences
from tidemill.storage import Location

if TYPE_CHECKING:
    from tidemill.checkpoint.compare import Comparison, Difference


def tell_inventory(run: Location, found: Sequence[Held]) -> Inventory:
    """A row for each of a run's checkpoints, which come newest first."""
    return Inventory(
        place=str(run),
        newest=next((held.place.name for held in found if held.is_whole), ""),
        checkpoints=tuple(tell_row(held) for held in found),
    )


def tell_row(held: Held) -> Row:
    """What fits into a line of a table."""
    row = Row(
        name=held.place.name,
        step=held.step,
        attempt=held.attempt,
        state=held.condition.value,
        problem=held.problem,
        bytes=held.size,
        at_s=held.changed_s or None,
        origin={},
    )
    seen = held.manifest
    if seen is None:
        return row
    return replace(
        row,
        loss=seen.metrics.get("loss"),
        val_loss=seen.metrics.get("val_loss"),
        world=seen.world,
        strategy=seen.strategy,
        precision=seen.precision,
        at_s=seen.saved_at_s,
        origin=seen.origin,
    )


def tell_anatomy(run: Location, held: Held) -> Anatomy:
    """Everything that a manifest says, but where each piece lies.

    Raises:
        CheckpointError: It cannot be read.
    """
    seen = manifest_of(held)
    return Anatomy(
        place=str(run),
        checkpoint=tell_row(held),
        samples=seen.cursor.samples,
        rng=seen.rng,
        digest=seen.digest,
        corpus_digest=seen.corpus_digest,
        scalars=seen.scalars,
        identity=seen.identity,
        kinds=tuple(
            TensorKind(
                kind=kind.name,
                tensors=kind.tensors,
                elements=kind.elements,
                bytes=kind.size,
                dtypes=kind.dtypes,
            )
            for kind in sum_kinds(seen)
        ),
        files=tuple(
            FileRow(name=name, bytes=file.size, data=file.data, sha256=file.sha256)
            for name, file in sorted(seen.files.items())
        ),
    )


def tell_differences(left: Held, right: Held, found: Comparison, top: int) -> Differences:
    """What a comparison has shown.

    Args:
        left: The first checkpoint.
        right: The second.
        found: What came out.
        top: Tensors to name; 0 names all.

    Raises:
        CheckpointError: A manifest cannot be read.
    """
    one, other = manifest_of(left), manifest_of(right)
    return Differences(
        left_place=str(left.place),
        left=tell_row(left),
        right_place=str(right.place),
        right=tell_row(right),
        identity=_changes(one.identity, other.identity),
        facts=_changes(_facts(one), _facts(other)),
        only_left=tuple(found.only_left),
        only_right=tuple(found.only_right),
        unlike=tuple(
            Change(key=name, left=kind, right=another) for name, kind, another in found.unlike
        ),
        tensors=len(found.compared),
        elements=sum(difference.elements for difference in found.compared),
        differing=len(found.differing),
        differing_elements=sum(difference.differing for difference in found.differing),
        kinds=_kinds(found),
        worst=tuple(
            TensorChange(
                name=difference.name,
                elements=difference.elements,
                differing=difference.differing,
                largest=difference.largest,
                relative=difference.relative,
            )
            for difference in found.differing[: top or None]
        ),
        bit_equal=found.bit_equal,
    )


def _kinds(found: Comparison) -> tuple[KindChange, ...]:
    kinds: dict[str, list[Difference]] = {}
    for difference in found.compared:
        kinds.setdefault(kind_of(difference.name), []).append(difference)
    return tuple(
        KindChange(
            kind=kind,
            tensors=len(held),
            differing=sum(difference.differing > 0 for difference in held),
            largest=max(difference.largest for difference in held),
            relative=max(difference.relative for difference in held),
        )
        for kind, held in kinds.items()
    )


def _facts(seen: Manifest) -> dict[str, Any]:
    """What may differ between checkpoints of one configuration, but the tensors."""
    return {
        "run": seen.run,
        "step": seen.cursor.step,
        "samples": seen.cursor.samples,
        "world": seen.world,
        "strategy": seen.strategy,
        "precision": seen.precision,
        "corpus_digest": seen.corpus_digest,
        "rng": seen.rng,
        "origin": seen.origin,
        **seen.metrics,
        **seen.scalars,
    }


def _changes(left: Any, right: Any) -> tuple[Change, ...]:
    return tuple(Change(key=key, left=old, right=new) for key, old, new in differences(left, right))
