"""An event as a line of JSON, and back, with no number changed.

Numbers that JSON cannot spell are written as the texts NaN, Infinity and -Infinity, and the fields
that hold such texts are listed beside them, so that a text which reads "NaN" stays a text.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

from tidemill.spec.progress import Event, EventKind

_KINDS = {kind.value: kind for kind in EventKind}
_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def encode_line(kind: EventKind, at_s: float, attempt: int, encoded: str) -> str:
    """One line, newline included.

    Args:
        kind: What happened.
        at_s: Seconds since the epoch.
        attempt: The attempt it happened in.
        encoded: What `encode_fields` made of its fields.
    """
    return f'{{"kind":"{kind.value}","at_s":{at_s!r},"attempt":{attempt},{encoded}}}\n'


def encode_fields(fields: Mapping[str, Any]) -> str:
    """The part of a line that depends on `fields`, without braces around it.

    Zero-dimensional arrays of other libraries become numbers; what JSON has no word for becomes
    text.
    """
    try:
        return f'"fields":{_dump(fields)}'
    except (TypeError, ValueError):
        plain: dict[str, Any] = {}
        marked: list[str] = []
        for key, value in fields.items():
            plain[key], has_non_finite = _to_json(value)
            if has_non_finite:
                marked.append(key)
        return f'"fields":{_dump(plain)},"non_finite":{_dump(marked)}'


def _dump(value: Any) -> str:
    return json.dumps(value, allow_nan=False, separators=(",", ":"))


def _to_json(value: Any) -> tuple[Any, bool]:
    """A value JSON can hold, and whether text in it stands for a number that is not finite."""
    if value is None or isinstance(value, bool | int | str):
        return value, False
    if isinstance(value, float):
        finite = math.isfinite(value)
        return (value, False) if finite else (_spelled(value), True)
    if isinstance(value, Mapping):
        entries = cast("Mapping[Any, Any]", value)
        pairs = {str(key): _to_json(item) for key, item in entries.items()}
        return {key: pair[0] for key, pair in pairs.items()}, any(p[1] for p in pairs.values())
    if isinstance(value, list | tuple):
        items = [_to_json(item) for item in cast("Iterable[Any]", value)]
        return [item[0] for item in items], any(item[1] for item in items)
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        item = value.item()
        if type(item) is not type(value):  # numpy's longdouble is its own item
            return _to_json(item)
    return str(value), False


def _spelled(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"


def _restore(value: Any) -> Any:
    if isinstance(value, str):
        return _NON_FINITE.get(value, value)
    if isinstance(value, list):
        return [_restore(item) for item in cast("list[Any]", value)]
    if isinstance(value, dict):
        return {key: _restore(item) for key, item in cast("dict[str, Any]", value).items()}
    return value


def decode_events(content: bytes) -> list[Event]:
    """The events in `content`, leaving out torn lines and kinds that this version does not know."""
    return list(iterate_events(content))


def iterate_events(content: bytes) -> Iterator[Event]:
    """As `decode_events`, but one event after the other: a long log has millions."""
    for line in io.BytesIO(content):
        if (event := _decode(line)) is not None:
            yield event


def _decode(line: bytes) -> Event | None:
    try:
        record: Any = json.loads(line)
        fields: dict[str, Any] = dict(record["fields"])
        for key in record.get("non_finite", ()):
            fields[key] = _restore(fields[key])
        return Event(
            kind=_KINDS[record["kind"]],
            at_s=float(record["at_s"]),
            attempt=int(record["attempt"]),
            fields=fields,
        )
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return None
