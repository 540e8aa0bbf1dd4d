"""Load a door as a module, with stand-ins for the rooms that are slow to start."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

JOBS = Path(__file__).parents[2] / "jobs"


@pytest.fixture
def load_door() -> Callable[[str], Any]:
    """Load `jobs/NAME.py` without opening it."""

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"jobs_{name}", JOBS / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Put functions in place of a module of Tidemill, so that it is never imported."""

    def put(name: str, **functions: Callable[..., Any]) -> None:
        module = ModuleType(name)
        vars(module).update(functions)
        monkeypatch.setitem(sys.modules, name, module)

    return put
