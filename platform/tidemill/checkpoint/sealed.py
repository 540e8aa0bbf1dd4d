"""JSON that proves itself: a value sealed with the sha256 of its own bytes, and a strict reader.

The checksum covers the very bytes, not their meaning, so any flipped bit is found; and what it
seals is still a JSON file that any tool can read.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from tidemill.errors import CheckpointError, CorruptCheckpoint
from tidemill.spec.base import canonical_json

T = TypeVar("T")

_PREFIX = re.compile(rb'\{"sha256":"([0-9a-f]{64})",\n"manifest":')
_SUFFIX = b"}\n"


def seal(plain: Any) -> bytes:
    """Encode a JSON value together with the checksum of its bytes."""
    body = canonical_json(plain).encode()
    checksum = hashlib.sha256(body).hexdigest().encode()
    return b'{"sha256":"' + checksum + b'",\n"manifest":' + body + _SUFFIX


def unseal(content: bytes, where: str) -> Any:
    """Decode what `seal` made.

    Args:
        content: The bytes.
        where: Named in errors.

    Raises:
        CorruptCheckpoint: The bytes are not what `seal` made.
    """
    prefix = _PREFIX.match(content)
    if prefix is None:
        raise CorruptCheckpoint(f"{where} is no manifest ({len(content)} bytes)")
    if not content.endswith(_SUFFIX):
        raise CorruptCheckpoint(f"{where} is cut short ({len(content)} bytes)")
    body = content[prefix.end() : -len(_SUFFIX)]
    if hashlib.sha256(body).hexdigest().encode() != prefix[1]:
        raise CorruptCheckpoint(f"{where} does not match its own checksum")
    try:
        return json.loads(body)
    except ValueError as error:
        raise CorruptCheckpoint(f"{where} is not JSON ({error})") from error


@dataclass(frozen=True, slots=True)
class Reader:
    """Takes plain values apart; every complaint names the file and the key.

    Attributes:
        where: The file.
    """

    where: str

    def each(
        self, held: dict[str, Any], key: str, read: Callable[[str, dict[str, Any]], T]
    ) -> dict[str, T]:
        """Read each item of the dict `held[key]` with `read(path, item)`."""
        return {
            name: read(f"{key}.{name}", self.cast(plain, dict, f"{key}.{name}"))
            for name, plain in self.take(held, key, dict).items()
        }

    def take(self, held: dict[str, Any], key: str, kind: Any, parent: str = "") -> Any:
        """`held[key]`, which must be there and an instance of `kind`."""
        path = f"{parent}.{key}" if parent else key
        if key not in held:
            raise CorruptCheckpoint(f"{self.where}: {path} is missing")
        return self.cast(held[key], kind, path)

    def cast(self, value: Any, kind: Any, path: str) -> Any:
        """`value`, which must be an instance of `kind`; a boolean is no number."""
        if not isinstance(value, kind) or isinstance(value, bool):
            raise CorruptCheckpoint(f"{self.where}: {path} cannot be {value!r:.40}")
        return value


def require_json(key: str, value: Any) -> None:
    """Refuse a scalar that would come back as something else, e.g. a tuple or NaN.

    Raises:
        CheckpointError: Names the scalar.
    """
    try:
        same = json.loads(json.dumps(value, allow_nan=False)) == value
    except (TypeError, ValueError):
        same = False
    if not same:
        raise CheckpointError(
            f"scalar {key}: {value!r} does not survive JSON; use finite numbers, strings, "
            "booleans, None, lists, and dicts with string keys"
        )
