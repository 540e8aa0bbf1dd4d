"""What is for the supervisor is told from what is for the run."""

from __future__ import annotations

from typing import Any

import pytest

from tests.test_conf import CONF
from tidemill.compose import compose
from tidemill.errors import SpecError
from tidemill.spec.keys import keys_of, split
from tidemill.spec.run import RunSpec
from tidemill.spec.supervise import SuperviseSpec


@pytest.mark.parametrize(
    ("bad", "key"),
    [
        ({"tries": 0}, "tries"),
        ({"first_pause_s": -1.0}, "first_pause_s"),
        ({"first_pause_s": 9.0, "most_pause_s": 8.0}, "most_pause_s"),
        ({"most_pause_s": float("inf")}, "most_pause_s"),
        ({"submit_to": "head:8265"}, "submit_to"),
        ({"python": ""}, "python"),
    ],
)
def test_supervising_needs_sense(bad: dict[str, Any], key: str) -> None:
    with pytest.raises(SpecError) as caught:
        SuperviseSpec(**bad)
    assert caught.value.key == key


def test_the_file_says_what_the_class_says() -> None:
    assert compose([], config_name="supervise", schema=SuperviseSpec) == SuperviseSpec()
    typed = ["tries=2", "submit_to=https://head:8265"]
    spec = compose(typed, config_name="supervise", schema=SuperviseSpec)
    assert spec == SuperviseSpec(tries=2, submit_to="https://head:8265")


def test_a_command_line_is_parted() -> None:
    own, run = split(
        [
            *("name=mill", "tries=3", "experiment=parity", "+data.paths=[a]", "~report"),
            *("--help", "--cfg=job", "first_pause_s=0", "prompt=tries=1", "stray"),
        ],
        SuperviseSpec,
    )
    assert own == ["tries=3", "--help", "--cfg=job", "first_pause_s=0", "stray"]
    assert run == ["name=mill", "experiment=parity", "+data.paths=[a]", "~report", "prompt=tries=1"]


def test_no_key_means_two_things() -> None:
    assert not set(keys_of(SuperviseSpec)) & set(keys_of(RunSpec))


def test_help_shows_all_keys() -> None:
    text = (CONF / "hydra" / "help" / "supervise.yaml").read_text()
    shown = [part.partition("}")[0] for part in text.split("${shown:")[1:]]
    assert set(shown) == set(keys_of(SuperviseSpec))
