"""The README promises commands: each composes, and everything it points at is there."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import pytest

from tidemill.compose import compose
from tidemill.spec.base import Spec
from tidemill.spec.doors import CheckpointsSpec, ExportSpec, GenerateSpec
from tidemill.spec.fleet import FleetSpec
from tidemill.spec.keys import split
from tidemill.spec.plan import PlanSpec
from tidemill.spec.run import RunSpec

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
GUIDE = (ROOT / "docs/checkpoints.md").read_text()
BLOCKS = re.findall(r"```bash\n(.*?)```", README + GUIDE, re.DOTALL)
DOORS: dict[str, tuple[str, type[Spec], str]] = {
    "train": ("config", RunSpec, ""),
    "generate": ("generate", GenerateSpec, ""),
    "export": ("export", ExportSpec, ""),
    "checkpoints": ("checkpoints", CheckpointsSpec, "action"),
    "fleet": ("fleet", FleetSpec, "action"),
    "plan": ("plan", PlanSpec, ""),
}
COMMANDS = [
    line.partition("jobs/")[2]
    for block in BLOCKS
    for line in re.sub(r"\\\n\s*", "", block).splitlines()
    if "jobs/" in line
]


def test_there_are_commands() -> None:
    assert len(COMMANDS) >= 8
    assert {command.split(".py")[0] for command in COMMANDS} == set(DOORS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_composes(command: str) -> None:
    door, *arguments = shlex.split(command, comments=True)
    config_name, schema, verbs = DOORS[door.removesuffix(".py")]
    overrides = [argument for argument in arguments if argument != "-m"]
    if "-m" in arguments:
        overrides = [re.sub(r",.*", "", override) for override in overrides]
    if door == "plan.py":
        overrides, run = split(overrides, PlanSpec)
        compose(run, config_name="config", schema=RunSpec)
    spec = compose(overrides, config_name=config_name, schema=schema, verbs=verbs)
    assert isinstance(spec, schema)


def test_every_link_leads_somewhere() -> None:
    links = re.findall(r"\]\(([^)]+)\)", README)
    assert links
    for link in links:
        assert (ROOT / link).exists(), link


def test_every_named_test_and_bench_is_there() -> None:
    named = re.findall(r"tests/[\w/]+(?:\.py|/)", README)
    assert named
    for path in named:
        assert (ROOT / path).exists(), path


def test_the_extras_it_installs_exist() -> None:
    extras = set(re.findall(r'-e "\.\[(\w+)\]"', README))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert extras
    assert extras <= set(project["optional-dependencies"])
