"""A bare word says what a door is to do, and is nothing but another way to write its key."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.compose.conftest import Ended
from tidemill.compose import compose
from tidemill.compose.verbs import complete, write_out
from tidemill.errors import SpecError
from tidemill.spec.doors import Action, CheckpointsSpec
from tidemill.spec.run import RunSpec

LIST = CheckpointsSpec(action=Action.list, run="mill")


@pytest.fixture
def open_checkpoints(open_door: Callable[..., Ended]) -> Callable[..., Ended]:
    """Open the door that has verbs."""

    def open_it(*typed: str) -> Ended:
        return open_door(*typed, config_name="checkpoints", schema=CheckpointsSpec, verbs="action")

    return open_it


@pytest.mark.parametrize(
    "typed",
    [
        ("list", "run=mill"),
        ("run=mill", "list"),
        ("action=list", "run=mill"),
        ("run=mill", "--config-name", "checkpoints", "list"),
    ],
)
def test_a_verb_may_stand_anywhere(
    typed: tuple[str, ...], open_checkpoints: Callable[..., Ended]
) -> None:
    ended = open_checkpoints(*typed)
    assert (ended.code, ended.err, ended.given) == (0, "", [LIST])


def test_a_program_may_say_it_too() -> None:
    for verb in ("list", "action=list"):
        typed = (verb, "run=mill")
        assert (
            compose(typed, config_name="checkpoints", schema=CheckpointsSpec, verbs="action")
            == LIST
        )


def test_a_verb_holds_for_all_jobs(open_checkpoints: Callable[..., Ended]) -> None:
    ended = open_checkpoints("-m", "verify", "run=a,b")
    assert [(spec.action, spec.run) for spec in ended.given] == [
        (Action.verify, "a"),
        (Action.verify, "b"),
    ]


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        (("run=a",), "action: has no value; use one of list, show, verify, prune, diff"),
        (("lst", "run=a"), "action: there is no 'lst'; did you mean list? use one of list, show,"),
        (("zebra", "run=a"), "action: there is no 'zebra'; use one of list, show, verify, prune,"),
        (("list", "show"), "action: list and show cannot be done at once; keep one of them"),
        (("list", "action=show"), "action: action=show and list cannot be done at once"),
        (("list", "list"), "action: list and list cannot be done at once; keep one of them"),
        (("list", "run"), "run: has no value; write run=VALUE"),
        (("list", "run=a", "~step"), "step: cannot be taken out"),
        (("action=lst", "run=a"), "action: 'lst' is none of list, show, verify, prune, diff; did"),
        (("list",), "run: has no value; give it one, run=VALUE"),
    ],
)
def test_a_wrong_verb_is_one_line(
    typed: tuple[str, ...], told: str, open_checkpoints: Callable[..., Ended]
) -> None:
    ended = open_checkpoints(*typed)
    assert ended.error.startswith(told)
    assert (ended.code, ended.out, ended.given) == (2, "", [])


def test_doors_without_verbs_know_no_bare_words() -> None:
    assert write_out(["list", "steps=3"], "", RunSpec) == ["list", "steps=3"]


def test_only_a_choice_can_be_a_verb() -> None:
    with pytest.raises(SpecError, match="there is no 'list'"):
        write_out(["list"], "storage", CheckpointsSpec)


def test_help_and_values_need_no_verb(open_checkpoints: Callable[..., Ended]) -> None:
    ended = open_checkpoints("--help")
    assert ended.code == 0
    assert "list|show|verify|prune|diff" in ended.out
    assert "action: ???" in open_checkpoints("--cfg", "job").out
    assert "action: show" in open_checkpoints("show", "--cfg", "job").out


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", ["list", "show", "verify", "prune", "diff"]),
        ("sh", ["show"]),
        ("run=a ver", ["verify"]),
        ("run=a", []),
    ],
)
def test_verbs_are_completed(line: str, expected: list[str]) -> None:
    typed = f"python jobs/checkpoints.py {line}"
    assert complete(typed, "action", CheckpointsSpec) == (typed, expected)


def test_keys_are_completed_behind_a_verb(
    open_checkpoints: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMP_LINE", "python jobs/checkpoints.py list keep_e")
    assert open_checkpoints("-sc", "query=bash").out.split() == ["keep_every_steps="]
    monkeypatch.setenv("COMP_LINE", "python jobs/checkpoints.py pru")
    assert open_checkpoints("-sc", "query=bash").out.split() == ["prune"]
