"""From a command line to a spec in a door's hands, once or once per job of a multirun.

`run_door` is `hydra.main` with three differences: values of text keys are taken literally, nothing
is written to disk, and what a person got wrong ends as `error: key: problem; remedy`.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn, TypeVar, cast

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tidemill.compose.mistakes import MISTAKES, checked_overrides, explained, strays, traced
from tidemill.compose.schemas import CONF, HYDRA, register
from tidemill.compose.verbs import complete, spell_out, write_out
from tidemill.errors import SpecError, TidemillError, TrainingError
from tidemill.spec.base import Spec
from tidemill.spec.keys import keys_of, unknown_key

TRACEBACKS = "HYDRA_FULL_ERROR"
COMPLETED = "COMP_LINE"
"""Where a shell puts the line that it wants completed."""
INTERRUPTED = 130
LONGEST_NAME = 200
QUOTED = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""", re.DOTALL)

S = TypeVar("S", bound=Spec)


def run_door(
    main: Callable[[S], None], *, config_name: str, schema: type[S], verbs: str = ""
) -> NoReturn:
    """Compose the command line, call `main` once or, with `-m`, once per job, and exit.

    All of Hydra's flags work. With `-m` every job is composed and checked before the first one is
    started; a job that fails does not stop the others, and the first failure is the exit code.

    Args:
        main: Called with an instance of `schema`.
        config_name: A file directly in `conf/`, without `.yaml`.
        schema: Class of what that file composes to.
        verbs: The key that a bare word is the value of, for a door that does several things.
    """
    register()
    door = _Door(cast("Callable[[Spec], None]", main), config_name, schema, verbs)
    try:
        code = door.open(sys.argv[1:])
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        code = INTERRUPTED
    sys.exit(code)


def compose(overrides: Sequence[str], *, config_name: str, schema: type[S], verbs: str = "") -> S:
    """Compose a spec in this process, as a door would from the same arguments.

    Raises:
        SpecError: An override, a file or a value is wrong.
    """
    register()
    written = write_out(overrides, verbs, schema)
    lines = [_taken_literally(line, schema, sweeping=False) for line in written]
    try:
        checked_overrides(lines, schema)
        config = _composed(lines, config_name)
    except MISTAKES as error:
        raise explained(error, schema) from error
    return _to_spec(config, schema)


class _Door:
    """One invocation: what was asked for, and the exit codes of what failed."""

    def __init__(
        self, main: Callable[[Spec], None], config_name: str, schema: type[Spec], verbs: str
    ) -> None:
        self.main = main
        self.config_name = config_name
        self.schema = schema
        self.verbs = verbs
        self.failures: list[int] = []
        self.swept: set[str] = set()
        self.jobs = 0
        self.started = False

    def open(self, arguments: Sequence[str]) -> int:
        """Run every job and return the exit code."""
        arguments = spell_out(arguments, self.schema)
        try:
            asked = _parsed(arguments)
            flags = [item for item in arguments if item not in asked.overrides]
            if asked.shell_completion:
                self._complete(arguments)
                return 0
            overrides = [
                _taken_literally(line, self.schema, sweeping=asked.multirun)
                for line in write_out(asked.overrides, self.verbs, self.schema)
            ]
            parsed = checked_overrides(overrides, self.schema)
            if asked.help and not (asked.config_dir or asked.config_path):
                # Hydra's own way to the same text takes a second longer.
                config_name = asked.config_name or self.config_name
                config = _composed(overrides, config_name, with_hydra=True)
                sys.stdout.write(config.hydra.help.template)
                return 0
        except (TidemillError, *MISTAKES) as error:
            self._report(error)
            return self.failures[0]
        self.swept = {item.get_key_element() for item in parsed if item.is_sweep_override()}
        if asked.multirun:
            # Hydra's sweeper insists on writing a file; it may, where nobody has to clean up.
            with tempfile.TemporaryDirectory(prefix="tidemill-multirun-") as scratch:
                line = [*flags, *overrides, f"hydra.sweep.dir={_quoted(scratch)}"]
                self._hand_to_hydra(line, self._check)
                if not self.failures:
                    self._hand_to_hydra(line, self._perform)
        else:
            self._hand_to_hydra([*flags, *overrides], self._perform)
        return self.failures[0] if self.failures else 0

    def _complete(self, arguments: Sequence[str]) -> None:
        line, verbs = complete(os.environ.get(COMPLETED, ""), self.verbs, self.schema)
        sys.stdout.writelines(f"{verb}\n" for verb in verbs)
        with _environment(COMPLETED, line):
            self._hand_to_hydra(arguments, self._perform)

    def _hand_to_hydra(self, arguments: Sequence[str], job: Callable[[DictConfig], None]) -> None:
        @functools.wraps(self.main)
        def task(config: DictConfig) -> None:
            job(config)

        run = hydra.main(version_base=HYDRA, config_path=str(CONF), config_name=self.config_name)
        wants_traceback = os.environ.get(TRACEBACKS) == "1"
        try:
            # Hydra prints errors its own way and exits, unless this variable makes it raise them.
            with _environment(TRACEBACKS, "1"), _argv(arguments):
                run(cast("Any", task))()
        except MISTAKES as error:
            if self.started or wants_traceback:
                raise
            self._report(error)

    def _check(self, config: DictConfig) -> None:
        """Compose one job of many without running it."""
        self.jobs += 1
        try:
            self._chosen(config)
        except TidemillError as error:
            self._report(error)

    def _perform(self, config: DictConfig) -> None:
        if self.jobs:
            number = HydraConfig.get().job.num + 1
            sys.stderr.write(f"job {number} of {self.jobs}: {_job_overrides(self.swept)}\n")
        try:
            chosen = self._chosen(config)
            self.started = True
            self.main(chosen)
        except TidemillError as error:
            self._report(error)

    def _chosen(self, config: DictConfig) -> Spec:
        """The spec of one job; of many, each gets its own run name unless the person saw to it."""
        job = _job_overrides(self.swept)
        if job and "name" in config and not _names_itself(self.swept):
            config["name"] = _directory_name(f"{config['name']},{job}")
        return _to_spec(config, self.schema)

    def _report(self, error: Exception) -> None:
        if isinstance(error, TrainingError) and error.details:
            sys.stderr.write(error.details.rstrip() + "\n")
        told = explained(error, self.schema)
        job = _job_overrides(self.swept) if HydraConfig.initialized() else ""
        where = f" [{job}]" if job else ""
        sys.stderr.write(f"error: {' '.join(str(told).split())}{where}\n")
        self.failures.append(told.exit_code)


