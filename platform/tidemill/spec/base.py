"""What every spec shares: the decorator, checks that name the key, and a plain-data form.

Specs are ordinary dataclasses so that OmegaConf can compose them (it refuses frozen ones), but type
checkers treat them as frozen. The plain form tags each variant with its class name (`variant`), so
`from_plain(RunSpec, to_plain(run)) == run` needs no registry.
"""

from __future__ import annotations

import hashlib
import json
import math
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from enum import StrEnum
from typing import Any, ClassVar, TypeVar, dataclass_transform

from tidemill.errors import SpecError

Plain = dict[str, Any]
T = TypeVar("T")


@dataclass_transform(frozen_default=True, kw_only_default=True)
def spec(cls: type[T]) -> type[T]:
    """Make `cls` a keyword-only dataclass that type checkers treat as frozen."""
    return dataclass(kw_only=True)(cls)


class Spec:
    """Base of every chosen thing.

    Attributes:
        GROUP: The configuration group that holds it, used to name keys in errors.
        WHERE: Fields that say where something is, not what it is; they stay out of the digest.
    """

    GROUP: ClassVar[str] = ""
    WHERE: ClassVar[frozenset[str]] = frozenset()

    def require(self, ok: bool, field: str, problem: str, remedy: str) -> None:  # noqa: FBT001
        """Raise `SpecError` naming `GROUP.field` unless `ok`."""
        if not ok:
            raise SpecError(f"{self.GROUP}.{field}" if self.GROUP else field, problem, remedy)

    def require_at_least(self, minimum: float, *names: str) -> None:
        """Raise `SpecError` for the first of `names` below `minimum`, or not finite."""
        for name in names:
            value = getattr(self, name)
            self.require(value < math.inf, name, f"{value} is not finite", "use a finite number")
            self.require(
                value >= minimum, name, f"{value} is too small", f"use {minimum:g} or more"
            )

    def require_between(self, low: float, high: float, *names: str) -> None:
        """Raise `SpecError` for the first of `names` outside the closed interval."""
        for name in names:
            value = getattr(self, name)
            self.require(
                low <= value <= high, name, f"{value} is out of range", f"use {low:g} to {high:g}"
            )


def to_plain(value: Any) -> Any:
    """Turn a spec into dicts, lists and JSON scalars, variants tagged with `variant`."""
    if is_dataclass(value) and not isinstance(value, type):
        plain: Plain = {}
        if type(value).__mro__[1] is not Spec:
            plain["variant"] = type(value).__name__
        plain.update({field.name: to_plain(getattr(value, field.name)) for field in fields(value)})
        return plain
    if isinstance(value, StrEnum):
        return value.value
    if isinstance(value, Mapping):
        items = typing.cast("Mapping[Any, Any]", value).items()
        return {str(key): to_plain(item) for key, item in items}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in typing.cast("list[Any]", value)]
    return value


def from_plain(cls: type[T], plain: Mapping[str, Any]) -> T:
    """Rebuild a spec of type `cls` (or the variant that `plain["variant"]` names).

    Raises:
        SpecError: A key or a variant is unknown to this version.
    """
    variant = plain.get("variant")
    target = cls if variant is None else _variant(cls, str(variant))
    hints = typing.get_type_hints(target)
    names = {field.name for field in fields(typing.cast("Any", target))}
    unknown = sorted(set(plain) - names - {"variant"})
    if unknown:
        raise SpecError(
            unknown[0], f"{target.__name__} has no such key", "use the version that wrote it"
        )
    return target(
        **{key: _decode(hints[key], item) for key, item in plain.items() if key != "variant"}
    )


def _variant(cls: type[T], name: str) -> type[T]:
    for candidate in _family(cls):
        if candidate.__name__ == name:
            return candidate
    raise SpecError("variant", f"{name} is no {cls.__name__}", "use the version that wrote it")


def _family(cls: type[T]) -> Iterator[type[T]]:
    yield cls
    for child in cls.__subclasses__():
        yield from _family(child)


def _decode(hint: Any, value: Any) -> Any:
    if isinstance(hint, types.UnionType):
        if value is None:
            return None
        hint = next(arm for arm in typing.get_args(hint) if arm is not type(None))
    if isinstance(hint, type) and is_dataclass(hint):
        return from_plain(hint, value)
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return hint(value)
    if hint is float and isinstance(value, int):
        return float(value)
    if isinstance(value, list):
        (item_hint,) = typing.get_args(hint) or (Any,)
        return [_decode(item_hint, item) for item in typing.cast("list[Any]", value)]
    return value


def canonical_json(plain: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal bytes."""
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest_of(plain: Any) -> str:
    """sha256 (hex) of the canonical JSON of `plain`."""
    return hashlib.sha256(canonical_json(plain).encode()).hexdigest()


def differences(old: Any, new: Any, prefix: str = "") -> list[tuple[str, Any, Any]]:
    """List (dotted key, old value, new value) wherever two plain forms differ."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        olds, news = typing.cast("Plain", old), typing.cast("Plain", new)
        found: list[tuple[str, Any, Any]] = []
        for key in sorted({*olds, *news}):
            path = f"{prefix}.{key}" if prefix else key
            found.extend(differences(olds.get(key), news.get(key), path))
        return found
    return [] if old == new else [(prefix, old, new)]
