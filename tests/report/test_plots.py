"""The loss curve shows every point it should, and is the same drawing every time."""

from __future__ import annotations

import math
import random
import re
import subprocess
import sys
from xml.etree import ElementTree as ET

import matplotlib as mpl
import pytest

from tests.report.histories import History, environment
from tidemill.report.ledger import RunReport, make_run_report
from tidemill.report.plots import MOST_POINTS, _bits_per_nat, draw_loss, smoothed, thinned

SVG = "{http://www.w3.org/2000/svg}"


def report_of(history: History) -> RunReport:
    report = make_run_report(history.events)
    assert report is not None
    return report


@pytest.fixture(scope="module")
def eventful() -> RunReport:
    """Two restarts, two skipped steps (one without a loss), four validations, 190 steps."""
    rng = random.Random(0)
    history = History()
    for first, last, world in ((0, 99, 4), (80, 149, 2), (150, 189, 1)):
        history.start(world=world, restored=first or None)
        for step in range(first, last + 1):
            bad = step in {90, 120}
            loss = math.nan if step == 120 else 1.5 + 4 * math.exp(-step / 40) + rng.gauss(0, 0.1)
            history.step(step, loss=loss, applied=not bad)
            if step % 50 == 49:
                history.evaluate(step + 1, loss=1.6 + 4 * math.exp(-step / 40))
    history.evaluate(190, loss=1.62)
    history.finish(190)
    return report_of(history)


def parsed(drawing: bytes) -> ET.Element:
    return ET.fromstring(drawing)  # noqa: S314 - our own drawing


def group(drawing: bytes, name: str) -> ET.Element | None:
    parts = parsed(drawing).iter(f"{SVG}g")
    return next((part for part in parts if part.get("id") == name), None)


def points(drawing: bytes, name: str) -> int:
    """Vertices of the line in a group, or its markers if it has any."""
    part = group(drawing, name)
    assert part is not None
    if markers := list(part.iter(f"{SVG}use")):
        return len(markers)
    (path,) = part.iter(f"{SVG}path")
    return len(re.findall("[ML]", path.get("d", "")))


def texts(drawing: bytes) -> str:
    """What is written in it: text is drawn as paths, and told in comments."""
    return "\n".join(re.findall(r"<!--(.*?)-->", drawing.decode(), re.DOTALL))


def test_every_point_is_there(eventful: RunReport) -> None:
    drawing = draw_loss(eventful, name="run")
    assert points(drawing, "train") == 189
    assert points(drawing, "smoothed") == 189
    assert points(drawing, "held-out") == 4
    assert points(drawing, "skipped") == 2
    assert [group(drawing, f"restart-{n}") is not None for n in (1, 2, 3, 4)] == [
        False,
        True,
        True,
        False,
    ]


def test_everything_is_labelled(eventful: RunReport) -> None:
    said = texts(draw_loss(eventful, name="my-run", caption="what it is"))
    for text in (
        "my-run",
        "what it is",
        "attempt 2",
        "2 workers",
        "attempt 3",
        "1 worker",
        "training",
        "held out",
        "skipped (2)",
        "loss (nats per token)",
        "bits per byte",
        "step",
    ):
        assert text in said