def _parsed(arguments: Sequence[str]) -> argparse.Namespace:
    parser = get_args_parser()
    parser.exit_on_error = False
    try:
        asked, unknown = parser.parse_known_intermixed_args(arguments)
    except argparse.ArgumentError as error:
        flag = error.argument_name or "command line"
        raise SpecError(flag, error.message, "see --help") from error
    if unknown:
        raise SpecError(unknown[0], "there is no such flag", "see --help and --hydra-help")
    return asked


def _composed(lines: Sequence[str], config_name: str, *, with_hydra: bool = False) -> DictConfig:
    GlobalHydra.instance().clear()  # a door that is open has no more use for its own
    with hydra.initialize_config_dir(str(CONF), version_base=HYDRA):
        return hydra.compose(config_name, overrides=list(lines), return_hydra_config=with_hydra)


def _to_spec(config: DictConfig, schema: type[S]) -> S:
    try:
        chosen = OmegaConf.to_object(config)
    except OmegaConfBaseException as error:
        raise explained(error, schema) from error
    except SpecError as error:
        raise traced(error, config) from error
    for key in strays(chosen):
        raise unknown_key(key, schema)
    return cast("S", chosen)


def _job_overrides(swept: set[str]) -> str:
    """The swept overrides of the job that Hydra is running, sorted; empty for a single run."""
    settings = HydraConfig.get()
    if settings.mode is not RunMode.MULTIRUN:
        return ""
    keys = swept | set(settings.sweeper.get("params") or ())
    return ",".join(sorted(line for line in _typed() if line.partition("=")[0] in keys))


def _names_itself(swept: set[str]) -> bool:
    return "name" in swept or any(line.startswith("name=") and "$" in line for line in _typed())


def _typed() -> list[str]:
    """The overrides of the job that Hydra is running, as they were typed."""
    typed = cast("ListConfig", HydraConfig.get().overrides.task)
    return cast("list[str]", OmegaConf.to_container(typed, resolve=False))


def _directory_name(text: str) -> str:
    """`text` as a run name: the same text gives the same name, different texts different ones."""
    name = re.sub(r"[^A-Za-z0-9._,=+-]+", "-", text)
    if name == text and len(name) <= LONGEST_NAME:
        return name
    mark = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{name[: LONGEST_NAME - len(mark) - 1]}-{mark}"


def _taken_literally(line: str, schema: type[Spec], *, sweeping: bool) -> str:
    """Quote the value of a text key for Hydra, so that spaces, colons and commas need no care.

    What is quoted already stays as it is, and so does what Hydra can read where commas separate
    jobs.
    """
    key, separator, value = line.partition("=")
    known = keys_of(schema).get(key.lstrip("+"))
    if not separator or known is None or known.hint is not str or QUOTED.fullmatch(value):
        return line
    if "${" in value and key in getattr(schema, "VERBATIM", ()):
        return f"{key}=${{verbatim:{value.encode().hex()}}}"
    if sweeping:
        with contextlib.suppress(HydraException):
            OverridesParser.create().parse_overrides([line])
            return line
    return f"{key}={_quoted(value)}"


def _quoted(text: str) -> str:
    return QuotedString(text, Quote.single).with_quotes()


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before


@contextlib.contextmanager
def _argv(arguments: Sequence[str]) -> Iterator[None]:
    before = sys.argv
    sys.argv = [before[0], *arguments]
    try:
        yield
    finally:
        sys.argv = before
