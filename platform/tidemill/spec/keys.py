"""Every key a person can type for a spec, and the right one for a key that is nearly right.

Keys are read off the dataclasses, all variants included, so that a hint can also say which variant
has the key.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from functools import cache
from typing import Any, get_type_hints

from tidemill.errors import SpecError
from tidemill.spec.base import Spec

SIMILAR = 0.7
VERY_SIMILAR = 0.85


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """Where a dotted key comes from.

    Attributes:
        owner: The spec class that has the field, before its variants.
        hint: The field's type.
    """

    owner: type[Spec]
    hint: Any


@cache
def keys_of(schema: type[Spec]) -> Mapping[str, Key]:
    """Every dotted key of `schema` that holds a value; keys of variants included."""
    found: dict[str, Key] = {}
    for name, key in _walk(schema, ""):
        found.setdefault(name, key)  # variants repeat what they inherit
    return found


@cache
def groups_of(schema: type[Spec]) -> tuple[str, ...]:
    """The fields of `schema` that are specs themselves."""
    return tuple(name for name, hint in get_type_hints(schema).items() if is_dataclass(hint))


def choices_of(key: str, schema: type[Spec]) -> tuple[str, ...]:
    """What `key` can be set to, if that is a choice; else, or if there is no such key, nothing."""
    hint = keys_of(schema)[key].hint if key in keys_of(schema) else None
    return tuple(hint.__members__) if isinstance(hint, type) and issubclass(hint, Enum) else ()


def unknown_key(key: str, schema: type[Spec]) -> SpecError:
    """What to tell a person who typed `key`, which nothing has, or only a variant not in use."""
    known = keys_of(schema)
    if key in known:
        owner = known[key].owner.__name__
        remedy = f"leave it out, or choose another {key.partition('.')[0]}"
        return SpecError(key, f"belongs to {owner}, which is not in use", remedy)
    parent, _, leaf = key.rpartition(".")
    if parent in known:
        return SpecError(key, f"{parent} has no such entry", f"add it with +{key}=VALUE")
    leaves: dict[str, str] = {}
    for name in known:
        leaves.setdefault(name.rpartition(".")[2], name)
    siblings = [name for name in known if parent and name.startswith(f"{parent}.")]
    near = difflib.get_close_matches
    guesses = [
        *near(key, siblings, n=1, cutoff=VERY_SIMILAR),
        *([leaves[leaf]] if leaf in leaves else []),
        *near(key, [*known, *groups_of(schema)], n=1, cutoff=VERY_SIMILAR),
        *(leaves[name] for name in near(leaf, leaves, n=1, cutoff=SIMILAR)),
    ]
    if guesses:
        remedy = f"did you mean {guesses[0]}?"
    elif siblings:
        remedy = f"use one of {', '.join(siblings)}"
    else:
        remedy = "--cfg job shows all keys"
    return SpecError(key, "there is no such key", remedy)


def split(typed: Iterable[str], schema: type[Spec]) -> tuple[list[str], list[str]]:
    """Part a command line into what is for a door of its own, flags included, and a run's keys.

    Args:
        typed: The words of the line.
        schema: What the door is asked for.
    """
    own, run = list[str](), list[str]()
    for word in typed:
        key, assigned, _ = word.partition("=")
        theirs = (assigned or key.startswith("~")) and not key.startswith("-")
        (run if theirs and key not in keys_of(schema) else own).append(word)
    return own, run


def _walk(owner: type[Spec], prefix: str) -> Iterator[tuple[str, Key]]:
    hints = get_type_hints(owner)
    for item in fields(owner):  # pyright: ignore[reportArgumentType]
        hint = hints[item.name]
        if isinstance(hint, type) and issubclass(hint, Spec):
            yield from _walk(hint, f"{prefix}{item.name}.")
        else:
            yield prefix + item.name, Key(owner=owner, hint=hint)
    for variant in owner.__subclasses__():
        yield from _walk(variant, prefix)
