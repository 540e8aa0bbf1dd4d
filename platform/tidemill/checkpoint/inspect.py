"""A look at the checkpoints of a run from outside: what each is, and whether it is whole.

A survey reads a manifest and a listing for each, and no tensors, so it needs no torch. What storage
fails to show is told apart from what is damaged: nothing is given up because a network was down.
"""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum

from tidemill import storage
from tidemill.checkpoint import manifest
from tidemill.checkpoint.manifest import MANIFEST, SCHEMA, Manifest
from tidemill.checkpoint.sealed import unseal
from tidemill.errors import CheckpointError, CorruptCheckpoint, StorageError
from tidemill.storage import Location

READERS = 8
"""Checkpoints looked at side by side; on a bucket, a look is little more than waiting."""


class Condition(StrEnum):
    """What can be said of a directory of checkpoints without reading tensors."""

    whole = "whole"
    """Its manifest is sealed and every file is there, of the right size."""
    corrupt = "corrupt"
    torn = "torn"
    """It has no manifest: being written, or left behind by a kill."""
    unreadable = "unreadable"
    """Storage does not show it, or another version of Tidemill wrote it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """One directory of checkpoints.

    Attributes:
        place: Where it is.
        step: Steps taken, as its name says, and
        attempt: the attempt that saved it.
        condition: What it is.
        problem: Why it is not whole; empty if it is.
        manifest: Its manifest, if that can be read.
        size: Bytes of its files as they are now.
        changed_s: Time of the last change of any of them, seconds since the epoch; 0 if unknown.
    """

    place: Location
    step: int
    attempt: int
    condition: Condition
    problem: str = ""
    manifest: Manifest | None = None
    size: int = 0
    changed_s: float = 0.0

    @property
    def is_whole(self) -> bool:
        """Whether nothing is known to be wrong with it."""
        return self.condition is Condition.whole


@dataclass(frozen=True, slots=True)
class Kind:
    """All tensors of a checkpoint whose names begin alike.

    Attributes:
        name: The beginning: `param`, `exp_avg`, `buffer`, ...
        tensors: How many there are.
        elements: Of all of them.
        size: Bytes of all of them.
        dtypes: Names of their element types.
    """

    name: str
    tensors: int
    elements: int
    size: int
    dtypes: tuple[str, ...]


def survey(run: Location) -> list[Held]:
    """Look at every directory of checkpoints of a run, newest first.

    Raises:
        StorageError: The run's directory cannot be listed.
    """
    places = manifest.directories(run)
    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(look, places))


def look(place: Location) -> Held:
    """What can be said of one directory without reading tensors."""
    step, attempt = manifest.parse_name(place.name) or (0, 0)

    def held(condition: Condition, problem: str = "", found: Manifest | None = None) -> Held:
        return Held(
            place=place,
            step=step,
            attempt=attempt,
            condition=condition,
            problem=problem,
            manifest=found,
            size=sum(sizes.values()),
            changed_s=changed_s,
        )

    sizes: dict[str, int] = {}
    changed_s = 0.0
    try:
        entries = storage.children(place)
        sizes = {entry.location.name: entry.size for entry in entries}
        changed_s = max((entry.modified_ns / 1e9 for entry in entries), default=0.0)
        if MANIFEST not in sizes:
            return held(Condition.torn, "it has no manifest, so it was never committed")
        content = storage.read_bytes(place / MANIFEST)
    except StorageError as error:
        return held(Condition.unreadable, str(error))
    try:
        found = manifest.decode(content, place.name)
    except CorruptCheckpoint as error:
        is_foreign = _schema_of(content) not in (None, SCHEMA)
        return held(Condition.unreadable if is_foreign else Condition.corrupt, str(error))
    flaws = [
        f"{name} is missing"
        if name not in sizes
        else f"{name} has {sizes[name]} bytes instead of {file.size}"
        for name, file in sorted(found.files.items())
        if sizes.get(name) != file.size
    ]
    return held(Condition.corrupt if flaws else Condition.whole, "; ".join(flaws), found)


def manifest_of(held: Held) -> Manifest:
    """The manifest of a checkpoint.

    Raises:
        CheckpointError: It cannot be read.
    """
    if held.manifest is None:
        raise CheckpointError(f"step: {held.place.name} is {held.condition}: {held.problem}")
    return held.manifest


def sum_kinds(found: Manifest) -> list[Kind]:
    """What a checkpoint holds, by kind of tensor, in the order of their names."""
    names: dict[str, list[str]] = {}
    for name in sorted(found.tensors):
        names.setdefault(kind_of(name), []).append(name)
    return [
        Kind(
            name=kind,
            tensors=len(held),
            elements=sum(found.tensors[name].numel for name in held),
            size=sum(
                found.tensors[name].numel * itemsize(found.tensors[name].dtype) for name in held
            ),
            dtypes=tuple(sorted({found.tensors[name].dtype for name in held})),
        )
        for kind, held in names.items()
    ]


def kind_of(name: str) -> str:
    """How the name of a tensor begins: `param`, `exp_avg`, `buffer`, ..."""
    return name.partition(".")[0]


def itemsize(dtype: str) -> int:
    """Bytes per element of a type, by its name in torch: 2 for `bfloat16`, 1 for `bool`."""
    bits = re.search(r"\d+", dtype)
    return int(bits[0]) // 8 if bits else 1


def _schema_of(content: bytes) -> int | None:
    """The version of a sealed manifest; None if the seal is broken."""
    try:
        plain = unseal(content, "")
    except CorruptCheckpoint:
        return None
    schema = plain.get("schema") if isinstance(plain, dict) else None
    return schema if isinstance(schema, int) else None
