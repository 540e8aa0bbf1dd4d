"""What the planning door is asked for, beside the run that it plans."""

from __future__ import annotations

from tidemill.spec.base import Spec, spec
from tidemill.spec.doors import Format


@spec
class PlanSpec(Spec):
    """How a run is planned.

    Attributes:
        live: Whether to ask the providers; else the shipped catalogue answers.
        top: Choices of machines to show.
        efficiency: Share of a GPU's peak that the run is known to reach; 0 takes the usual one.
        measured_s: Seconds of a step of this run that were measured, from which `efficiency`
            follows; 0 if none were.
        measured_on: On what: a GPU, and how many of them in one machine: `H100-SXM5-80GB:8`.
        data_gib: Dataset that every machine has to fetch; 0 takes the size of local files.
        trace: Follow the model operator by operator for its memory, which needs torch; a model of
            the user's own has to be.
        to: Directory for the plan as Markdown and JSON; empty keeps none.
        format: How the answer is written.
    """

    live: bool = True
    top: int = 5
    efficiency: float = 0.0
    measured_s: float = 0.0
    measured_on: str = ""
    data_gib: float = 0.0
    trace: bool = False
    to: str = "plans"
    format: Format = Format.text

    def __post_init__(self) -> None:
        self.require_at_least(1, "top")
        self.require_between(0.0, 1.0, "efficiency")
        self.require_at_least(0, "data_gib", "measured_s")
        _, _, gpus = self.measured_on.partition(":")
        self.require(
            bool(self.measured_s) == bool(self.measured_on)
            and (not gpus or (gpus.isdecimal() and int(gpus) > 0)),
            "measured_on",
            f"{self.measured_on!r} says not on what measured_s={self.measured_s:g} was measured",
            "give both, e.g. measured_s=0.31 measured_on=H100-SXM5-80GB:8",
        )
        self.require(
            not (self.efficiency and self.measured_s),
            "efficiency",
            "follows from measured_s",
            "leave out one of them",
        )
