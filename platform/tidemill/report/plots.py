"""The loss curve of a run, as one self-contained SVG.

The same events give the same bytes: no date, salted ids, text as paths, and none of the user's own
matplotlib settings. matplotlib is imported when something is drawn, because it costs half a second.
"""

from __future__ import annotations

import importlib
import io
import math
from collections.abc import Sequence
from functools import partial
from itertools import accumulate, pairwise
from operator import mul
from typing import Any

from tidemill.report.ledger import RunReport, steps_taken
from tidemill.report.notices import number
from tidemill.report.quantities import count_noun
from tidemill.spec.progress import Event

Axes = Any  # matplotlib.axes.Axes, whose own types are partial
Curve = list[tuple[float, float]]

# Okabe and Ito's palette, told apart by all kinds of colour vision (jfly.uni-koeln.de/color).
TRAIN = "#0072B2"
HELD_OUT = "#D55E00"
SKIPPED = "#CC79A7"
INK = "#222222"
FAINT = "#767676"
GRID = "#E8E8E8"

MOST_POINTS = 2000
SMOOTHED_SHARE = 0.02
LABEL_WIDTH_SHARE = 0.17
STYLE: dict[str, Any] = {
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "path.simplify": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "tidemill",
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.color": FAINT,
    "ytick.labelcolor": INK,
}


def draw_loss(report: RunReport, *, name: str, caption: str = "") -> bytes:
    """Draw training and held-out loss over steps, restarts and skipped steps marked.

    Args:
        report: The run, as its events tell it.
        name: The run's name, the title.
        caption: One line below the title.

    Returns:
        UTF-8 SVG. Its groups `train`, `smoothed`, `held-out`, `skipped` and `restart-N` hold what
        their names say.
    """
    mpl: Any = importlib.import_module("matplotlib")
    figures: Any = importlib.import_module("matplotlib.figure")
    buffer = io.BytesIO()
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        figure = figures.Figure(figsize=(9, 5), layout="constrained", facecolor="white")
        figure.get_layout_engine().set(w_pad=0.15, h_pad=0.15)
        axes = figure.add_subplot()
        _draw_curves(axes, report)
        _draw_restarts(axes, report)
        _draw_frame(axes, report)
        axes.set_title(name, loc="left", fontsize=13, fontweight="bold", pad=46)
        axes.text(0, 1.1, caption, transform=axes.transAxes, color=FAINT, va="bottom")
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": "tidemill"})
    return buffer.getvalue()


