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
        data_gib: Dataset that every machine has to fetch; 0 takes the size of local files.
        trace: Follow the model operator by operator for its memory, which needs torch; a model of
            the user's own has to be.
        to: Directory for the plan as Markdown and JSON; empty keeps none.
        format: How the answer is written.
    """

    live: bool = True
    top: int = 5
    efficiency: float = 0.0
    data_gib: float = 0.0
    trace: bool = False
    to: str = "plans"
    format: Format = Format.text

    def __post_init__(self) -> None:
        self.require_at_least(1, "top")
        self.require_between(0.0, 1.0, "efficiency")
        self.require_at_least(0, "data_gib")
