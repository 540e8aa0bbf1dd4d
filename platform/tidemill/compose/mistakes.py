"""What a person got wrong, as one key, one problem and one remedy.

Hydra and OmegaConf know what failed but say it over several lines, for programmers; their messages
are read here, once, and anything unfamiliar is passed on with its first line.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationResolutionError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)
from yaml import YAMLError

from tidemill.compose.schemas import CONF
from tidemill.errors import SpecError, TidemillError
from tidemill.spec.base import Spec
from tidemill.spec.keys import choices_of, groups_of, keys_of, unknown_key

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

# What Hydra and OmegaConf raise before a job has started, for a wrong file or command line.
MISTAKES = (HydraException, OmegaConfBaseException, YAMLError, ValueError)

WANTED = {"Integer": "a whole number", "Float": "a number"}


def checked_overrides(lines: Sequence[str], schema: type[Spec]) -> list[Override]:
    """Parse overrides, and refuse those that Hydra would take badly or in silence.

    Raises:
        SpecError: A group is given what cannot name an option, or a key is taken out.
        OverrideParseException: A line does not follow Hydra's grammar.
    """
    parsed = OverridesParser.create().parse_overrides(list(lines))
    groups = {*groups_of(schema), "experiment"}
    for override in parsed:
        key, line = override.key_or_group, str(override.input_line)
        if not key:
            raise SpecError(line, "has no key", "write KEY=VALUE")
        if override.is_delete():
            if key in keys_of(schema):
                raise SpecError(key, "cannot be taken out", f"give it a value, {key}=VALUE")
        elif key in groups and not override.is_sweep_override():
            value = override.value()
            if not (isinstance(value, dict) or (isinstance(value, str) and value)):
                written = line.partition("=")[2]
                options = ", ".join(sorted(path.stem for path in (CONF / key).glob("*.yaml")))
                none = key == "experiment" and value is None
                remedy = "~experiment leaves it out" if none else f"options: {options}"
                raise SpecError(key, f"{written!r} cannot be an option", remedy)
    return parsed


def strays(chosen: Any, prefix: str = "") -> Iterator[str]:
    """Keys that `+key=value` put beside a spec's own fields, which OmegaConf lets pass."""
    if is_dataclass(chosen):
        own = {field.name for field in fields(chosen)}
        for name, value in vars(chosen).items():
            if name not in own:
                yield prefix + name
            yield from strays(value, f"{prefix}{name}.")


def traced(error: SpecError, config: DictConfig) -> SpecError:
    """Say also where a wrong value came from, if it was computed from another key."""
    written: Any = OmegaConf.to_container(config, resolve=False)
    for part in error.key.split("."):
        written = written.get(part) if isinstance(written, dict) else None
    if not isinstance(written, str) or "${" not in written:
        return error
    return SpecError(error.key, f"{error.problem} ({error.key} is {written})", error.remedy)


def explained(error: Exception, schema: type[Spec]) -> TidemillError:
    """What Hydra or OmegaConf raised, as a key, a problem and a remedy."""
    match error:
        case TidemillError():
            return error
        case OverrideParseException():
            return _bad_syntax(error.override)
        case MissingConfigException() if error.missing_cfg_file:
            return _unknown_option(error.missing_cfg_file, error.options)
        case _:
            # Hydra wraps what OmegaConf says, but does not always call it the cause.
            inner = error if isinstance(error, OmegaConfBaseException) else error.__cause__
            inner = inner or error.__context__
            return _from_message(
                inner if isinstance(inner, OmegaConfBaseException) else error, schema
            )


def _from_message(error: Exception, schema: type[Spec]) -> SpecError:
    key = str(getattr(error, "full_key", None) or "")
    text = str(error).split("\n    full_key:")[0].strip()
    match error:
        case ConfigAttributeError() | ConfigKeyError() if key:
            return unknown_key(key, schema)
        case MissingMandatoryValue() if key:
            choices = ", ".join(choices_of(key, schema))
            remedy = f"use one of {choices}" if choices else f"give it one, {key}=VALUE"
            return SpecError(key, "has no value", remedy)
        case InterpolationResolutionError() if key:
            return SpecError(key, text, r"correct it, or write \${ for a literal ${")
        case OmegaConfBaseException() if key:
            return _wrong_value(key, text)
        case _:
            return _without_key(text or repr(error), schema)


def _without_key(text: str, schema: type[Spec]) -> SpecError:
    several = re.search(r"(?:Ambiguous value for argument|Sweep parameters) '([^=]*)=", text)
    if several:
        name = several[1]
        remedy = f"add -m to run one job for each, or write {name}=[...] for one list"
        return SpecError(name, "has several values", remedy)
    unused = re.search(r"Could not override '(.*)'. No match in the defaults list", text)
    if unused:
        return unknown_key(unused[1], schema)
    return SpecError("configuration", text.partition("\n")[0], "see --help")


def _bad_syntax(line: str) -> SpecError:
    key, separator, value = line.partition("=")
    if not separator:
        return SpecError(key, "has no value", f"write {key}=VALUE")
    remedy = f"quote it for the shell and for Hydra: '{key}=\"...\"'"
    return SpecError(key or line, f"cannot read {value!r}", remedy)


def _unknown_option(path: str, options: Sequence[str] | None) -> SpecError:
    group, _, name = path.rpartition("/")
    if options is None:
        return SpecError(group or "--config-name", f"there is no file {path}.yaml", "see --info")
    guess = difflib.get_close_matches(name, options, n=1)
    remedy = f"did you mean {group}={guess[0]}? " if guess else ""
    return SpecError(group, f"there is no {name!r}", f"{remedy}options: {', '.join(options)}")


def _wrong_value(key: str, text: str) -> SpecError:
    number = re.match(r"Value '(.*)' of type '.*' could not be converted to (\w+)", text, re.DOTALL)
    if number:
        wanted = WANTED.get(number[2], number[2])
        return SpecError(key, f"{number[1]!r} is not {wanted}", f"use {wanted}")
    choice = re.match(r"Invalid value '(.*)', expected one of \[(.*)\]", text, re.DOTALL)
    if "is not a valid bool" in text:
        return SpecError(key, f"{text.split(chr(39))[1]!r} is neither true nor false", "use one")
    if choice:
        guess = difflib.get_close_matches(choice[1], choice[2].split(", "), n=1)
        remedy = f"did you mean {guess[0]}?" if guess else "use one of them"
        return SpecError(key, f"{choice[1]!r} is none of {choice[2]}", remedy)
    if "is not a ListConfig" in text:
        return SpecError(key, "is a list", f"write {key}=[A,B]")
    if "is not Optional" in text:
        return SpecError(key, "needs a value and got null", f"give it one, {key}=VALUE")
    return SpecError(key, text, "--cfg job shows the values in use")