def smoothed(curve: Curve, window: int) -> Curve:
    """A centred moving average that narrows towards both ends, so neither end is bent.

    It stops a little before the last point, where it would have narrowed to the noise.

    Args:
        curve: (step, loss) by step.
        window: Most points on either side of the one in the middle.
    """
    sums = [0.0, *accumulate(loss for _, loss in curve)]
    last = len(curve) - 1
    result: Curve = []
    for i, (step, _) in enumerate(curve[: len(curve) - window // 5]):
        reach = min(window, i, last - i)
        result.append((step, (sums[i + reach + 1] - sums[i - reach]) / (2 * reach + 1)))
    return result


def thinned(curve: Curve, most: int) -> Curve:
    """At most `most` points: the lowest and the highest of every stretch, so spikes stay."""
    if len(curve) <= most:
        return curve
    stretches = max(1, most // 2)
    edges = [i * len(curve) // stretches for i in range(stretches + 1)]
    result: Curve = []
    for start, end in pairwise(edges):
        stretch = curve[start:end]
        low = min(stretch, key=lambda point: point[1])
        high = max(stretch, key=lambda point: point[1])
        result += sorted({low, high})
    return result


def _draw_curves(axes: Axes, report: RunReport) -> None:
    train, held_out = _curve(report.steps), _curve(report.evaluations)
    smooth = smoothed(train, max(1, round(len(train) * SMOOTHED_SHARE)))
    raw = thinned(train, MOST_POINTS)
    axes.plot(*_columns(raw), color=TRAIN, alpha=0.28, linewidth=0.8, gid="train")
    axes.plot(
        *_columns(thinned(smooth, MOST_POINTS)),
        color=TRAIN,
        linewidth=2,
        solid_capstyle="round",
        label="training",
        gid="smoothed",
    )
    if held_out:
        axes.plot(
            *_columns(held_out),
            color=HELD_OUT,
            linestyle="none",
            marker="o",
            markersize=6.5,
            markeredgecolor="white",
            markeredgewidth=0.8,
            label="held out",
            gid="held-out",
            zorder=4,
        )
    if report.skipped_steps:
        axes.plot(
            [step + 1 for step in report.skipped_steps],
            [0.0] * len(report.skipped_steps),
            transform=axes.get_xaxis_transform(),
            linestyle="none",
            marker="|",
            markersize=9,
            markeredgewidth=1.6,
            color=SKIPPED,
            clip_on=False,
            label=f"skipped ({len(report.skipped_steps)})",
            gid="skipped",
            zorder=5,
        )
    _limit(axes, report, raw, [*smooth, *held_out])


def _limit(axes: Axes, report: RunReport, raw: Curve, firm: Curve) -> None:
    """Room for the smoothed and the held-out curve, and for raw losses but for lone spikes."""
    losses = sorted(loss for _, loss in raw)
    margin = len(losses) // 100
    shown = [loss for _, loss in firm] + losses[margin : len(losses) - margin]
    if shown:
        low, high = min(shown), max(shown)
        room = (high - low) * 0.05 or max(abs(high) * 0.05, 1e-3)
        axes.set_ylim(low - room, high + room)
    axes.set_xlim(0, max(report.last_step, 1) * 1.01)


def _draw_restarts(axes: Axes, report: RunReport) -> None:
    """A thin line where each later attempt took over, labelled unless labels would collide."""
    limit = axes.get_xlim()[1]
    free_from = -math.inf
    for attempt in report.attempts[1:]:
        step = attempt.from_step
        if step > report.last_step:  # taken back: a label out there would squeeze the axes away
            continue
        axes.axvline(
            step,
            color=FAINT,
            linewidth=0.8,
            linestyle=(0, (4, 3)),
            gid=f"restart-{attempt.attempt}",
        )
        if step < free_from:
            continue
        free_from = step + limit * LABEL_WIDTH_SHARE
        world = attempt.fields.get("world")
        label = f"attempt {attempt.attempt}"
        if isinstance(world, int):
            label += f"\n{count_noun(world, 'worker')}"
        axes.text(
            step,
            1.012,
            label,
            transform=axes.get_xaxis_transform(),
            ha="center" if step > limit * 0.04 else "left",
            va="bottom",
            fontsize=7.5,
            linespacing=1.15,
            color=FAINT,
        )


def _draw_frame(axes: Axes, report: RunReport) -> None:
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per token)")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(visible=True, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=3)
    if report.steps or report.evaluations:
        axes.legend(loc="upper right", framealpha=0.9, edgecolor="none")
    else:
        axes.text(
            0.5,
            0.5,
            "no steps yet",
            transform=axes.transAxes,
            ha="center",
            color=FAINT,
            fontsize=12,
        )
    bits_per_nat = _bits_per_nat(report)
    if bits_per_nat is None:
        axes.spines["right"].set_visible(False)
        return
    right = axes.secondary_yaxis(
        "right", functions=(partial(mul, bits_per_nat), partial(mul, 1 / bits_per_nat))
    )
    right.set_ylabel("bits per byte")
    right.tick_params(length=3)


def _bits_per_nat(report: RunReport) -> float | None:
    """What a loss is multiplied by to tell it in bits per byte; None unless tokens are bytes.

    It is a little above 1 / ln 2, because some tokens (ends of documents) are not bytes.
    """
    for event in reversed(report.evaluations):
        bits, loss = number(event.fields, "bits_per_byte"), number(event.fields, "loss")
        if math.isfinite(bits) and math.isfinite(loss) and loss > 0:
            return bits / loss
    return None


def _curve(events: Sequence[Event]) -> Curve:
    points = ((float(steps_taken(event)), number(event.fields, "loss")) for event in events)
    return [(step, loss) for step, loss in points if math.isfinite(loss)]


def _columns(curve: Curve) -> tuple[list[float], list[float]]:
    return [step for step, _ in curve], [loss for _, loss in curve]
