"""How many workers a run may have, refused where it makes no sense."""

from __future__ import annotations

import pytest

from tidemill.errors import SpecError
from tidemill.spec.scale import ScaleSpec


def test_a_run_has_as_many_workers_as_it_asks_for_unless_it_is_elastic() -> None:
    fixed, elastic = ScaleSpec(workers=4), ScaleSpec(workers=4, min_workers=2)
    assert (fixed.least, fixed.elastic) == (4, False)
    assert (elastic.least, elastic.elastic) == (2, True)
    assert not ScaleSpec(workers=4, min_workers=4).elastic


@pytest.mark.parametrize(
    ("wrong", "key"),
    [
        ({"workers": 2, "min_workers": 3}, "scale.min_workers"),
        ({"min_workers": -1}, "scale.min_workers"),
        ({"weight": 0.0}, "scale.weight"),
        ({"hang_s": -1.0}, "scale.hang_s"),
        ({"copy_every_steps": -1}, "scale.copy_every_steps"),
        ({"spares": -1}, "scale.spares"),
        ({"recycle_after": 0}, "scale.recycle_after"),
        ({"labels": {"": "x"}}, "scale.labels"),
        ({"labels": {"a b": "x"}}, "scale.labels"),
    ],
)
def test_what_makes_no_sense_is_refused_by_its_key(wrong: dict[str, object], key: str) -> None:
    with pytest.raises(SpecError) as refused:
        ScaleSpec(**wrong)  # type: ignore[arg-type]
    assert refused.value.key == key
