"""cluster.yaml and conf/runtime_env.yaml: what Ray accepts, and what they promise to a reader.

Ray's own schema and its own packaging judge them, without credentials and without a cloud.
"""

from __future__ import annotations

import copy
import importlib
import os
import re
import subprocess
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
CLUSTER = ROOT / "cluster.yaml"
RUNTIME_ENV = ROOT / "conf" / "runtime_env.yaml"

Plain = dict[str, Any]


def load(path: Path) -> Plain:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def cluster() -> Plain:
    """The cluster as Ray completes it, having refused what its schema does not know."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(copy.deepcopy(load(CLUSTER)))
    validate_config(prepared)
    return prepared


@pytest.fixture(scope="module")
def project() -> Plain:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def head_of(cluster: Plain) -> Plain:
    return cluster["available_node_types"][cluster["head_node_type"]]


def workers_of(cluster: Plain) -> list[Plain]:
    types = cluster["available_node_types"]
    return [types[name] for name in types if name != cluster["head_node_type"]]


def commands_of(cluster: Plain) -> list[str]:
    """Everything that runs on any node."""
    return [
        command
        for key, commands in cluster.items()
        if key.endswith("_commands")
        for command in commands
    ]


def test_the_head_only_coordinates(cluster: Plain) -> None:
    head = head_of(cluster)
    assert head["resources"] == {"CPU": 0}
    assert head["max_workers"] == 0
    assert "InstanceMarketOptions" not in head["node_config"], "a lost head loses every run"
    assert "--num-cpus=0" in cluster["head_start_ray_commands"][-1]


def test_workers_are_spot_and_cost_nothing_between_runs(cluster: Plain) -> None:
    assert workers_of(cluster)
    for worker in workers_of(cluster):
        assert worker["min_workers"] == 0
        assert 1 <= worker["max_workers"] <= cluster["max_workers"]
        market = worker["node_config"]["InstanceMarketOptions"]
        assert market["MarketType"] == "spot"
        assert market["SpotOptions"]["InstanceInterruptionBehavior"] == "terminate"
    assert 0 < cluster["idle_timeout_minutes"] <= 30
    assert cluster["provider"]["cache_stopped_nodes"] is False


def test_every_node_starts_ray_with_a_token(cluster: Plain) -> None:
    for which in ("head", "worker"):
        starts = [line for line in cluster[f"{which}_start_ray_commands"] if "ray start" in line]
        assert starts
        for line in starts:
            assert line.index("RAY_AUTH_MODE=token") < line.index("ray start")
    default = "~/.ray/auth_token"  # where Ray looks, and `ray get-auth-token --generate` writes
    assert cluster["file_mounts"].get(default) == default
    assert any("RAY_AUTH_MODE=token" in line for line in cluster["setup_commands"])  # for the CLI


def test_ray_knows_the_settings_of_the_head(cluster: Plain) -> None:
    from ray.autoscaler.v2.instance_manager import config as reconciling

    settings = importlib.import_module("ray._raylet").Config
    names = set(re.findall(r"\bRAY_(\w+)=", cluster["head_start_ray_commands"][-1]))
    known = {name for name in names if hasattr(settings, name)}
    assert {name for name in known if name.startswith("health_check_")}
    source = Path(reconciling.__file__).read_text(encoding="utf-8")
    assert {name for name in names - known if f'"RAY_{name}"' not in source} == {"AUTH_MODE"}


def test_the_dashboard_is_not_open_to_the_network(cluster: Plain) -> None:
    assert "--dashboard-host=127.0.0.1" in cluster["head_start_ray_commands"][-1]


def test_there_is_no_secret_in_it() -> None:
    text = CLUSTER.read_text(encoding="utf-8")
    assert not re.search(r"AKIA|ASIA|BEGIN [A-Z ]*PRIVATE KEY|aws_secret", text)
    assert "RAY_AUTH_TOKEN=" not in text
    assert not re.search(r"\b[0-9a-f]{32,}\b", text)


def test_nodes_install_the_pins_of_the_project(cluster: Plain, project: Plain) -> None:
    mounted = {Path(local).parts[0] for local in cluster["file_mounts"].values()}
    assert {"platform", "pyproject.toml", project["readme"], *project["license-files"]} <= mounted
    (install,) = [line for line in cluster["setup_commands"] if "uv pip install" in line]
    assert "$HOME/tidemill[aws]" in install
    assert "aws" in project["optional-dependencies"]
    # Nothing is pinned a second time, nor installed without a pin by Ray's defaults.
    for line in commands_of(cluster):
        assert "==" not in line
        assert line is install or "pip install" not in line


def test_nodes_run_a_python_the_project_supports(cluster: Plain, project: Plain) -> None:
    (version,) = re.findall(r"--python (\d\.\d+)", "\n".join(cluster["setup_commands"]))
    assert project["requires-python"] == f">={version}"


@pytest.mark.parametrize("index", range(len(load(CLUSTER)["setup_commands"])))
def test_setup_commands_are_shell(index: int) -> None:
    line = load(CLUSTER)["setup_commands"][index]
    done = subprocess.run(["bash", "-n", "-c", line], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_shell_setup_runs_once(tmp_path: Path) -> None:
    """A second `ray up` on the same node must not grow ~/.bashrc."""
    (line,) = [line for line in load(CLUSTER)["setup_commands"] if "bashrc" in line]
    (tmp_path / ".bashrc").touch()
    for _ in range(2):
        subprocess.run(["bash", "-c", line], env=os.environ | {"HOME": str(tmp_path)}, check=True)
    assert len((tmp_path / ".bashrc").read_text(encoding="utf-8").splitlines()) == 1


def test_a_job_may_stop_gently() -> None:
    variables = load(RUNTIME_ENV)["env_vars"]
    assert variables["RAY_JOB_STOP_SIGNAL"] == "SIGINT"
    assert float(variables["RAY_JOB_STOP_WAIT_TIME_S"]) >= 60
    assert all(isinstance(value, str) for value in variables.values())  # Ray refuses numbers


def test_ray_accepts_the_runtime_environment() -> None:
    from ray.runtime_env import RuntimeEnv

    plain = load(RUNTIME_ENV)
    RuntimeEnv(**plain)
    assert set(plain) <= RuntimeEnv.known_fields


def test_a_job_brings_the_whole_package_and_no_ballast(tmp_path: Path) -> None:
    from ray._private.runtime_env.packaging import create_package

    plain = load(RUNTIME_ENV)
    (module,) = plain["py_modules"]

    def packed(path: Path, *, parent: bool) -> set[str]:
        target = tmp_path / f"{path.name}.zip"
        excludes = [*plain["excludes"], ".git", "__pycache__"]
        create_package(
            str(path),
            target,
            include_gitignore=True,
            include_parent_dir=parent,
            excludes=excludes,
        )
        with zipfile.ZipFile(target) as archive:
            return set(archive.namelist())

    package = ROOT / module
    expected = {str(path.relative_to(package.parent)) for path in package.rglob("*.py")}
    assert expected <= packed(package, parent=True)
    brought = {name.partition("/")[0] for name in packed(ROOT, parent=False)}
    assert {"jobs", "conf"} <= brought
    assert brought.isdisjoint({"tests", "docs", "runs", ".ci-venv", ".git"})
