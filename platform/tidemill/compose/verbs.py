"""A door that does several things is told which by a bare word: `jobs/checkpoints.py list run=a`.

The word is only another way to write `KEY=WORD`, so what can be said is what the key's type has,
and files, multiruns and `--cfg` know nothing of it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

from tidemill.errors import SpecError
from tidemill.spec.base import Spec
from tidemill.spec.keys import choices_of, groups_of, keys_of

JSON = "--json"
_BARE = re.compile(r"[A-Za-z_][\w-]*")


def spell_out(arguments: Sequence[str], schema: type[Spec]) -> list[str]:
    """Write `--json` as `format=json`, at a door that has the key; elsewhere it is no flag."""
    if "format" not in keys_of(schema):
        return list(arguments)
    return ["format=json" if item == JSON else item for item in arguments]


def write_out(lines: Sequence[str], key: str, schema: type[Spec]) -> list[str]:
    """Turn the bare word among overrides, wherever it stands, into `key=WORD`.

    Args:
        lines: Overrides, as they were typed.
        key: What the word is the value of, a choice; empty if the door has no verbs.
        schema: Has the key.

    Raises:
        SpecError: There is no such choice, or there are two.
    """
    if not key:
        return list(lines)
    verbs, keys = choices_of(key, schema), {*keys_of(schema), *groups_of(schema)}
    said = [line for line in lines if line.startswith(f"{key}=")]
    written: list[str] = []
    for line in lines:
        if not _BARE.fullmatch(line) or (line in keys and line not in verbs):
            written.append(line)
            continue
        if line not in verbs:
            guess = difflib.get_close_matches(line, verbs, n=1)
            remedy = f"did you mean {guess[0]}? " if guess else ""
            raise SpecError(key, f"there is no {line!r}", f"{remedy}use one of {', '.join(verbs)}")
        said.append(line)
        written.append(f"{key}={line}")
    if len(said) > 1:
        raise SpecError(key, f"{' and '.join(said)} cannot be done at once", "keep one of them")
    return written


def complete(line: str, key: str, schema: type[Spec]) -> tuple[str, list[str]]:
    """Help a shell to complete a command line.

    Returns:
        The line with its verb written out, for Hydra; and the verbs that its last word begins.
    """
    typed, space, last = line.rpartition(" ")
    verbs = choices_of(key, schema) if key else ()
    words = typed.split(" ")
    if not any(word in verbs for word in words):
        return line, [verb for verb in verbs if verb.startswith(last)]
    written = " ".join(f"{key}={word}" if word in verbs else word for word in words)
    return written + space + last, []
