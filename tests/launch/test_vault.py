"""What a vault does with what it is told, without Ray around it; see also `test_near`."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest

from tidemill.launch import vault as module
from tidemill.launch.vault import Held, Vault

FIRST, SECOND, THIRD = (f"step-{step:010d}-a0001" for step in (10, 20, 30))
BUDGET = 100


def keep(vault: Vault, version: str, size: int, name: str = "a", attempt: int = 1) -> str:
    """Admit a file and hold all of it, in two chunks."""
    refusal = vault.admit(attempt, version, name, size, BUDGET)
    if not refusal:
        vault.hold(version, name, bytes(size // 2))
        vault.hold(version, name, bytes(size - size // 2))
    return refusal


def test_only_whole_files_are_told_of() -> None:
    vault = Vault()
    assert vault.admit(1, FIRST, "a", 6, BUDGET) == ""
    vault.hold(FIRST, "a", b"abcd")
    assert vault.contents() == {FIRST: Held(sealed=False, files={})}
    vault.hold(FIRST, "a", b"ef")
    assert vault.contents() == {FIRST: Held(sealed=False, files={"a": 6})}
    assert [vault.read(FIRST, "a", number) for number in (0, 1)] == [b"abcd", b"ef"]
    with pytest.raises(LookupError):
        vault.read(FIRST, "a", 2)


def test_an_empty_file_is_whole_at_once() -> None:
    vault = Vault()
    assert vault.admit(1, FIRST, "a", 0, BUDGET) == ""
    assert vault.contents() == {FIRST: Held(sealed=False, files={"a": 0})}


def test_a_file_that_comes_again_is_replaced_when_it_is_whole() -> None:
    vault = Vault()
    keep(vault, FIRST, 4)
    vault.seal(FIRST, b"first")
    assert vault.admit(1, FIRST, "a", 4, BUDGET) == ""
    vault.hold(FIRST, "a", b"ne")
    assert vault.contents() == {FIRST: Held(sealed=True, files={"a": 4})}
    assert vault.read(FIRST, "a", 0) == bytes(2)
    vault.hold(FIRST, "a", b"w.")
    assert [vault.read(FIRST, "a", number) for number in (0, 1)] == [b"ne", b"w."]
    assert vault.admit(1, FIRST, "a", 96, BUDGET) == ""
    assert vault.admit(1, FIRST, "a", 97, BUDGET) != ""
    assert vault.contents() == {FIRST: Held(sealed=True, files={"a": 4})}


def test_the_version_before_stays_until_the_seal() -> None:
    vault = Vault()
    keep(vault, FIRST, 10)
    vault.seal(FIRST, b"first")
    keep(vault, SECOND, 10)
    assert list(vault.contents()) == [FIRST, SECOND]
    assert vault.manifest(FIRST) == b"first"
    vault.seal(SECOND, b"second")
    assert vault.contents() == {SECOND: Held(sealed=True, files={"a": 10})}


def test_what_was_never_sealed_makes_room_first() -> None:
    vault = Vault()
    keep(vault, FIRST, 40)
    vault.seal(FIRST, b"first")
    assert keep(vault, SECOND, 60) == ""
    assert keep(vault, THIRD, 60) == ""
    assert list(vault.contents()) == [FIRST, THIRD]
    with pytest.raises(KeyError):
        vault.hold(SECOND, "a", b"too late")


def test_the_budget_holds_for_all_that_is_there_and_on_its_way() -> None:
    vault = Vault()
    keep(vault, FIRST, 40)
    vault.seal(FIRST, b"first")
    assert keep(vault, SECOND, 40) == ""
    refusal = keep(vault, SECOND, 21, name="b")
    assert refusal.startswith("checkpoint.near_gib: allows 9.31e-08 GiB on a node")
    assert "9.41e-08 GiB are needed there for 5.68e-08 GiB of a new snapshot" in refusal
    assert vault.contents()[SECOND].files == {"a": 40}
    assert keep(vault, SECOND, 20, name="b") == ""
    vault.seal(SECOND, b"second")
    assert keep(vault, THIRD, 40) == ""


def test_an_attempt_that_is_over_keeps_nothing() -> None:
    vault = Vault()
    keep(vault, FIRST, 10)
    vault.seal(FIRST, b"first")
    later = "step-0000000005-a0002"
    assert keep(vault, later, 10, attempt=2) == ""
    assert "attempt 1 is over" in keep(vault, SECOND, 10)
    assert list(vault.contents()) == [FIRST, later]
    vault.seal(later, b"later")
    assert list(vault.contents()) == [later]


def test_a_vault_costs_its_node_little() -> None:
    heavy = {"torch", "pyarrow", "numpy", "deepspeed"}
    script = f"import sys, tidemill.launch.vault; print(*sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split() == []


class Clock:
    """Time that passes only in sleep; at half past each, somebody may call."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.calls: list[Vault] = []

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds / 2
        if self.calls:
            self.calls.pop().contents()
        self.now_s += seconds / 2


def test_it_ends_when_nobody_called_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    vault = Vault()
    monkeypatch.setattr(module, "time", clock)
    ended: list[float] = []
    monkeypatch.setattr(module.ray, "get_runtime_context", lambda: SimpleNamespace(current_actor=1))
    monkeypatch.setattr(module.ray, "kill", lambda _: ended.append(clock.now_s))
    vault._idle_s = 100.0
    vault.contents()
    clock.calls = [vault]
    vault._end_when_idle()
    assert ended == [150.0]
