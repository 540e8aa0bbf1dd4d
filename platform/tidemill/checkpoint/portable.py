"""The portable form of weights: safetensors, in one file or in shards with an index.

What is known of the format on both sides, and how it is written: tensors are dealt over files, and
the header of each says where its bytes will be, before any of them is read.

Source: github.com/huggingface/safetensors, README "Format"; the index is that of `transformers`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tidemill.errors import CheckpointError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
CONFIG = "config.json"
PREFIX = 8
"""Bytes of the header's length, at the beginning of a file."""

DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}
"""Element types as the format calls them, and as torch does."""

_CODES = {name: code for code, name in DTYPES.items()}
_SHARD = re.compile(r"model-\d{5,}-of-\d{5,}\.safetensors")


@dataclass(frozen=True, slots=True)
class Kind:
    """What is said of a tensor before its bytes.

    Attributes:
        shape: Its shape; () for a single number.
        dtype: Name of its element type, one of the values of `DTYPES`.
    """

    shape: tuple[int, ...]
    dtype: str

    @property
    def itemsize(self) -> int:
        """Bytes per element."""
        return itemsize_of(_CODES[self.dtype])

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * self.itemsize


@dataclass(frozen=True, slots=True)
class Shard:
    """A file to be written.

    Attributes:
        name: Of the file.
        tensors: Names of the tensors, in the order of their bytes.
    """

    name: str
    tensors: tuple[str, ...]


def belongs_to_export(name: str) -> bool:
    """Whether a file of that name is one that an export writes."""
    return name in (WEIGHTS, INDEX, CONFIG) or _SHARD.fullmatch(name) is not None


def require_kind(name: str, dtype: str) -> None:
    """Refuse an element type that the format cannot hold.

    Raises:
        CheckpointError: Names the tensor.
    """
    if dtype not in _CODES:
        raise CheckpointError(f"{name} is {dtype}, which safetensors files cannot hold")


def plan_shards(kinds: Mapping[str, Kind], most: int) -> list[Shard]:
    """Deal tensors over files.

    Args:
        kinds: The tensors, by name.
        most: Bytes of tensors per file; a larger tensor has a file of its own. 0 sets no limit.

    Returns:
        One file of the usual name, or numbered ones; wide elements come first in each, so that
        every tensor is aligned.
    """
    groups: list[list[str]] = [[]]
    held = 0
    for name in sorted(kinds):
        if groups[-1] and 0 < most < held + kinds[name].size:
            groups.append([])
            held = 0
        groups[-1].append(name)
        held += kinds[name].size
    many = len(groups)
    return [
        Shard(
            WEIGHTS if many == 1 else f"model-{number:05d}-of-{many:05d}.safetensors",
            tuple(sorted(names, key=lambda name: (-kinds[name].itemsize, name))),
        )
        for number, names in enumerate(groups, start=1)
    ]


def encode_header(shard: Shard, kinds: Mapping[str, Kind]) -> bytes:
    """The bytes of a file up to its first tensor, a multiple of eight."""
    plain: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in shard.tensors:
        kind = kinds[name]
        begin, end = end, end + kind.size
        plain[name] = {
            "dtype": _CODES[kind.dtype],
            "shape": list(kind.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(plain, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % PREFIX)
    return len(text).to_bytes(PREFIX, "little") + text


def encode_index(shards: Sequence[Shard], kinds: Mapping[str, Kind]) -> bytes:
    """The bytes of `INDEX`."""
    files = {name: shard.name for shard in shards for name in shard.tensors}
    plain = {
        "metadata": {"total_size": sum(kind.size for kind in kinds.values())},
        "weight_map": dict(sorted(files.items())),
    }
    return (json.dumps(plain, indent=2, ensure_ascii=False) + "\n").encode()


def itemsize_of(code: str) -> int:
    """Bytes per element of a type as the format calls it."""
    return 1 if code == "BOOL" else int(code.lstrip("BFIU")) // 8
