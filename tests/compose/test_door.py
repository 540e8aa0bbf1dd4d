"""A door runs its jobs, tells them apart, and ends with the right code."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.compose.conftest import Ended
from tidemill.compose import compose
from tidemill.compose.door import _directory_name, _taken_literally
from tidemill.compose.schemas import register
from tidemill.errors import DataError, SpecError, TrainingError
from tidemill.spec.doors import GenerateSpec
from tidemill.spec.run import RunSpec
from tidemill.spec.strategy import DeepSpeedSpec


def run_spec(*overrides: str) -> RunSpec:
    return compose(overrides, config_name="config", schema=RunSpec)


def names(ended: Ended) -> list[str]:
    return [spec.name for spec in ended.given]


# --- one job ----------------------------------------------------------------------------------


def test_main_gets_a_spec(open_door: Callable[..., Ended]) -> None:
    ended = open_door("steps=7", "strategy=deepspeed_z3", "optim.lr=1e-2")
    assert (ended.code, ended.err) == (0, "")
    (spec,) = ended.given
    assert isinstance(spec, RunSpec)
    assert isinstance(spec.strategy, DeepSpeedSpec)
    assert (spec.steps, spec.strategy.stage, spec.optim.lr) == (7, 3, 0.01)


def test_a_program_composes_what_a_door_does(open_door: Callable[..., Ended]) -> None:
    typed = ("steps=7", "name=a, b", "experiment=parity")
    (spec,) = open_door(*typed[:1], *typed[2:]).given
    assert run_spec(*typed[:1], *typed[2:]) == spec
    with pytest.raises(SpecError, match=r"^name: 'a, b' cannot name a directory"):
        run_spec(*typed)


def test_flags_may_stand_anywhere(open_door: Callable[..., Ended]) -> None:
    assert names(open_door("name=a", "-m", "seed=1,2")) == ["a,seed=1", "a,seed=2"]


def test_the_environment_is_left_as_it_was(
    open_door: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    open_door()
    assert os.environ["HYDRA_FULL_ERROR"] == "0"
    monkeypatch.delenv("HYDRA_FULL_ERROR")
    open_door("stepz=1")
    assert "HYDRA_FULL_ERROR" not in os.environ


# --- how it ends ------------------------------------------------------------------------------


def fail_with(error: BaseException) -> Callable[[object], None]:
    def main(_: object) -> None:
        raise error

    return main


def test_an_error_of_ours_is_one_line(open_door: Callable[..., Ended]) -> None:
    ended = open_door(main=fail_with(DataError("data.paths: nothing\n  there")))
    assert ended.error == "data.paths: nothing there"
    assert ended.code == 2


def test_a_failed_run_shows_the_worker_first(open_door: Callable[..., Ended]) -> None:
    error = TrainingError("rank 1: boom", "Traceback (most recent call last):\nValueError: boom\n")
    ended = open_door(main=fail_with(error))
    assert ended.err == (
        "Traceback (most recent call last):\nValueError: boom\nerror: rank 1: boom\n"
    )
    assert ended.code == 1


def test_an_interrupt_has_its_own_code(open_door: Callable[..., Ended]) -> None:
    ended = open_door(main=fail_with(KeyboardInterrupt()))
    assert (ended.code, ended.err) == (130, "interrupted\n")


def test_a_bug_keeps_its_traceback(open_door: Callable[..., Ended]) -> None:
    with pytest.raises(ValueError, match="a bug"):
        open_door(main=fail_with(ValueError("a bug")))


# --- many jobs --------------------------------------------------------------------------------


def test_each_job_has_a_name_of_its_own(open_door: Callable[..., Ended]) -> None:
    ended = open_door("-m", "strategy=ddp", "optim.lr=1e-3,3e-3", "batch=tokens_8k,tokens_512k")
    assert names(ended) == [
        "hello,batch=tokens_8k,optim.lr=0.001",
        "hello,batch=tokens_512k,optim.lr=0.001",
        "hello,batch=tokens_8k,optim.lr=0.003",
        "hello,batch=tokens_512k,optim.lr=0.003",
    ]
    assert ended.err.splitlines()[0] == "job 1 of 4: batch=tokens_8k,optim.lr=0.001"


def test_names_do_not_depend_on_what_is_the_same_in_all_jobs(
    open_door: Callable[..., Ended],
) -> None:
    ended = open_door("-m", "resume=must", "strategy=ddp", "optim.lr=0.001,3.0e-3", "steps=9")
    assert names(ended) == ["hello,optim.lr=0.001", "hello,optim.lr=0.003"]


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (("name=a,b",), ["a", "b"]),
        (("name=x${seed}", "seed=1,2"), ["x1", "x2"]),
        (("name=x", "seed=1,2"), ["x,seed=1", "x,seed=2"]),
        (("name=x", "seed=1"), ["x"]),
    ],
)
def test_a_person_may_name_jobs(
    typed: tuple[str, ...], expected: list[str], open_door: Callable[..., Ended]
) -> None:
    assert names(open_door("-m", *typed)) == expected


def test_values_that_cannot_stand_in_a_name_still_differ(open_door: Callable[..., Ended]) -> None:
    first, second = names(open_door("-m", "data.paths=[a/b],[a:b]"))
    assert first.startswith("hello,data.paths=-a-b-")
    assert first != second


@given(st.text(min_size=1, max_size=300), st.text(min_size=1, max_size=300))
def test_directory_names_are_legal_and_distinct(one: str, two: str) -> None:
    legal = re.compile(r"[A-Za-z0-9._,=+-]{1,200}")
    first, second = _directory_name(f"run{one}"), _directory_name(f"run{two}")
    assert legal.fullmatch(first)
    assert (first == second) == (one == two)


def test_all_jobs_are_checked_before_the_first_is_run(open_door: Callable[..., Ended]) -> None:
    typed = ("-m", "run=a", "seed=1,2,-3,-4")
    ended = open_door(*typed, config_name="generate", schema=GenerateSpec)
    assert ended.given == []
    assert ended.err.splitlines() == [
        "error: seed: -3 is out of range; use 0 to 9.22337e+18 [seed=-3]",
        "error: seed: -4 is out of range; use 0 to 9.22337e+18 [seed=-4]",
    ]
    assert ended.code == 2


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("seed=1,x", "seed: 'x' is not a whole number"),
        ("model=gpt_nano,gpt_nan", "model: there is no 'gpt_nan'"),
        ("model=gpt_nano,custom", "model.factory: has no value"),
        ("stepz=1,2", "stepz: there is no such key"),
    ],
)
def test_a_mistake_in_one_job_is_one_line(
    typed: str, told: str, open_door: Callable[..., Ended]
) -> None:
    ended = open_door("-m", typed)
    assert told in ended.error
    assert (ended.code, ended.given) == (2, [])


def test_a_job_that_fails_does_not_stop_the_others(open_door: Callable[..., Ended]) -> None:
    def main(spec: GenerateSpec) -> None:
        if spec.seed == 1:
            raise TrainingError("rank 0: boom")
        if spec.seed == 2:
            raise DataError("data.paths: gone")

    typed = ("-m", "run=a", "seed=1,2,3")
    ended = open_door(*typed, main=main, config_name="generate", schema=GenerateSpec)
    assert [spec.seed for spec in ended.given] == [1, 2, 3]
    assert "error: rank 0: boom [seed=1]" in ended.err.splitlines()
    assert "error: data.paths: gone [seed=2]" in ended.err.splitlines()
    assert ended.code == 1


def test_a_multirun_leaves_nothing_behind(
    open_door: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    scratch = tmp_path / "scr'atch $x"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    seen: list[Path] = []

    def main(_: GenerateSpec) -> None:
        seen.extend(scratch.iterdir())

    typed = ("-m", "run=a", "seed=1,2")
    ended = open_door(*typed, main=main, config_name="generate", schema=GenerateSpec)
    assert ended.code == 0
    assert seen, "Hydra wrote somewhere else"
    assert list(scratch.iterdir()) == []


# --- text -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "def main():",
        "a, b = 1, 2",
        "x = {'k': [1]}",
        "two\nlines\n",
        " spaces ",
        "null",
        "1e3",
        "true",
        "",
        "\\",
        "it's",
        'say "hi"',
        "${HOME}",
        "${",
        "échelle 🌊",
    ],
)
def test_a_prompt_is_taken_literally(text: str, open_door: Callable[..., Ended]) -> None:
    ended = open_door(
        "run=hello,optim.lr=1e-3", f"prompt={text}", config_name="generate", schema=GenerateSpec
    )
    (spec,) = ended.given
    assert (spec.prompt, spec.run) == (text, "hello,optim.lr=1e-3")


def test_a_quoted_prompt_loses_its_quotes(open_door: Callable[..., Ended]) -> None:
    typed = ("run=a", "prompt='def main():'")
    (spec,) = open_door(*typed, config_name="generate", schema=GenerateSpec).given
    assert spec.prompt == "def main():"


def test_jobs_of_one_prompt(open_door: Callable[..., Ended]) -> None:
    typed = ("-m", "run=a", "prompt=def main():", "seed=1,2")
    ended = open_door(*typed, config_name="generate", schema=GenerateSpec)
    assert [(spec.prompt, spec.seed) for spec in ended.given] == [
        ("def main():", 1),
        ("def main():", 2),
    ]


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_survives_hydras_grammar(text: str) -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    line = _taken_literally(f"prompt=x{text}", GenerateSpec, sweeping=False)
    (parsed,) = OverridesParser.create().parse_overrides([line])
    value = parsed.value()
    if "${" in text:
        value = bytes.fromhex(str(value).removeprefix("${verbatim:").removesuffix("}")).decode()
    assert value == f"x{text}"


def test_text_keys_of_a_run_need_no_quotes() -> None:
    register()
    spec = run_spec("name=hello,optim.lr=1e-3", "storage=s3://bucket/a b?region=x", "seed=4")
    assert (spec.name, spec.storage) == ("hello,optim.lr=1e-3", "s3://bucket/a b?region=x")
    assert run_spec("name=x${seed}", "seed=4").name == "x4"


# --- help -------------------------------------------------------------------------------------


def test_help_says_what_can_be_chosen_and_what_is(open_door: Callable[..., Ended]) -> None:
    ended = open_door("--help", "strategy=fsdp2", "steps=12345")
    assert (ended.code, ended.err, ended.given) == (0, "", [])
    lines = {" ".join(line.split()) for line in ended.out.splitlines()}
    assert "strategy=fsdp2 or ddp, deepspeed_z1, deepspeed_z2, deepspeed_z3" in lines
    assert "steps=12345 optimizer steps of the whole run" in lines
    assert "seed=1 seeds initial weights, sample order and dropout" in lines
    assert max(map(len, ended.out.splitlines())) <= 100


@pytest.mark.parametrize(
    ("config_name", "first"),
    [("generate", "run="), ("export", "overwrite=false"), ("checkpoints", "keep_best=0")],
)
def test_help_of_the_small_doors(
    config_name: str, first: str, open_door: Callable[..., Ended]
) -> None:
    from tidemill.compose.schemas import SCHEMAS

    ended = open_door("--help", config_name=config_name, schema=SCHEMAS[config_name])
    assert ended.code == 0
    assert any(line.split()[:1] == [first] for line in ended.out.splitlines())


def test_help_shows_options_of_ones_own(open_door: Callable[..., Ended], tmp_path: Path) -> None:
    own = tmp_path / "conf" / "model"
    own.mkdir(parents=True)
    (own / "gpt_huge.yaml").write_text("layers: 99\n")
    ended = open_door("--help", "--config-dir", str(own.parent))
    (line,) = [line for line in ended.out.splitlines() if "model=gpt_nano" in line]
    assert "gpt_huge" in line


def test_cfg_shows_the_configuration(open_door: Callable[..., Ended]) -> None:
    ended = open_door("--cfg", "job", "--resolve", "steps=200")
    assert ended.code == 0
    assert "decay_steps: 200" in ended.out
    assert "hydra" not in ended.out


def test_tab_completes_keys_and_options(
    open_door: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMP_LINE", "python jobs/train.py strategy=deep")
    ended = open_door("-sc", "query=bash")
    assert ended.out.split() == [f"strategy=deepspeed_z{stage}" for stage in (1, 2, 3)]
    monkeypatch.setenv("COMP_LINE", "python jobs/train.py optim.warm")
    assert open_door("-sc", "query=bash").out.split() == ["optim.warmup_steps="]
