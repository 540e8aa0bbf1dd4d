"""SuperviseSpec: how long to keep at a run whose driver dies.

The keys of the run itself are typed beside these, as for the train door, and go to each driver as
they are.
"""

from __future__ import annotations

from tidemill.spec.base import Spec, spec


@spec
class SuperviseSpec(Spec):
    """When a dead driver is replaced, and where drivers run.

    Attributes:
        tries: Drivers in a row that may die without a new step or checkpoint; one that made
            progress begins the count anew.
        first_pause_s: Seconds before the first new try; each further one without progress doubles
            them.
        most_pause_s: Most seconds before a new try.
        submit_to: Address of a cluster's dashboard, e.g. `http://head:8265`, where each driver
            becomes a Ray job; empty runs it on this machine.
        python: The interpreter of such a job, on the cluster.
    """

    tries: int = 5
    first_pause_s: float = 1.0
    most_pause_s: float = 300.0
    submit_to: str = ""
    python: str = "python"

    def __post_init__(self) -> None:
        self.require_at_least(1, "tries")
        self.require_at_least(0, "first_pause_s")
        self.require_at_least(self.first_pause_s, "most_pause_s")
        self.require(
            not self.submit_to or self.submit_to.startswith(("http://", "https://")),
            "submit_to",
            f"{self.submit_to!r} is no address of a dashboard",
            "use one like http://head:8265, or leave it empty to run on this machine",
        )
        self.require(bool(self.python), "python", "is empty", "name an interpreter of the cluster")
