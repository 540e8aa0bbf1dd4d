"""Prices of a cluster's machines, which say them in labels of their Ray nodes.

Whoever starts a machine knows what it costs, and says so once:

    tidemill.io/usd-per-hour        dollars an hour, now
    tidemill.io/most-usd-per-hour   the most that it may become; without it, the price does not move
    tidemill.io/billing-step-s      seconds that its time is rounded up to; without it, 1
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tidemill.errors import SpecError
from tidemill.plan.meter import Price
from tidemill.spec.placement import BudgetSpec

USD_PER_HOUR = "tidemill.io/usd-per-hour"
MOST_USD_PER_HOUR = "tidemill.io/most-usd-per-hour"
BILLING_STEP_S = "tidemill.io/billing-step-s"


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A node that is paid.

    Attributes:
        address: For people.
        price: What it costs this run; None if nobody says.
        usd_per_gpu_hour: Of each of its GPUs; 0 if it has none.
    """

    address: str
    price: Price | None
    usd_per_gpu_hour: float


def price_of(labels: Mapping[str, str], budget: BudgetSpec) -> Price | None:
    """What a node costs a run; None if neither its labels nor the budget say.

    Raises:
        SpecError: A label is no price.
    """
    told = _number(labels, USD_PER_HOUR)
    if told is None:
        told = budget.node_usd_per_hour or None
    if told is None:
        return None
    most = _number(labels, MOST_USD_PER_HOUR)
    return Price(
        usd_per_hour=told * budget.share,
        most_usd_per_hour=max(told, most or 0.0) * budget.share,
        step_s=_number(labels, BILLING_STEP_S) or 1.0,
    )


def _number(labels: Mapping[str, str], name: str) -> float | None:
    text = labels.get(name)
    if text is None:
        return None
    with contextlib.suppress(ValueError):
        if 0 <= (found := float(text)) < math.inf:
            return found
    raise SpecError("budget", f"the label {name}={text} of a node is no price", "label it anew")


def find_machines(nodes: Iterable[Mapping[str, Any]], budget: BudgetSpec) -> dict[str, Machine]:
    """The living nodes of a cluster by Ray's id, as `ray.nodes()` tells them.

    Raises:
        SpecError: A label is no price.
    """
    found: dict[str, Machine] = {}
    for node in nodes:
        if not node["Alive"]:
            continue
        price = price_of(node.get("Labels") or {}, budget)
        gpus = node["Resources"].get("GPU", 0.0)
        dear = price.usd_per_hour / budget.share / gpus if price and gpus else 0.0
        found[node["NodeID"]] = Machine(
            address=node["NodeManagerAddress"], price=price, usd_per_gpu_hour=dear
        )
    return found
