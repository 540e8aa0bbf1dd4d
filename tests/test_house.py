"""How the house is laid out: what may stand where, who may import whom, and what is never written.

Linters see one file at a time; what is claimed here spans files, or must hold before a linter runs.
"""

from __future__ import annotations

import ast
import os
import platform
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tidemill.spec import run as _run  # noqa: F401  (defines every group a run has)
from tidemill.spec.base import Spec

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "platform" / "tidemill"
MODULES = sorted(PACKAGE.rglob("*.py"))
DOORS = sorted((ROOT / "jobs").glob("*.py"))

TOP_LEVEL = {
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "README.md",
    "cluster.yaml",
    "conf",
    "docs",
    "jobs",
    "platform",
    "pyproject.toml",
    "tests",
}
VAGUE_NAMES = {"common", "helpers", "manager", "misc", "utils"}
PICKLES = {"cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"}
ARITHMETIC = {"errors.py", "plan", "spec"}  # the standard library is all they need
LONGEST_MODULE = 300  # lines; a longer one has two ideas in it
LONGEST_DOOR = 45

in_package = pytest.mark.parametrize(
    "path", MODULES, ids=[str(path.relative_to(PACKAGE)) for path in MODULES]
)


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


class RunTime(ast.NodeTransformer):
    """Drops what only a type checker imports."""

    def visit_If(self, node: ast.If) -> ast.AST:
        """Keep of `if TYPE_CHECKING` nothing but its condition."""
        return node.test if ast.unparse(node.test) == "TYPE_CHECKING" else self.generic_visit(node)


def imported(tree: ast.Module) -> set[str]:
    """The top-level names of everything imported at run time, wherever it is imported."""
    names: set[str] = set()
    for node in ast.walk(RunTime().visit(tree)):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names


def calls(tree: ast.Module) -> set[str]:
    """The plain names that are called."""
    return {
        node.func.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }


