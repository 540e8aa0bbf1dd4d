"""Every file in conf/ composes to the spec it stands for, and says what each key means."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tidemill.compose import compose
from tidemill.plan.run import count_parameters, describe, make_run_plan
from tidemill.spec.base import from_plain, to_plain
from tidemill.spec.doors import Action, AuditSpec, CheckpointsSpec, ExportSpec, GenerateSpec
from tidemill.spec.fleet import FleetAction, FleetSpec
from tidemill.spec.keys import groups_of, keys_of
from tidemill.spec.plan import PlanSpec
from tidemill.spec.replay import ReplaySpec
from tidemill.spec.run import RunSpec
from tidemill.spec.strategy import DeepSpeedSpec
from tidemill.spec.training import AdamWSpec, GptSpec, PrecisionKind, TextSpec

CONF = Path(__file__).parents[1] / "conf"
GROUPS = sorted(path.name for path in CONF.iterdir() if path.is_dir() and path.name != "hydra")
OPTIONS = sorted((path.parent.name, path.stem) for path in CONF.glob("[!h]*/*.yaml"))
FILES = sorted(
    path
    for path in CONF.rglob("*.yaml")
    if path.parent.name != "help" and path.name != "runtime_env.yaml"
)

# What only the person can say, by option.
NEEDED = {
    ("model", "custom"): ["model.factory=my_lab.models:make"],
    ("data", "tokens"): ["data.paths=[shards]", "data.vocab=50257"],
    ("experiment", "gpt_124m_fsdp2"): ["data.paths=[shards]", "data.vocab=50257"],
}
PARAMETERS = {"gpt_nano": 0.82e6, "gpt_124m": 123.6e6, "gpt_1b": 1.015e9}

each_option = pytest.mark.parametrize("option", OPTIONS, ids="=".join)


@functools.cache
def run_spec(*overrides: str) -> RunSpec:
    """Composed once, because nothing here changes a spec."""
    return compose(overrides, config_name="config", schema=RunSpec)


def composed(option: tuple[str, str]) -> RunSpec:
    return run_spec("=".join(option), *NEEDED.get(option, []))


@each_option
def test_every_option_composes_and_survives_json(option: tuple[str, str]) -> None:
    spec = composed(option)
    assert from_plain(RunSpec, to_plain(spec)) == spec
    assert from_plain(RunSpec, to_plain(spec)).digest() == spec.digest()
    assert len(describe(make_run_plan(spec, vocab=257, train_tokens=10_000))) == 5


@pytest.mark.parametrize(
    "option", [option for option in OPTIONS if option[0] != "experiment"], ids="=".join
)
def test_options_say_their_whole_content(option: tuple[str, str]) -> None:
    group, name = option
    content = yaml.safe_load((CONF / group / f"{name}.yaml").read_text())
    plain = to_plain(composed(option))[group]
    silent = plain.keys() - content.keys() - {"variant"}
    if group == "precision":  # only fp16 scales its loss
        silent -= {"loss_scale", "initial_scale_power", "scale_window"}
    assert silent == set()


def test_groups_are_the_specs_of_a_run() -> None:
    assert set(GROUPS) == {*groups_of(RunSpec), "experiment"}
    defaults = yaml.safe_load((CONF / "config.yaml").read_text())["defaults"]
    named = {group for entry in defaults if isinstance(entry, dict) for group in entry}
    assert set(GROUPS) <= named


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(CONF)) for path in FILES])
def test_every_file_and_key_is_explained(path: Path) -> None:
    lines = path.read_text().splitlines()
    comments = [line for line in lines if line.startswith("# ") and "@package" not in line]
    assert comments, "no line says what this file is for"
    experiment_or_hydra = path.parent.name == "experiment" or path.stem == "door"
    body = lines[lines.index("  - _self_") :] if "  - _self_" in lines else lines
    keys = [line for line in body if line[:1].isalpha() and not line.startswith("defaults:")]
    bare = [line for line in keys if " # " not in line]
    assert experiment_or_hydra or bare == []


def test_the_job_without_arguments_is_the_first_run() -> None:
    spec = run_spec()
    assert spec == run_spec("experiment=hello")
    assert spec.name == "hello"
    assert spec.storage == "runs"
    assert isinstance(spec.model, GptSpec)
    assert isinstance(spec.data, TextSpec)
    assert spec.data.paths == []
    assert isinstance(spec.optim, AdamWSpec)
    assert isinstance(spec.strategy, DeepSpeedSpec)
    assert spec.strategy.stage == 2
    assert spec.precision.kind is PrecisionKind.bf16
    assert (spec.scale.workers, spec.scale.gpus_per_worker) == (2, 0)


@pytest.mark.parametrize("optim", ["adamw", "sgd"])
@pytest.mark.parametrize("steps", [1, 10, 300])
def test_the_schedule_follows_the_length_of_the_run(optim: str, steps: int) -> None:
    spec = run_spec(f"steps={steps}", f"optim={optim}")
    assert spec.optim.decay_steps == steps
    assert spec.optim.warmup_steps == steps * 67 // 1000


@pytest.mark.parametrize("model", PARAMETERS)
def test_models_have_the_size_their_name_says(model: str) -> None:
    vocab = 257 if model == "gpt_nano" else 50_257
    counted = count_parameters(run_spec(f"model={model}").model, vocab=vocab)
    assert counted == pytest.approx(PARAMETERS[model], rel=0.005)


def test_batches_have_the_size_their_name_says() -> None:
    for name, tokens in (("tokens_8k", 8 * 1024), ("tokens_512k", 512 * 1024)):
        batch = run_spec(f"batch={name}").batch
        assert batch.global_size * batch.sequence == tokens


def test_parity_is_the_same_mathematics_everywhere() -> None:
    digests = {
        run_spec("experiment=parity", f"strategy={strategy}", f"scale.workers={workers}").digest()
        for strategy in ("ddp", "fsdp2", "deepspeed_z3")
        for workers in (1, 3)
    }
    assert len(digests) == 1


def test_small_doors_compose() -> None:
    typed: tuple[tuple[Callable[[], object], object], ...] = (
        (
            lambda: compose(["run=a"], config_name="generate", schema=GenerateSpec),
            GenerateSpec(run="a"),
        ),
        (
            lambda: compose(["run=a", "to=b"], config_name="export", schema=ExportSpec),
            ExportSpec(run="a", to="b"),
        ),
        (
            lambda: compose(
                ["list", "run=a"],
                config_name="checkpoints",
                schema=CheckpointsSpec,
                verbs="action",
            ),
            CheckpointsSpec(action=Action.list, run="a"),
        ),
        (
            lambda: compose(["run=a"], config_name="audit", schema=AuditSpec),
            AuditSpec(run="a"),
        ),
        (
            lambda: compose([], config_name="replay", schema=ReplaySpec),
            ReplaySpec(),
        ),
        (
            lambda: compose([], config_name="plan", schema=PlanSpec),
            PlanSpec(),
        ),
        (
            lambda: compose(["providers"], config_name="fleet", schema=FleetSpec, verbs="action"),
            FleetSpec(action=FleetAction.providers),
        ),
    )
    for act, expected in typed:
        assert act() == expected


@pytest.mark.parametrize(
    ("door", "schema"),
    [
        ("train", RunSpec),
        ("generate", GenerateSpec),
        ("export", ExportSpec),
        ("checkpoints", CheckpointsSpec),
        ("audit", AuditSpec),
        ("replay", ReplaySpec),
        ("plan", PlanSpec),
        ("fleet", FleetSpec),
    ],
)
def test_help_shows_only_keys_that_exist(door: str, schema: type[RunSpec]) -> None:
    text = (CONF / "hydra" / "help" / f"{door}.yaml").read_text()
    shown = [part.partition("}")[0] for part in text.split("${shown:")[1:]]
    options = [part.partition("}")[0] for part in text.split("${options:")[1:]]
    assert set(shown) <= set(keys_of(schema))
    assert set(options) == ({*groups_of(schema), "experiment"} if door == "train" else set())
