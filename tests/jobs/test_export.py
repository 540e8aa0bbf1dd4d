"""The export door says where the weights are."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tidemill.spec.doors import ExportSpec

if TYPE_CHECKING:
    import pytest


def test_the_place_of_the_weights_is_said(
    load_door: Callable[[str], Any],
    stand_in: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    stand_in("tidemill.launch.weights", export=lambda spec: f"{spec.to}/model.safetensors")
    load_door("export").main(ExportSpec(run="hello", to="there"))
    assert capsys.readouterr().out == "weights of hello: there/model.safetensors\n"