def public_definitions(
    body: list[ast.stmt],
) -> list[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    """Public functions and classes of a module, with the public methods of its classes."""
    found: list[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef] = []
    for node in body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        if node.name.startswith("_"):
            continue
        found.append(node)
        if isinstance(node, ast.ClassDef):
            found.extend(public_definitions(node.body))
    return found


# --- what stands where -----------------------------------------------------------------------


def test_platform_stays_a_source_root() -> None:
    assert not (ROOT / "platform" / "__init__.py").exists()
    assert not (ROOT / "platform.py").exists()
    assert not Path(platform.__file__).is_relative_to(ROOT)


def test_the_standard_platform_wins_from_the_root() -> None:
    # `-c` puts the working directory first on the path, where `platform/` could shadow the module.
    script = "import platform, uuid; print(platform.system())"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == platform.system()


def test_nothing_unknown_stands_at_the_top() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout, so what belongs to it cannot be told")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    names = {path.partition("/")[0] for path in listed.stdout.split("\0") if path}
    assert {name for name in names if not name.startswith(".")} <= TOP_LEVEL


@in_package
def test_module_names_say_something(path: Path) -> None:
    assert VAGUE_NAMES.isdisjoint(path.relative_to(PACKAGE).with_suffix("").parts)


@in_package
def test_modules_hold_one_idea(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").count("\n")
    assert lines <= LONGEST_MODULE


@pytest.mark.parametrize("path", DOORS, ids=[path.name for path in DOORS])
def test_doors_stay_thin(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").count("\n")
    assert lines <= LONGEST_DOOR


def test_every_conf_group_has_a_spec() -> None:
    def family(cls: type[Spec]) -> set[str]:
        return {cls.GROUP}.union(*(family(child) for child in cls.__subclasses__()))

    groups = {path.name for path in (ROOT / "conf").iterdir() if path.is_dir()}
    # `experiment` holds differences only, `hydra` configures the tool itself.
    assert groups - {"experiment", "hydra"} <= family(Spec)


# --- who imports whom ------------------------------------------------------------------------


# One line that breaks a law, the module it is written into, and what the report must say.
BREACHES = (
    ("storage/rogue_a", "import tidemill.spec", "tidemill.storage.rogue_a -> tidemill.spec"),
    ("plan/rogue_a", "import tidemill.data", "tidemill.plan.rogue_a -> tidemill.data"),
    ("data/rogue_a", "import tidemill.report", "tidemill.data.rogue_a -> tidemill.report"),
    ("launch/rogue_a", "import torch", "tidemill.launch.rogue_a -> torch"),
    ("report/rogue_a", "import deepspeed", "tidemill.report.rogue_a -> deepspeed"),
    ("train/rogue_a", "import ray.train", "tidemill.train.rogue_a -> ray"),
    ("checkpoint/rogue_a", "import pyarrow.fs", "tidemill.checkpoint.rogue_a -> pyarrow"),
    ("launch/rogue_b", "from omegaconf import OmegaConf", "tidemill.launch.rogue_b -> omegaconf"),
    ("launch/rogue_c", "import numpy", "tidemill.launch.rogue_c -> numpy"),
    ("train/rogue_b", "import rich.progress", "tidemill.train.rogue_b -> rich"),
    ("plan/rogue_b", "import numpy", "tidemill.plan.rogue_b -> numpy"),
    ("spec/rogue_a", "def f(): import hydra", "tidemill.spec.rogue_a -> hydra"),
)


def check_contracts(source: Path) -> subprocess.CompletedProcess[str]:
    """Check the contracts of pyproject.toml against the package below `source`."""
    script = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(*{!r}))"
    options = (str(ROOT / "pyproject.toml"), (), None, True)  # (..., no_cache=True)
    return subprocess.run(
        [sys.executable, "-c", script.format(options)],
        cwd=source,
        env=os.environ | {"PYTHONPATH": str(source), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )


def copy_package(target: Path) -> Path:
    ignore = shutil.ignore_patterns("__pycache__")
    return shutil.copytree(PACKAGE, target / "tidemill", ignore=ignore)


def test_layers_and_rooms_hold() -> None:
    done = check_contracts(ROOT / "platform")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def report_of_breaches(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the contracts say of a copy of the package in which every law is broken."""
    source = tmp_path_factory.mktemp("rogue")
    copy = copy_package(source)
    for module, line, _ in BREACHES:
        with (copy / f"{module}.py").open("a", encoding="utf-8") as file:
            file.write(f"\n{line}\n")
    done = check_contracts(source)
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("breach", BREACHES, ids=lambda breach: breach[2])
def test_the_contracts_notice(breach: tuple[str, str, str], report_of_breaches: str) -> None:
    assert breach[2] in report_of_breaches


def test_a_room_that_no_layer_names_is_refused(tmp_path: Path) -> None:
    (copy_package(tmp_path) / "attic.py").touch()
    done = check_contracts(tmp_path)
    assert done.returncode == 1
    assert "attic" in done.stdout


@pytest.mark.parametrize(
    "path", [path for path in MODULES if path.relative_to(PACKAGE).parts[0] in ARITHMETIC], ids=str
)
def test_spec_and_plan_need_only_the_standard_library(path: Path) -> None:
    assert imported(parse(path)) - sys.stdlib_module_names <= {"tidemill"}


@pytest.mark.parametrize("module", ["tidemill.spec.run", "tidemill.plan.batch", "tidemill.storage"])
def test_light_modules_stay_light(module: str) -> None:
    heavy = {"deepspeed", "hydra", "matplotlib", "ray", "rich", "torch"}
    script = f"import sys, {module}; print(*sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": str(ROOT / "platform")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == []


# --- what is never written -------------------------------------------------------------------


@in_package
def test_only_doors_print(path: Path) -> None:
    assert "print" not in calls(parse(path))


@in_package
def test_nothing_is_asserted_at_run_time(path: Path) -> None:
    lines = [node.lineno for node in ast.walk(parse(path)) if isinstance(node, ast.Assert)]
    assert lines == [], "python -O would drop these; raise a TidemillError"


@in_package
def test_nothing_is_pickled(path: Path) -> None:
    assert PICKLES.isdisjoint(imported(parse(path)))


@in_package
def test_everything_public_says_what_it_is(path: Path) -> None:
    tree = parse(path)
    assert ast.get_docstring(tree), "the module has no docstring"
    silent = [node.name for node in public_definitions(tree.body) if not ast.get_docstring(node)]
    assert silent == []


# --- what the tests themselves stand on ------------------------------------------------------


def test_tests_cannot_leave_this_machine() -> None:
    with pytest.raises(OSError, match="outside"):
        socket.create_connection(("192.0.2.1", 80), timeout=1)  # a documentation address
    with pytest.raises(socket.gaierror, match="outside"):
        socket.getaddrinfo("example.org", 443)


def test_tests_can_talk_to_this_machine() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(("localhost", server.getsockname()[1]), timeout=5) as client,
    ):
        accepted, _ = server.accept()
        with accepted:
            client.sendall(b"tide")
            assert accepted.recv(4) == b"tide"
