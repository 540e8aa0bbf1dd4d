"""The generate door prints text as it comes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from tidemill.spec.doors import GenerateSpec

if TYPE_CHECKING:
    import pytest


def test_text_is_shown_as_it_comes(
    load_door: Callable[[str], Any],
    stand_in: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = GenerateSpec(run="hello", prompt="def ")
    shown: list[str] = []

    def generate(spec: GenerateSpec) -> Iterator[str]:
        assert spec is asked
        for piece in ("def ", "main", "():"):
            yield piece
            shown.append(capsys.readouterr().out)

    stand_in("tidemill.launch.weights", generate=generate)
    load_door("generate").main(asked)
    assert shown == ["def ", "main", "():"]
    assert capsys.readouterr().out == "\n"
