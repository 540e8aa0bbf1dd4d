"""Weights from elsewhere, as they are found: safetensors files, believed only if they add up.

A header must account for every byte of its file, and an index for every tensor of its shards, so
that what is copied later needs no further check. Needs no torch: a driver can tell a bad file in a
moment.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from tidemill import storage
from tidemill.checkpoint.fragments import StoredPiece, StoredTensor
from tidemill.checkpoint.portable import DTYPES, INDEX, PREFIX, WEIGHTS, itemsize_of
from tidemill.errors import CheckpointError, StorageError
from tidemill.storage import Location

KEY = "checkpoint.init_from"
SUFFIX = ".safetensors"
LONGEST_HEADER = 100_000_000
"""Bytes; the limit of the format's own library."""
MOST_DIMENSIONS = 64
LARGEST = 2**63 - 1
LONGEST_STORY = 300
"""Letters of a problem, which may quote names from a file."""


@dataclass(frozen=True, slots=True)
class Weights:
    """What safetensors files hold.

    Attributes:
        place: The directory of the files.
        files: Bytes of each file, by name.
        tensors: By name, one piece each; none if it has no elements.
    """

    place: Location
    files: dict[str, int]
    tensors: dict[str, StoredTensor]


def read_weights(source: Location) -> Weights:
    """Find safetensors files and read what they say they hold; reads no tensor.

    Args:
        source: A file `*.safetensors`, or a directory with `WEIGHTS` or with `INDEX` and its
            shards.

    Raises:
        CheckpointError: There are none, or one is damaged, lies about itself or cannot be read.
    """
    try:
        if source.name.endswith(SUFFIX):
            return _join(source.parent, [_read_file(source)])
        if storage.exists(source / WEIGHTS):
            return _join(source, [_read_file(source / WEIGHTS)])
        if storage.exists(source / INDEX):
            return _read_shards(source)
    except StorageError as error:
        raise CheckpointError(f"{KEY}: {error}; name safetensors that can be read") from error
    raise CheckpointError(
        f"{KEY}: {source} has neither {WEIGHTS} nor {INDEX}; name a directory that has one of "
        f"them, or a file *{SUFFIX}"
    )


@dataclass(frozen=True, slots=True)
class _File:
    """One file and what it holds."""

    place: Location
    size: int
    tensors: dict[str, StoredTensor]


def _join(place: Location, files: Sequence[_File]) -> Weights:
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        tensors.update(file.tensors)
    return Weights(place, {file.place.name: file.size for file in files}, tensors)


def _read_shards(source: Location) -> Weights:
    """What the shards hold, which must be exactly what the index says."""
    index = source / INDEX
    with storage.open_input(index) as reader:
        if reader.size() > LONGEST_HEADER:
            _refuse(index, f"it is too long for an index ({reader.size()} bytes)")
        content = reader.read()
    plain = _decode(index, content)
    files: Any = plain.get("weight_map")
    if not isinstance(files, dict) or not all(
        isinstance(name, str) and _is_plain(name) for name in files.values()
    ):
        _refuse(index, "its weight_map does not name files beside it")
    shards = [_read_file(source / name) for name in sorted(set(files.values()))]
    for shard in shards:
        said = {name for name, file in files.items() if file == shard.place.name}
        for name in sorted(said ^ shard.tensors.keys()):
            _refuse(shard.place, f"{name} is {'not in it' if name in said else 'not in the index'}")
    return _join(source, shards)


def _read_file(place: Location) -> _File:
    with storage.open_input(place) as reader:
        size = reader.size()
        length = int.from_bytes(reader.read(PREFIX), "little")
        if size < PREFIX or length > LONGEST_HEADER:
            _refuse(place, "it is no safetensors file")
        if length > size - PREFIX:
            _refuse(place, f"it is cut short: {size} bytes, and its header alone has {length}")
        plain = _decode(place, reader.read(length))
    plain.pop("__metadata__", None)
    held = [_tensor(place, name, entry, PREFIX + length) for name, entry in plain.items()]
    end, before = PREFIX + length, "the header"
    for name, begin, tensor_end, _ in sorted(held, key=lambda item: item[1:3]):
        if begin != end:
            how = "overlaps" if begin < end else "leaves a gap after"
            _refuse(place, f"{name} {how} {before}")
        end, before = tensor_end, name
    if end > size:
        _refuse(place, f"it is cut short: {size} bytes instead of {end}")
    if end < size:
        _refuse(place, f"its last {size - end} bytes belong to no tensor")
    return _File(place, size, {name: tensor for name, _, _, tensor in held})


def _tensor(
    place: Location, name: str, entry: Any, first: int
) -> tuple[str, int, int, StoredTensor]:
    """(name, first byte of the file, byte after the last, tensor) from an entry of a header."""
    plain: dict[str, Any] = entry if isinstance(entry, dict) else {}
    code = str(plain.get("dtype"))
    shape, offsets = _sizes(plain.get("shape")), _sizes(plain.get("data_offsets"))
    if code not in DTYPES:
        _refuse(place, f"{name} is of type {code}, which is none of {', '.join(DTYPES)}")
    if shape is None or offsets is None or len(offsets) != len(("begin", "end")):
        _refuse(place, f"the header's entry of {name} is malformed")
    begin, end = offsets
    count = math.prod(shape)
    if end - begin != count * itemsize_of(code):
        _refuse(place, f"{name} has {end - begin} bytes, which do not hold {code} {shape}")
    pieces = (StoredPiece(0, count, place.name, first + begin),) if count else ()
    return name, first + begin, first + end, StoredTensor(tuple(shape), DTYPES[code], pieces)


def _sizes(value: Any) -> list[int] | None:
    """The list that `value` is, if it holds nothing but numbers that can be sizes."""
    if not isinstance(value, list) or len(value) > MOST_DIMENSIONS:
        return None
    good = all(type(item) is int and 0 <= item <= LARGEST for item in value)
    return value if good else None


def _decode(place: Location, content: bytes) -> dict[str, Any]:
    """A JSON object in which no key comes twice."""

    def once(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
        held: dict[str, Any] = {}
        for key, value in pairs:
            if key in held:
                _refuse(place, f"{key} is in it twice")
            held[key] = value
        return held

    try:
        plain = json.loads(content, object_pairs_hook=once)
    except (ValueError, RecursionError):
        plain = None
    if not isinstance(plain, dict):
        _refuse(place, f"its {'index' if place.name == INDEX else 'header'} is no JSON object")
    return plain


def _is_plain(name: str) -> bool:
    """Whether a name is that of a file in the same directory."""
    return name not in ("", ".", "..") and "/" not in name and "\\" not in name


def _refuse(place: Location, problem: str) -> NoReturn:
    """Say it in one line, whatever names a file holds."""
    told = "".join(letter if letter.isprintable() else "?" for letter in problem[:LONGEST_STORY])
    raise CheckpointError(f"{KEY}: {place}: {told}")