def test_the_same_events_give_the_same_bytes(
    eventful: RunReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = draw_loss(eventful, name="run")
    monkeypatch.setitem(mpl.rcParams, "axes.facecolor", "black")
    monkeypatch.setitem(mpl.rcParams, "svg.hashsalt", "another")
    assert draw_loss(eventful, name="run") == first
    assert mpl.rcParams["axes.facecolor"] == "black"


def test_the_drawing_stands_alone(eventful: RunReport) -> None:
    drawing = draw_loss(eventful, name="run").decode()
    targets = re.findall(r'href="([^"]*)"', drawing)
    assert targets
    assert all(target.startswith("#") for target in targets)
    assert "<text" not in drawing
    assert "dc:date" not in drawing


def test_without_bytes_there_are_no_bits_per_byte() -> None:
    history = History()
    history.start()
    history.steps(0, 3)
    history.evaluate(4, byte_level=False)
    assert "bits" not in texts(draw_loss(report_of(history), name="run"))


def test_labels_of_close_restarts_do_not_collide() -> None:
    history = History()
    history.start()
    history.steps(0, 99)
    for first in (50, 52, 54, 80):
        history.start(restored=first)
        history.steps(first, 99)
    drawing = draw_loss(report_of(history), name="run")
    said = texts(drawing)
    assert all(group(drawing, f"restart-{n}") is not None for n in (2, 3, 4, 5))
    assert [f"attempt {n}" in said for n in (2, 3, 4, 5)] == [True, False, False, True]


@pytest.mark.parametrize("losses", [[], [2.0], [math.nan, math.inf], [0.0, 0.0]])
def test_hardly_anything_can_be_drawn_too(losses: list[float]) -> None:
    history = History()
    history.start()
    for step, loss in enumerate(losses):
        history.step(step, loss=loss)
    drawing = draw_loss(report_of(history), name="run")
    assert parsed(drawing).tag == f"{SVG}svg"
    assert ("no steps yet" in texts(drawing)) == (not losses)


def test_a_name_is_never_read_as_mathematics(eventful: RunReport) -> None:
    assert r"$\frac$" in texts(draw_loss(eventful, name=r"$\frac$"))


def test_thinning_keeps_what_stands_out() -> None:
    curve = [(float(step), 1.0) for step in range(10_000)]
    curve[3333] = (3333.0, 9.0)
    curve[7777] = (7777.0, -9.0)
    thin = thinned(curve, 100)
    assert len(thin) <= 100
    assert {(3333.0, 9.0), (7777.0, -9.0)} <= set(thin)
    assert thin == sorted(thin)
    assert (thin[0][0], thinned(curve[:100], 100)) == (0.0, curve[:100])


def test_smoothing_bends_no_line_and_calms_noise() -> None:
    line = [(float(step), 3.0 - step / 100) for step in range(100)]
    assert [loss for _, loss in smoothed(line, 7)] == pytest.approx([loss for _, loss in line[:-1]])
    noise = [(float(step), float(step % 2)) for step in range(100)]
    calm = [loss for _, loss in smoothed(noise, 10)[10:]]
    assert max(calm) - min(calm) < 0.35
    assert max(calm[:-8]) - min(calm[:-8]) < 0.1


def test_reporting_costs_no_matplotlib_until_something_is_drawn() -> None:
    code = "import sys, tidemill.report.summary; sys.exit('matplotlib' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env=environment())


def test_points_are_where_the_axis_says() -> None:
    """A loss after 10 steps and a validation of that state are above one another."""
    history = History()
    history.start()
    history.steps(0, 3)
    history.step(4, applied=False)
    history.steps(5, 9)
    history.evaluate(5)
    history.evaluate(10)
    history.start(restored=10)
    drawing = draw_loss(report_of(history), name="run")

    def xs(name: str) -> list[float]:
        part = group(drawing, name)
        assert part is not None
        uses = [float(use.get("x", "")) for use in part.iter(f"{SVG}use")]
        (*_, path) = part.iter(f"{SVG}path")
        return uses or [float(x) for x in re.findall(r"[ML] ([-\d.]+)", path.get("d", ""))]

    fifth, tenth = xs("held-out")
    assert (xs("train")[4], xs("train")[-1]) == pytest.approx((fifth, tenth))
    assert xs("skipped") == pytest.approx([fifth])
    assert xs("restart-2") == pytest.approx([tenth, tenth])
    frame = xs("patch_2")
    assert min(frame) == pytest.approx(2 * fifth - tenth)
    assert max(frame) == pytest.approx(tenth + (tenth - fifth) / 5 * 0.1)


def test_bits_per_byte_follow_from_what_was_validated(eventful: RunReport) -> None:
    assert _bits_per_nat(eventful) == pytest.approx(1 / math.log(2))


def test_a_long_curve_is_thinned() -> None:
    history = History()
    history.start()
    for step in range(MOST_POINTS * 2):
        history.step(step, loss=2 + math.sin(step))
    drawing = draw_loss(report_of(history), name="run")
    assert MOST_POINTS / 2 < points(drawing, "train") <= MOST_POINTS
    assert MOST_POINTS / 2 < points(drawing, "smoothed") <= MOST_POINTS


def test_a_restart_that_was_taken_back_is_left_out_and_the_title_stays() -> None:
    history = History()
    history.start()
    history.steps(0, 119)
    history.start(restored=100)
    history.steps(100, 199)
    history.start()
    history.steps(0, 9)
    drawing = draw_loss(report_of(history), name="run")  # a collapsed layout would warn
    assert group(drawing, "restart-2") is None
    assert group(drawing, "restart-3") is not None
    assert "attempt 2" not in texts(drawing)
    assert "attempt 3" in texts(drawing)


def test_another_process_draws_the_same_bytes() -> None:
    code = (
        "import sys; from tests.report.histories import History;"
        "from tidemill.report.ledger import make_run_report;"
        "from tidemill.report.plots import draw_loss;"
        "h = History(); h.start(); h.steps(0, 20); h.evaluate(10); h.start(restored=20);"
        "sys.stdout.buffer.write(draw_loss(make_run_report(h.events), name='run'))"
    )
    drawn = {
        subprocess.run(
            [sys.executable, "-c", code],
            check=True,
            capture_output=True,
            env=environment() | {"PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(drawn) == 1
    assert parsed(drawn.pop()).tag == f"{SVG}svg"
